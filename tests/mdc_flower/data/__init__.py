"""Tests of mdc_flower.data."""
