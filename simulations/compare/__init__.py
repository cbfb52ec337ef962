"""Run several arms on the same data with equal budgets."""
