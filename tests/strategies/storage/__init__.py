"""Tests of the run directory: files are complete, damage is detected, runs can be resumed."""
