"""Tests of the `strategies` package: exact arithmetic, invariants, and an in-memory grid."""
