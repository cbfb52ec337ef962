"""Draw results with Matplotlib."""
