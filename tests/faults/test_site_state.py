"""Sites keep their optimizer's state: no fault makes a round begin with another one unnoticed."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from flwr.app import MessageType, RecordDict

from mdc_flower.config import RunConfig, read_run_config, read_site_config
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.site.answering import answer
from mdc_flower.site.resources import site_client
from strategies.common.errors import EngineError
from strategies.exchange.lineage import Lineage
from strategies.exchange.messages import ARRAYS, arrays_to_record, record_to_arrays, train_content
from strategies.storage.run_directory import CHECKPOINTS, SITES, read_history
from tests.faults import injector
from tests.faults.catalog import fault
from tests.faults.injector import Fault
from tests.faults.runs import NUM_SITES, config_in, resumed, run_child, sha256
from tests.faults.test_worker import NODE, ask, site
from tests.mdc_flower.examples import plan
from tests.tiny import KEYS

KILLED = -9
ITS_STATE = "that site's optimizer state"
AGAIN = "it says so, is asked again and begins with a new optimizer; the history names it"


def keeping(run_dir: Path, **keys: Any) -> RunConfig:
    return config_in(run_dir, optimizer_state="keep", optimizer="adamw", **keys)


@pytest.fixture(scope="module")
def kept_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of the fault-free run whose sites keep their states."""
    run_dir: Path = tmp_path_factory.mktemp("kept") / "run"
    run_in_process(keeping(run_dir), NUM_SITES)
    return run_dir


def began_anew(run_dir: Path) -> list[list[str]]:
    return [line["began_anew"] for line in read_history(run_dir)]


@pytest.mark.parametrize(
    "killed_at",
    [
        pytest.param(
            Fault("training", "kill", {"round": 2, "site": "site-1"}),
            marks=[fault(
                "with `optimizer-state = \"keep\"`: a simulation killed while a site trains",
                "resumed; each site begins with the state that the checkpoint names",
            ), pytest.mark.slow],
        ),
        pytest.param(
            Fault("file-written", "kill", {"path": ".000002."}),
            marks=[fault(
                "with `optimizer-state = \"keep\"`: a simulation killed while a site writes its "
                "state",
                "resumed; each site begins with the state that the checkpoint names",
            ), pytest.mark.slow],
        ),
        pytest.param(
            Fault("state-written", "kill", {"round": 2, "path": "site-1"}),
            marks=fault(
                "with `optimizer-state = \"keep\"`: a simulation killed between a site's new state "
                "and its reply",
                "resumed; the site is asked again, and begins with the state that the checkpoint "
                "names, not with the newer one",
            ),
        ),
        pytest.param(
            Fault("accepted", "kill", {"round": 2, "count": 2}),
            marks=[fault(
                "with `optimizer-state = \"keep\"`: coordinator killed after it stored two updates",
                "resumed; only the third site is asked again",
            ), pytest.mark.slow],
        ),
        pytest.param(
            Fault("round-folded", "kill", {"round": 2}),
            marks=[fault(
                "with `optimizer-state = \"keep\"`: coordinator killed after a round's checkpoint",
                "resumed; each site begins with the state of that round",
            ), pytest.mark.slow],
        ),
    ],
    ids=["training", "writing", "written", "accepted", "folded"],
)  # fmt: skip
def test_a_killed_run_is_resumed_with_the_same_states(
    tmp_path: Path, kept_run: Path, killed_at: Fault
) -> None:
    config = keeping(tmp_path / "run")
    assert run_child(config, [killed_at]) == KILLED
    run_in_process(resumed(config), NUM_SITES)
    assert sha256(tmp_path / "run") == sha256(kept_run)
    assert began_anew(tmp_path / "run") == began_anew(kept_run) == [[], [], []]


@fault(
    'with `optimizer-state = "keep"`: newest checkpoint damaged',
    "the previous checkpoint is used; each site still has the state that it names",
)
def test_the_previous_checkpoint_names_states_that_are_still_there(
    tmp_path: Path, kept_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = keeping(tmp_path / "run")
    with pytest.raises(RuntimeError, match="injected"):
        run_with(config, Fault("folding", "raise", {"round": 3}), monkeypatch)
    newest = max((tmp_path / "run" / CHECKPOINTS).glob("*.json"))
    assert newest.name.startswith("000002.")
    newest.write_bytes(newest.read_bytes()[:-3])
    run_in_process(resumed(config), NUM_SITES)
    assert sha256(tmp_path / "run") == sha256(kept_run)
    assert began_anew(tmp_path / "run") == [[], [], []]


@fault(
    'with `optimizer-state = "keep"`: a site\'s update does not count',
    "its next round begins with the state of its last update that counted",
    "that site's update of that round",
)
def test_the_state_of_an_update_that_does_not_count_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = keeping(tmp_path / "run", min_sites=2)
    after = {"round": 2, "path": "site-1"}
    run_with(config, Fault("state-written", "raise", after, repeat=True), monkeypatch)
    lines = read_history(tmp_path / "run")
    assert [sorted(line["participants"]) for line in lines] == [
        ["site-0", "site-1", "site-2"], ["site-0", "site-2"], ["site-0", "site-1", "site-2"],
    ]  # fmt: skip
    assert began_anew(tmp_path / "run") == [[], [], []]
    # The states of rounds 1 and 3; that of round 2 was deleted when round 3 began.
    files = (tmp_path / "run" / SITES / "site-1").iterdir()
    assert sorted(int(path.name.split(".")[1]) for path in files) == [1, 3]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            shutil.rmtree,
            marks=fault('with `optimizer-state = "keep"`: a site loses its disk', AGAIN, ITS_STATE),
        ),
        pytest.param(
            lambda folder: [path.write_bytes(b"?") for path in folder.iterdir()],
            marks=fault(
                'with `optimizer-state = "keep"`: a site\'s state damaged', AGAIN, ITS_STATE
            ),
        ),
    ],
    ids=["disk", "file"],
)
def test_a_site_without_its_state_begins_anew_and_is_named(
    tmp_path: Path, kept_run: Path, damage: Any
) -> None:
    run_in_process(keeping(tmp_path / "run", epoch_budget=2), NUM_SITES)
    damage(tmp_path / "run" / SITES / "site-1")
    run_in_process(resumed(keeping(tmp_path / "run")), NUM_SITES)
    assert began_anew(tmp_path / "run") == [[], [], ["site-1"]]
    lines = read_history(tmp_path / "run")
    assert all(len(line["participants"]) == NUM_SITES for line in lines)
    assert lines[2]["plan"] == read_history(kept_run)[2]["plan"]
    assert sha256(tmp_path / "run") != sha256(kept_run)


@fault(
    'with `optimizer-state = "keep"`: a site\'s disk is full when it writes its state',
    "its update counts; its next round begins with a new optimizer, and the history names it",
    ITS_STATE,
)
def test_a_site_that_cannot_write_its_state_begins_anew_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Fault("file-written", "disk-full", {"path": "sites/site-1/"})
    run_with(keeping(tmp_path / "run"), full, monkeypatch)
    assert began_anew(tmp_path / "run") == [[], ["site-1"], []]
    assert all(len(line["participants"]) == NUM_SITES for line in read_history(tmp_path / "run"))


@pytest.mark.integration
@fault(
    'with `optimizer-state = "keep"`: a real site\'s worker killed between its new state and its '
    "update",
    "the site is asked once more, begins with the named state, and writes the same new one",
)
def test_a_worker_killed_after_its_state_writes_the_same_again(tmp_path: Path) -> None:
    keys = {"optimizer-state": "keep", "optimizer": "adamw"}
    first, second = plan(round=1), plan(round=2)
    client = site_client(read_run_config(KEYS), read_site_config(NODE))
    model = arrays_to_record(dict(zip(client.names, client.get_parameters({}), strict=True)))

    def order(number: int) -> RecordDict:
        now, named = (first, "") if number == 1 else (second, first.plan_id)
        return Lineage("1", named).put_in(train_content(model, now, 100.0))

    def here(number: int) -> RecordDict:
        node = NODE | {"state": str(tmp_path / "undisturbed")}
        done = answer(MessageType.TRAIN, order(number), KEYS | keys, node)
        assert isinstance(done, RecordDict)
        return done

    node = NODE | {"state": str(tmp_path / "state")}
    with site(tmp_path / "site", Fault("state-written", "kill", {"round": 2})) as north:
        ask(north.folder, order(1), keys=keys, node=node)
        with pytest.raises(EngineError, match="worker ended before it answered"):
            ask(north.folder, order(2), keys=keys, node=node)
        again = ask(north.folder, order(2), keys=keys, node=node)
    here(1)
    assert isinstance(again, RecordDict)
    ends = [record_to_arrays(one.array_records[ARRAYS]) for one in (again, here(2))]
    assert [a.tobytes() for a in ends[0].values()] == [a.tobytes() for a in ends[1].values()]
    # Sealed: equal names are equal bytes.
    names = [
        sorted(path.name for path in (tmp_path / name).glob("*.optimizer.*"))
        for name in ("state", "undisturbed")
    ]
    assert names[0] == names[1]
    assert len(names[0]) == 2


def run_with(config: RunConfig, happens: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in this process with a fault."""
    folder = Path(config.output_dir).parent / "faults"
    with monkeypatch.context() as patch:
        for name, value in injector.plan(folder, [happens]).items():
            patch.setenv(name, value)
        run_in_process(config, NUM_SITES)
