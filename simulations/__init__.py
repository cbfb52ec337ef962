"""Experiments on one machine: arms, the comparison runner, benchmarks and reports.

This package may import ``mdc_flower`` and ``strategies``. Neither of them imports it.
"""
