"""The coordinator of real sites: its SuperLink and its register of site keys."""
