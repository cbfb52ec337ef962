"""What the notebooks share, and how they are executed."""
