"""The group of processes (ranks) that answer for one site.

Rank 0 gets the messages and answers them like a single process. Before it trains, evaluates or
computes statistics, it tells the other ranks to do the same on their share of the examples, and
afterwards all report whether it went well. A rank that cannot go on ends, and the launcher (see
`mdc_flower.site.launcher`) then ends the whole group.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from logging import ERROR
from typing import TYPE_CHECKING, Any

import torch

from mdc_flower.config import RunConfig, SiteConfig, read_run_config, read_site_config
from mdc_flower.jobs.task import threads_of
from mdc_flower.site import resources
from mdc_flower.site.client import NDArrays, Scalar, SiteClient
from mdc_flower.training.numerics import repeatable
from mdc_flower.training.runtime import Runtime
from strategies.common.errors import ConfigError, EngineError
from strategies.common.log import log

if TYPE_CHECKING:  # it takes a second to import, and most sites have one process
    from torch.distributed.distributed_c10d import Store

FOREVER = timedelta(days=365)
"""Longest wait of a rank for the next call."""

COLLECTIVE = timedelta(minutes=30)
"""Longest wait for the other ranks in the middle of a call; reading data may take that long."""

AFTER_ERROR = timedelta(seconds=15)
"""Longest wait for the others of a rank that failed: they fail alike, or hang without it."""

END = "end"
"""The call that ends a rank."""


class BrokenGroupError(EngineError):
    """The ranks no longer do the same, so the group must end."""


@dataclass
class Group:
    """The ranks of this process's site.

    Attributes
    ----------
    ranks : Runtime
        What the training loop needs of them.
    store : Store
        Carries calls and reports; it is in the launcher's process.
    on_machine : int
        Number of ranks on this machine.
    number : int
        Calls so far.
    is_broken : bool
        Whether this process must end, because the ranks no longer do the same.
    """

    ranks: Runtime
    store: "Store"
    on_machine: int
    number: int = 0
    is_broken: bool = False

    @contextmanager
    def call(self, about: Mapping[str, Any]) -> Iterator[None]:
        """Have the other ranks do what the block does.

        Raises
        ------
        EngineError
            If another rank failed.
        """
        self._begin(about)
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        try:
            self._end(failed)
        except BrokenGroupError:
            self.is_broken = True
            if failed is None:
                raise
        if failed is not None:
            raise failed

    def end(self) -> None:
        """Let the other ranks end."""
        self._begin({"method": END})

    def follow(self) -> None:
        """Do what rank 0 says until it says to end."""
        while True:
            self.number += 1
            self.store.wait([self._key("call")], FOREVER)
            about = json.loads(self.store.get(self._key("call")))
            if about["method"] == END:
                return
            failed: Exception | None = None
            try:
                _take_part(self.ranks, about)
            except Exception as error:
                log(ERROR, "rank %d failed", self.ranks.rank, exc_info=error)
                failed = error
            self._report(failed)
            if failed is not None:
                self._hear(0, AFTER_ERROR)

    def _begin(self, about: Mapping[str, Any]) -> None:
        self.number += 1
        self.store.set(self._key("call"), json.dumps(about))

    def _end(self, failed: Exception | None) -> None:
        self._report(failed)
        patience = AFTER_ERROR if failed else COLLECTIVE
        told = [self._hear(rank, patience) for rank in range(1, self.ranks.size)]
        self.store.delete_key(self._key("call"))
        for rank, error in enumerate(told, 1):
            self.store.delete_key(self._key(rank))
            if error and failed is None:
                raise EngineError(f"rank {rank} of this site failed", got=error)

    def _report(self, failed: Exception | None) -> None:
        name = "" if failed is None else type(failed).__name__
        self.store.set(self._key(self.ranks.rank), name)

    def _hear(self, rank: int, patience: timedelta) -> str:
        """Return the name of a rank's error, empty for none."""
        try:
            self.store.wait([self._key(rank)], patience)
            return str(self.store.get(self._key(rank)).decode())
        except RuntimeError:  # torch's DistError: no report in time, or the store is gone
            raise BrokenGroupError(
                f"rank {rank} of this site does not answer the others",
                hint="All of the site's processes are started again",
            ) from None

    def _key(self, what: object) -> str:
        return f"{self.number}/{what}"


_joined: list[Group] = []


def current() -> Group | None:
    """Return the group of this process; None if the site has a single process."""
    return _joined[0] if _joined else None


def join(shard: bool) -> Group:
    """Join the group that the launcher's environment variables describe."""
    import torch.distributed as dist
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    from mdc_flower.training.ranks import Ranks

    device = None
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device else "gloo", timeout=COLLECTIVE)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=COLLECTIVE)
    on_machine = int(os.environ["LOCAL_WORLD_SIZE"])
    _joined[:] = [Group(Ranks(shard), PrefixStore("mdc", store), on_machine)]
    return _joined[0]


def threads_here(config: RunConfig, site: SiteConfig) -> int:
    """Return the number of CPU threads of this process: ranks on a machine share its threads."""
    group = current()
    return max(1, threads_of(config, site) // (group.on_machine if group else 1))


def site_client(config: RunConfig, site: SiteConfig) -> SiteClient:
    """Return the client of a site; if the site has several ranks, one that leads the others.

    Raises
    ------
    ConfigError, DataError, ModelError
        See `mdc_flower.site.resources.site_client`.
    """
    group = current()
    if group is None:
        return resources.site_client(config, site)
    client = resources.site_client(config, site, group.ranks)
    _check(client, group, config)
    return LeadingClient(client, group, config, site)


def _check(client: SiteClient, group: Group, config: RunConfig) -> None:
    """Refuse what several processes cannot do."""
    if client.device.index is not None and group.on_machine > 1:
        raise ConfigError(
            "a site with several processes on a machine cannot name a single GPU",
            where="device",
            got=client.device,
            expected="auto, cpu or cuda; CUDA_VISIBLE_DEVICES selects GPUs",
        )
    if config.keeps_state:
        raise ConfigError(
            "a site with several processes cannot keep its optimizer's state",
            where="optimizer-state",
            got=config.optimizer_state,
            expected="'reset'",
            hint="Only the site can change this: ranks = 1",
        )
    if not group.ranks.shard:
        return
    if config.proximal_mu or client.settings.autocast_dtype == torch.float16:
        raise ConfigError(
            "a site that shards the model cannot train in this way",
            where="proximal-mu" if config.proximal_mu else "precision",
            got=config.proximal_mu or "fp16",
            expected="0" if config.proximal_mu else "bf16 or none",
            hint="Only the site can change this: shard = false",
        )


class LeadingClient(SiteClient):
    """The client of rank 0, which has the other ranks take part.

    It saves no epochs: after a fault, the round is trained anew.
    """

    def __init__(
        self, client: SiteClient, group: Group, config: RunConfig, site: SiteConfig
    ) -> None:
        self.__dict__.update(client.__dict__)
        self._group = group
        self._configs = {"run-config": config.to_flower(), "node-config": site.to_flower()}

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train; see `SiteClient.fit`."""
        self.epochs = None
        with self._together("fit", config=config):
            return super().fit(parameters, config)

    def evaluate(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Evaluate; see `SiteClient.evaluate`."""
        with self._together("evaluate", config=config):
            return super().evaluate(parameters, config)

    def statistics(
        self, parameters: NDArrays, deadline_s: float = math.inf
    ) -> tuple[dict[str, Any], int]:
        """Compute statistics; see `SiteClient.statistics`."""
        with self._together("statistics", deadline_s=deadline_s):
            return super().statistics(parameters, deadline_s)

    @contextmanager
    def _together(self, method: str, **given: Any) -> Iterator[None]:
        with self._group.call({"method": method, "given": given, **self._configs}):
            yield


def _take_part(ranks: Runtime, about: Mapping[str, Any]) -> None:
    """Do this rank's share of a call."""
    config, site = read_run_config(about["run-config"]), read_site_config(about["node-config"])
    client = resources.site_client(config, site, ranks)
    client.on_progress = None
    with repeatable(threads_here(config, site), client.device):
        getattr(client, about["method"])(parameters=[], **about["given"])
