"""Readers: from files, names and archives to examples."""
