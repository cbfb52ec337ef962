"""Scripts that prepare data sets for comparisons."""
