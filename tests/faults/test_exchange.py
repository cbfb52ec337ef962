"""Faults in a run that exchanges a part of the model: the other arrays are the same or it shows."""

from pathlib import Path

import pytest

from mdc_flower.engines.in_process import run_in_process
from strategies.storage.run_directory import GLOBAL_MODEL, read_history
from tests.faults.catalog import fault
from tests.faults.injector import Fault
from tests.faults.runs import NUM_SITES, config_in, resumed, run_child, sha256
from tests.mdc_flower.coordinator.test_exchange import config, lead

KILLED = -9
ITS_UPDATES = "that site's updates"


@fault(
    'with `exchange = "trainable"`: coordinator killed after it stored two updates',
    "resumed; only the third site is asked again",
)
def test_a_killed_run_is_resumed_with_the_same_bits(tmp_path: Path) -> None:
    keys = {"job": "tests.tiny_jobs:adapted", "exchange": "trainable"}
    whole, cut = (config_in(tmp_path / name, **keys) for name in ("whole", "cut"))
    run_in_process(whole, NUM_SITES)
    assert run_child(cut, [Fault("accepted", "kill", {"round": 2, "count": 2})]) == KILLED
    run_in_process(resumed(cut), NUM_SITES)
    assert sha256(tmp_path / "cut") == sha256(tmp_path / "whole")
    received = [line["received_bytes"] for line in read_history(tmp_path / "cut")]
    assert received == [line["received_bytes"] for line in read_history(tmp_path / "whole")]


@fault(
    "with `exchange`: a site's other arrays, the base, are not the coordinator's",
    "the site does not train; each round drops it with both digests, and the others go on",
    ITS_UPDATES,
)
@pytest.mark.usefixtures("identity")
def test_a_site_with_another_base_takes_no_part(tmp_path: Path) -> None:
    jobs = {"east": "adapted", "north": "adapted", "south": "with_another_base"}
    run_dir = lead(config(tmp_path / "run", num_sites=3), jobs)
    for line in read_history(run_dir):
        assert sorted(line["participants"]) == ["east", "north"]
        assert line["causes"]["south"] == "model"
        assert "the model's base, are not the same here" in line["dropped"]["south"]
    alone = lead(config(tmp_path / "two", num_sites=2), {"east": "adapted", "north": "adapted"})
    assert (run_dir / GLOBAL_MODEL).read_bytes() == (alone / GLOBAL_MODEL).read_bytes()
    last, expected = read_history(run_dir)[-1], read_history(alone)[-1]
    assert last["site_evaluation"] == expected["site_evaluation"], "nor in the evaluation"


@fault(
    "with `exchange`: training at a site changes an array that is not exchanged",
    "the site's update is not sent; each round drops it with the name of the array",
    ITS_UPDATES,
)
@pytest.mark.usefixtures("identity")
def test_a_site_whose_base_drifts_is_told_the_array(tmp_path: Path) -> None:
    jobs = {"east": "steady", "north": "steady", "south": "drifting"}
    keys = {"job": "tests.tiny_jobs:steady", "num_sites": 3}
    for line in read_history(lead(config(tmp_path / "run", **keys), jobs)):
        assert sorted(line["participants"]) == ["east", "north"]
        assert line["causes"]["south"] == "model"
        assert "'0.running_mean', the first of 3 that changed" in line["dropped"]["south"]
