"""How many processes a site trains with, and on how many machines."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from mdc_flower.common.config_model import ConfigModel

AUTO = "auto"


def _ranks(value: int | str) -> int | str:
    if value != AUTO and not (isinstance(value, int) and value >= 1):
        raise ValueError("must be a number above 0, or 'auto'")
    return value


Ranks = Annotated[int | str, AfterValidator(_ranks)]
Rendezvous = Annotated[str, Field(pattern=r"^(\S+:\d{1,5})?$")]


class Launch(ConfigModel):
    """How a site's processes are started.

    Attributes
    ----------
    ranks : int or str
        Processes on each machine; ``auto`` for one for each GPU, or a single one without a GPU.
    nodes : int
        Machines.
    rendezvous : str
        ``host:port`` of the first machine; empty for a single machine.
    shard : bool
        Whether each process keeps only its share of the model.
    """

    ranks: Ranks = 1
    nodes: Annotated[int, Field(ge=1)] = 1
    rendezvous: Rendezvous = ""
    shard: bool = False

    @model_validator(mode="after")
    def _nodes_meet(self) -> Self:
        if self.nodes > 1 and not self.rendezvous:
            raise ValueError("nodes above 1 need rendezvous, host:port of the first machine")
        return self

    @property
    def is_single(self) -> bool:
        """Return whether there is a single process, whatever the machine has."""
        return self.ranks == self.nodes == 1

    def on_machine(self, gpus: int) -> int:
        """Return the number of processes on a machine with this number of GPUs."""
        return max(1, gpus) if self.ranks == AUTO else int(self.ranks)

    def command(self, folder: Path, node_rank: int = 0) -> list[str]:
        """Return the command that starts the site's worker, as a child of this process.

        Parameters
        ----------
        folder
            The worker's folder.
        node_rank
            The number of this machine, from 0.
        """
        if self.is_single:
            return [sys.executable, "-m", "mdc_flower.site.worker", str(folder)]
        own = json.dumps(self.model_dump(by_alias=True))
        start = [sys.executable, "-m", "mdc_flower.site.launcher"]
        return [*start, str(folder), str(os.getpid()), str(node_rank), own]
