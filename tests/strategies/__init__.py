"""Tests of what happens between rounds: exact arithmetic, laws, and a grid in memory."""
