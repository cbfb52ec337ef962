"""A real site: its SuperNode, its checks and its state folder."""
