"""Kits: the folders with everything that the operator of a site or of the coordinator needs."""
