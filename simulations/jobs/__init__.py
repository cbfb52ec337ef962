"""Training jobs of the comparisons that are no classifications."""
