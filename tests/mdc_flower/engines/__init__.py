"""Tests of mdc_flower.engines."""
