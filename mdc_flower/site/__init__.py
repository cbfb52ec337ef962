"""A site's side of the run: its card, and its client for training and evaluation."""
