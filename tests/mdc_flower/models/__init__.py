"""Tests of mdc_flower.models."""
