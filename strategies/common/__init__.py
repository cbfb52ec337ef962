"""Shared utilities: errors, seeds, files, the log, fault points."""
