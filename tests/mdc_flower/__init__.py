"""Tests of mdc_flower, laid out as the package is."""
