"""Sites keep arrays of the model: no fault makes a round begin with other ones unnoticed."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from mdc_flower.config import RunConfig
from mdc_flower.engines.in_process import run_in_process
from strategies.storage.model_files import StoredArrays
from strategies.storage.run_directory import CHECKPOINTS, SITES, read_history
from tests.faults.catalog import fault
from tests.faults.injector import Fault
from tests.faults.runs import NUM_SITES, config_in, resumed, run_child, sha256
from tests.faults.test_site_state import KILLED, began_anew, run_with

ITS_ARRAYS = "that site's own arrays"
AGAIN = "it says so, is asked again and begins with the initial ones; the history names it"


def keeping(run_dir: Path, **keys: Any) -> RunConfig:
    return config_in(run_dir, keep="bias", site_evaluation=True, **keys)


@pytest.fixture(scope="module")
def kept_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of the fault-free run."""
    run_dir: Path = tmp_path_factory.mktemp("kept") / "run"
    run_in_process(keeping(run_dir), NUM_SITES)
    return run_dir


def own_arrays(run_dir: Path) -> list[bytes]:
    """Return the newest arrays of each site."""
    newest = [max(folder.glob("*.kept.*")) for folder in sorted((run_dir / SITES).iterdir())]
    return [array.tobytes() for path in newest for array in StoredArrays(path).values()]


@fault(
    "with `keep`: a simulation killed between a site's new arrays and its reply",
    "resumed; the site is asked again, and begins with the arrays that the checkpoint names, not "
    "with the newer ones",
)
def test_a_killed_run_is_resumed_with_the_same_arrays(tmp_path: Path, kept_run: Path) -> None:
    config = keeping(tmp_path / "run")
    killed_at = Fault("state-written", "kill", {"round": 2, "path": "site-1"})
    assert run_child(config, [killed_at]) == KILLED
    run_in_process(resumed(config), NUM_SITES)
    assert sha256(tmp_path / "run") == sha256(kept_run)
    assert own_arrays(tmp_path / "run") == own_arrays(kept_run)
    assert began_anew(tmp_path / "run") == [[], [], []]


@fault(
    "with `keep`: newest checkpoint damaged",
    "the previous checkpoint is used; each site still has the arrays that it names",
)
def test_the_previous_checkpoint_names_arrays_that_are_still_there(
    tmp_path: Path, kept_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = keeping(tmp_path / "run")
    with pytest.raises(RuntimeError, match="injected"):
        run_with(config, Fault("folding", "raise", {"round": 3}), monkeypatch)
    newest = max((tmp_path / "run" / CHECKPOINTS).glob("*.json"))
    newest.write_bytes(newest.read_bytes()[:-3])
    run_in_process(resumed(config), NUM_SITES)
    assert sha256(tmp_path / "run") == sha256(kept_run)
    assert own_arrays(tmp_path / "run") == own_arrays(kept_run)


@fault(
    "with `keep`: a site's update does not count",
    "its next round begins with the arrays of its last update that counted",
    "that site's update of that round",
)
def test_the_arrays_of_an_update_that_does_not_count_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = {"round": 2, "path": "site-1"}
    config = keeping(tmp_path / "run", min_sites=2)
    run_with(config, Fault("state-written", "raise", after, repeat=True), monkeypatch)
    lines = read_history(tmp_path / "run")
    assert [len(line["participants"]) for line in lines] == [3, 2, 3]
    assert began_anew(tmp_path / "run") == [[], [], []]
    # Those of rounds 1 and 3; that of round 2 was deleted when round 3 began.
    files = (tmp_path / "run" / SITES / "site-1").iterdir()
    assert sorted(int(path.name.split(".")[1]) for path in files) == [1, 3]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            shutil.rmtree, marks=fault("with `keep`: a site loses its disk", AGAIN, ITS_ARRAYS)
        ),
        pytest.param(
            lambda folder: [path.write_bytes(b"?") for path in folder.iterdir()],
            marks=fault("with `keep`: a site's arrays damaged", AGAIN, ITS_ARRAYS),
        ),
    ],
    ids=["disk", "file"],
)
def test_a_site_without_its_arrays_begins_anew_and_is_named(
    tmp_path: Path, kept_run: Path, damage: Any
) -> None:
    run_in_process(keeping(tmp_path / "run", epoch_budget=2), NUM_SITES)
    damage(tmp_path / "run" / SITES / "site-1")
    run_in_process(resumed(keeping(tmp_path / "run")), NUM_SITES)
    assert began_anew(tmp_path / "run") == [[], [], ["site-1"]]
    assert sha256(tmp_path / "run") != sha256(kept_run)


@fault(
    "with `keep`: a site's disk is full when it writes its arrays",
    "its update counts; its next round begins with the initial ones, and the history names it",
    ITS_ARRAYS,
)
def test_a_site_that_cannot_write_its_arrays_begins_anew_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Fault("file-written", "disk-full", {"path": "sites/site-1/"})
    run_with(keeping(tmp_path / "run"), full, monkeypatch)
    assert began_anew(tmp_path / "run") == [[], ["site-1"], []]
    assert all(len(line["participants"]) == NUM_SITES for line in read_history(tmp_path / "run"))
