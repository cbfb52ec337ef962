"""Tests of what a run leaves on disk: whole, known when damaged, and enough to go on from."""
