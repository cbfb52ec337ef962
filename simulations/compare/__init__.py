"""Run arms on the same data with equal budgets."""
