"""A federation of real sites: who takes part, its certificates and keys, and each one's kit."""
