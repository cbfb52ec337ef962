"""A real site: its SuperNode, its checks, its state."""
