"""Scripts that fetch data sets for comparisons."""
