"""Experiments on one machine: arms, the comparison runner, benchmarks, reports.

This package may import ``mdc_flower`` and ``strategies``, and neither of them imports it.
"""
