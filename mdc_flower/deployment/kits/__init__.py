"""Kits: everything that the operator of a site or of the coordinator receives."""
