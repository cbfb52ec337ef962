"""Tests of mdc_flower.deployment."""
