"""The coordinator of real sites: its SuperLink and the sites' keys."""
