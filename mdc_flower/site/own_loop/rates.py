"""Print the learning rate of every step of a round, for a job that is not written in Python.

Use it as ``python -m mdc_flower.site.own_loop.rates ROUND_FOLDER STEPS``: one rate per line.
"""

import sys
from pathlib import Path

from mdc_flower.site.own_loop.round import Round

if __name__ == "__main__":
    round, steps = Round(Path(sys.argv[1])), int(sys.argv[2])
    for step in range(steps):
        print(repr(round.lr_at(step, steps)))
