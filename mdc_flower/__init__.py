"""mdc-flower: one deep network trained together by several data centers, on Flower.

This package is the Flower app, what runs at the coordinator and at a site, and the command
that starts it. PyTorch lives here. It may import ``strategies``, never ``simulations``.
"""

__version__ = "0.1.0"
