"""Tests of mdc_flower.federation."""
