"""Tests of mdc_flower.reports."""
