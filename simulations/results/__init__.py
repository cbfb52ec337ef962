"""The files, tables and pages of finished comparisons."""
