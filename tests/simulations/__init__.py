"""Tests of simulations, laid out as the package is."""
