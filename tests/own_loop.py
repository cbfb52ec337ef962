"""Sites with commands of their own, in this process; and the jobs of docs/examples/own-loop."""

import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.common.constant import SUPERLINK_NODE_ID
from torch import nn

from mdc_flower import client_app
from mdc_flower.config import read_run_config
from mdc_flower.data import load_dataset
from mdc_flower.engines.in_process import (
    InProcessGrid,
    _context,
    _identity,
    _warnings_only,
    inline_server,
)
from mdc_flower.site.own_loop.asking import close_commands

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples" / "own-loop"


def write_digits(path: Path, part: int = 0, parts: int = 3) -> int:
    """Write one part of the digits to a file; return the number of its examples."""
    train = load_dataset("digits").train
    np.savez(path, images=train.inputs[part::parts], labels=train.labels[part::parts])
    return len(train.labels[part::parts])


def run_with_commands(
    keys: Mapping[str, Any], sites: Mapping[str, Mapping[str, int | str]]
) -> None:
    """Run with real sites, given by their node configs without the name, in this process."""
    config = read_run_config({**keys, "num-sites": len(sites)})
    run_id = secrets.randbits(62)
    contexts = {
        (node := secrets.randbits(62)): _context(run_id, node, config, {"site": name, **own})
        for name, own in sites.items()
    }
    with _identity(run_id), _warnings_only():
        grid = InProcessGrid(client_app.app, contexts)
        try:
            inline_server(grid, _context(run_id, SUPERLINK_NODE_ID, config, {}))
        finally:
            close_commands()


def python(script: Path, *arguments: object) -> str:
    """Return the command that runs a script."""
    return " ".join([sys.executable, str(script), *map(str, arguments)])


def softmax(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return the model of the job in bash and numpy."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
