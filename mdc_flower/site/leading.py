"""How the ranks of a site share its work: rank 0 leads, the others take part."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from mdc_flower.config import RunConfig, SiteConfig, read_run_config, read_site_config
from mdc_flower.jobs.task import threads_of
from mdc_flower.site import resources
from mdc_flower.site.client import NDArrays, Scalar, SiteClient
from mdc_flower.site.group import COLLECTIVE, Group, current, set_current
from mdc_flower.training.numerics import repeatable
from mdc_flower.training.runtime import Runtime
from strategies.common.errors import ConfigError


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
    group = Group(Ranks(shard), PrefixStore("mdc", store), on_machine)
    set_current(group)
    return group


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
    """The client of rank 0, which has the other ranks take part."""

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


def take_part(ranks: Runtime, about: Mapping[str, Any]) -> None:
    """Do this rank's share of a call."""
    config, site = read_run_config(about["run-config"]), read_site_config(about["node-config"])
    client = resources.site_client(config, site, ranks)
    client.on_progress = None
    with repeatable(threads_here(config, site), client.device):
        getattr(client, about["method"])(parameters=[], **about["given"])
