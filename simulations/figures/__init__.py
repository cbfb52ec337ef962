"""Figures of results, drawn with Matplotlib."""
