"""Everything the coordinator does between rounds: plans, reply checks, averaging, the round loop.

This package may import numpy, Flower, pydantic (installed with Flower) and safetensors (for
files), but never torch: a coordinator that only averages needs no deep-learning framework, and the
arithmetic of a round stays readable as plain arrays. Imports in this project go in one direction:
notebooks -> simulations -> mdc_flower -> strategies.
"""
