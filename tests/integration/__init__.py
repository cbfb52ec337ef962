"""Whole runs: faults, engines, real processes, the bundle, the documentation."""
