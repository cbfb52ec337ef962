"""Everything that can go wrong goes wrong here, on purpose, and the run ends as it must."""
