"""Reports on a finished or running run: a plot, and a page to read and print.

This package reads only plain files of a run directory and does not import PyTorch.
"""
