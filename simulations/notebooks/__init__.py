"""Helpers for the notebooks, and their execution."""
