"""The log of a run: Flower's own, so that our lines stand among its lines, in the same form.

Importing Flower gives this logger its handler; it has the console's format and level.
"""

import logging

log = logging.getLogger("flwr").log
"""Called with a level, a text and its values, as `logging.Logger.log`."""
