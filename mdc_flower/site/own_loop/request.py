"""The folder of a round: what the site asks of its command."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from mdc_flower.site.own_loop.protocol import MODEL, PLAN, PROTOCOL, SEEDS
from strategies.common.files import write_atomically
from strategies.common.seeds import derive_seed
from strategies.method.round_plan import RoundPlan

Arrays = Mapping[str, NDArray[np.generic]]

FOLDERS = "round-*"
"""Pattern of the names of the rounds' folders."""


def new_folder(rounds: Path, kind: str) -> Path:
    """Return a new folder for a round, after deleting those of earlier rounds."""
    last = 0
    for folder in rounds.glob(FOLDERS):
        last = max(last, int(folder.name.split("-")[1]))
        shutil.rmtree(folder, ignore_errors=True)
    folder = rounds / f"round-{last + 1}-{kind}"
    folder.mkdir(mode=0o700)
    return folder


def write_request(
    folder: Path, kind: str, site: str, arrays: Arrays, plan: RoundPlan | None, seconds: float
) -> None:
    """Write model and plan into a round's folder; the plan comes last.

    Parameters
    ----------
    folder
        An empty folder.
    kind
        ``train`` or ``evaluate``.
    site
        The site's name; the seed depends on it.
    arrays
        The global model.
    plan
        The round's plan; None to evaluate.
    seconds
        Time until the deadline; infinite if there is none.
    """
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    save_file(whole, folder / MODEL)
    has_end = seconds < float("inf")
    fields: dict[str, object] = {
        "protocol": PROTOCOL,
        "kind": kind,
        "site": site,
        "deadline": round(time.time() + seconds, 3) if has_end else None,
        "deadline_s": round(seconds, 3) if has_end else None,
    }
    if plan is not None:
        # proximal_mu is left out: `answers` refuses a run that sets it.
        own = plan.model_dump(exclude={"version", "seed", "proximal_mu"})
        fields |= own | {"seed": derive_seed(plan.seed, "own loop", plan.round, site) % SEEDS}
    write_atomically(folder / PLAN, (json.dumps(fields, indent=2) + "\n").encode())
