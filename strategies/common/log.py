"""The log of a run: Flower's own logger, so that all lines have the same format and order.

Importing Flower adds the handler, which has the console's format and level.
"""

import logging

log = logging.getLogger("flwr").log
"""Takes a level, a message and its arguments, like `logging.Logger.log`."""
