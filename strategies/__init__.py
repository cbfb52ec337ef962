"""What happens between rounds: plans, controllers, the gate, averaging, the round loop.

This package may import numpy, Flower, and the small libraries Flower brings
(pydantic, and safetensors for files), and never torch: a coordinator that only averages
needs no deep-learning framework, and the arithmetic of a round stays readable as arrays.
Imports in this project point one way: notebooks -> simulations -> mdc_flower -> strategies.
"""
