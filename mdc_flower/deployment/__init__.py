"""A federation of real sites: participants, certificates, keys and kits."""
