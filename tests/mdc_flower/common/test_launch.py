"""How the processes of a site are started."""

import json
from pathlib import Path
from typing import Any

import pytest

from mdc_flower.common.launch import Launch
from mdc_flower.site.own_worker import launch_of
from strategies.common.errors import ConfigError


@pytest.mark.parametrize(
    ("ranks", "gpus", "expected"), [("auto", 0, 1), ("auto", 8, 8), (3, 0, 3), (1, 8, 1)]
)
def test_auto_is_a_process_for_each_gpu(ranks: int | str, gpus: int, expected: int) -> None:
    assert Launch(ranks=ranks).on_machine(gpus) == expected


def test_a_single_process_is_started_without_the_launcher() -> None:
    assert "mdc_flower.site.worker" in Launch().command(Path("/f"))
    several = Launch(ranks=2, nodes=3, rendezvous="gpu-1:29400", shard=True)
    *_, folder, parent, node_rank, own = several.command(Path("/f"), 2)
    assert (folder, node_rank) == ("/f", "2")
    assert int(parent) > 0
    assert Launch(**json.loads(own)) == several


SIMULATED = {"partition-id": 0, "num-partitions": 2}


@pytest.mark.parametrize(
    ("node", "run", "expected"),
    [
        ({"site": "north"}, {"ranks-per-site": 2}, Launch()),
        (SIMULATED, {"ranks-per-site": 2}, Launch(ranks=2)),
        (SIMULATED | {"ranks": 3}, {"ranks-per-site": 2}, Launch(ranks=3)),
        ({"site": "north", "ranks": "auto", "shard": True}, {}, Launch(ranks="auto", shard=True)),
    ],
)
def test_a_run_sets_the_processes_of_simulated_sites_only(
    node: dict[str, Any], run: dict[str, Any], expected: Launch
) -> None:
    assert launch_of(node, run) == expected


def test_several_machines_need_an_address() -> None:
    with pytest.raises(ConfigError, match="nodes above 1 need rendezvous"):
        launch_of({"site": "north", "nodes": 2}, {})
