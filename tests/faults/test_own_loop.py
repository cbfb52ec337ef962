"""Faults of a site's own command: the job in bash and numpy of docs/own-loop.md."""

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flwr.app import Error, MessageType, RecordDict

from mdc_flower.console.site_log import SITE_LOG
from mdc_flower.deployment.site.site import SiteView
from mdc_flower.site.answering import answer
from mdc_flower.site.own_loop import command as command_file
from mdc_flower.site.own_loop.asking import close_commands
from strategies.common.errors import EngineError
from strategies.exchange.causes import Cause, cause_of
from strategies.exchange.messages import (
    ARRAYS,
    METRICS,
    arrays_to_record,
    is_shortened,
    record_to_arrays,
    train_content,
)
from strategies.storage.run_directory import GLOBAL_MODEL, read_history
from tests.faults.catalog import fault
from tests.faults.injector import Fault
from tests.faults.test_worker import ask, site
from tests.mdc_flower.examples import plan
from tests.own_loop import EXAMPLES, run_with_commands, write_digits

KEYS = {"num-sites": 1}
MODEL = {"1.weight": np.zeros((10, 64), np.float32), "1.bias": np.zeros(10, np.float32)}

ASKED_AGAIN = "the site names the file and what is wrong with it, and is asked once more"


class Job:
    """A copy of the job, with a switch for one fault; and the site that runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_digits(folder / "digits.npz", parts=8)
        for name in ("job.sh", "job.py"):
            shutil.copy(EXAMPLES / name, folder)
        shutil.copy(Path(__file__).with_name("sabotage.py"), folder)
        text = (folder / "job.py").read_text()
        (folder / "job.py").write_text(
            text.replace("import json\n", "import json\nimport sabotage\n", 1)
        )
        self.state = folder / "state"
        self.node: dict[str, Any] = {
            "site": "north",
            "command": f"{folder / 'job.sh'} {folder / 'digits.npz'}",
            "state": str(self.state),
        }

    def goes_wrong(self, kind: str) -> None:
        """Let the next round go wrong."""
        (self.folder / "fault").write_text(kind)

    def train(self, number: int = 1, deadline_s: float = 100.0, **node: Any) -> RecordDict | Error:
        """Return the answer to a train message."""
        return answer(MessageType.TRAIN, order(number, deadline_s), KEYS, self.node | node)

    def process(self) -> psutil.Process:
        """Return the process that waits for the next round."""
        note = json.loads((self.state / "own-loop" / "command.json").read_text())
        return psutil.Process(note["pid"])


def order(number: int = 1, deadline_s: float = 100.0) -> RecordDict:
    planned = plan(round=number, local_epochs=2, lr_max=0.5, lr_min=0.1, shape="exponential")
    return train_content(arrays_to_record(MODEL), planned, deadline_s)


def bits(content: RecordDict | Error) -> dict[str, bytes]:
    assert isinstance(content, RecordDict), content.reason
    arrays = record_to_arrays(content.array_records[ARRAYS])
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv(SITE_LOG, str(tmp_path / "events.jsonl"))
    yield Job(tmp_path)
    close_commands()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, dict[str, bytes]]]:
    """Return what two rounds give if nothing goes wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHON", sys.executable)
        job = Job(tmp_path_factory.mktemp("undisturbed"))
        yield {number: bits(job.train(number)) for number in (1, 2)}
        close_commands()


def events(job: Job) -> list[dict[str, Any]]:
    lines = (job.folder / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_one_process_does_all_rounds(job: Job, undisturbed: dict[int, dict[str, bytes]]) -> None:
    first, process = job.train(1), job.process()
    second = job.train(2)
    assert bits(first) == undisturbed[1] != bits(second) == undisturbed[2]
    assert job.process() == process
    assert isinstance(second, RecordDict)
    metrics = dict(second.metric_records[METRICS])
    assert metrics.keys() == {"num-examples", "num-steps", "train-loss", "train-seconds"}
    shown = [SiteView().line(event) for event in events(job)]
    assert any(
        "the site's command trains, 2 epochs, learning rate 0.5 to 0.1" in line for line in shown
    )
    assert any("step 0, steps 10, lr 0.5" in line for line in shown)


@pytest.mark.parametrize(
    ("kind", "got"),
    [
        pytest.param(
            "killed", "SIGKILL",
            marks=fault(
                "a site's own command killed while it trains",
                "the site is asked once more, and starts the command again",
            ),
        ),
        pytest.param(
            "fails", "exit status 1",
            marks=fault(
                "a site's own command fails",
                "its last lines are shown at the site only; the site is asked once more",
            ),
        ),
        pytest.param(
            "ends-without-result", "SIGTERM",
            marks=fault(
                "a site's own command ends without a result",
                "the site is asked once more, and starts the command again",
            ),
        ),
    ],
)  # fmt: skip
def test_a_command_that_ends_is_started_again(
    job: Job, undisturbed: dict[int, dict[str, bytes]], kind: str, got: str
) -> None:
    job.goes_wrong(kind)
    failed = job.train()
    assert isinstance(failed, Error)
    assert cause_of(failed.code) is Cause.SITE_FAILED
    assert f"the command ended without a result (got '{got}'" in str(failed.reason)
    assert "secret" not in str(failed.reason)
    (ended,) = [event for event in events(job) if event["event"] == "command-ended"]
    assert ("secret.csv" in SiteView().line(ended)) == (kind == "fails")
    assert bits(job.train()) == undisturbed[1]


GARBAGE = [
    ("no-model", "no trained model", "trained.safetensors: the command wrote no trained model"),
    ("damaged-model", "a damaged model file", "trained.safetensors: the trained model cannot be"),
    ("other-name", "an array of another name", "array '1.weight' is missing"),
    ("other-shape", "an array of another shape", "got 'float32[11]', expected float32[10]"),
    ("other-dtype", "an array of another dtype", "got 'float64[10]', expected float32[10]"),
    ("nan", "NaN in an array", "array '1.bias': the trained model has values that are not finite"),
    ("no-json", "an unreadable result", "result.json: the result cannot be read"),
    ("no-object", "a result of another type", "got 'list', expected an object"),
    ("no-examples", "no number of examples", "num_examples: the result has an unusable value"),
    ("bad-metric", "a metric with a bad name", "metrics: the result has a metric that cannot be"),
]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        pytest.param(kind, told, marks=fault(f"a site's own command: {row}", ASKED_AGAIN), id=kind)
        for kind, row, told in GARBAGE
    ],
)
def test_a_result_that_is_garbage_is_named(
    job: Job, undisturbed: dict[int, dict[str, bytes]], kind: str, told: str
) -> None:
    job.goes_wrong(kind)
    failed = job.train()
    assert isinstance(failed, Error)
    assert told in str(failed.reason)
    assert "site 'north'" in str(failed.reason)
    is_misfit = kind.startswith("other")
    assert cause_of(failed.code) is (Cause.MODEL if is_misfit else Cause.SITE_FAILED)
    assert "secret" not in str(failed.reason)
    assert bits(job.train()) == undisturbed[1]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            "hangs",
            marks=fault(
                "a site's own command hangs",
                "it gets SIGTERM at the deadline; the next round starts the command again",
                "that site's update of that round",
            ),
        ),
        pytest.param(
            "deaf",
            marks=fault(
                "a site's own command hangs and ignores SIGTERM",
                "it gets SIGKILL ten seconds after the deadline",
                "that site's update of that round",
            ),
        ),
    ],
)
def test_a_command_that_hangs_is_ended_at_the_deadline(
    job: Job, undisturbed: dict[int, dict[str, bytes]], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_file, "GRACE_S", 1.0)
    before = psutil.Process().children(recursive=True)
    job.goes_wrong(kind)
    failed = job.train(deadline_s=5.0)
    assert isinstance(failed, Error)
    assert cause_of(failed.code) is Cause.LATE
    assert psutil.Process().children(recursive=True) == before
    assert bits(job.train()) == undisturbed[1]


def test_a_run_whose_command_was_killed_gives_the_same_model(job: Job, tmp_path: Path) -> None:
    keys = {
        "model": "tests.own_loop:softmax",
        "epochs": "fixed",
        "local-epochs": 2,
        "epoch-budget": 4,
        "max-test-examples": 50,
    }
    for name in ("undisturbed", "killed"):
        if name == "killed":
            job.goes_wrong(name)
        own = {"command": job.node["command"], "state": str(tmp_path / f"state-{name}")}
        run_with_commands(keys | {"output-dir": str(tmp_path / name)}, {"north": own})
    first, last = (
        (tmp_path / name / GLOBAL_MODEL).read_bytes() for name in ("undisturbed", "killed")
    )
    assert first == last
    asked_again = [line["asked_again"] for line in read_history(tmp_path / "killed")]
    assert asked_again == [["north"], []]


@fault(
    "a site's own command killed between two rounds",
    "it is started again for the next round",
)
def test_a_command_killed_between_rounds_is_started_again(
    job: Job, undisturbed: dict[int, dict[str, bytes]]
) -> None:
    job.train(1)
    process = job.process()
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert bits(job.train(2)) == undisturbed[2]


@pytest.mark.parametrize("take", ["read -r folder", "folder=$MDC_ROUND"])
def test_a_command_that_does_one_round_and_ends_is_started_for_each(
    job: Job, undisturbed: dict[int, dict[str, bytes]], take: str
) -> None:
    text = (job.folder / "job.sh").read_text()
    once = text.replace("while read -r folder", f"if {take}")
    (job.folder / "job.sh").write_text(once.replace("; do", "; then").replace("done", "fi"))
    assert {number: bits(job.train(number)) for number in (1, 2)} == undisturbed


def test_a_finished_round_is_sent_again_without_the_command(
    job: Job, undisturbed: dict[int, dict[str, bytes]]
) -> None:
    job.train()
    (job.folder / "job.sh").unlink()
    again = job.train()
    assert isinstance(again, RecordDict)
    assert is_shortened(again)
    assert bits(again) == undisturbed[1]


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(
            "command-answered",
            marks=fault(
                "a real site's worker killed after its own command has trained",
                "the command ends; both are started again, and the site is asked once more",
            ),
        ),
        pytest.param(
            "kills-the-worker",
            marks=fault(
                "a real site's worker killed while its own command trains",
                "the command that is left behind is ended; both are started again, and the site "
                "is asked once more",
            ),
        ),
    ],
)
def test_a_worker_that_is_killed_leaves_no_command(
    job: Job, undisturbed: dict[int, dict[str, bytes]], point: str
) -> None:
    faults = [Fault(point, "kill", {"kind": "train"})] if point == "command-answered" else []
    if not faults:
        job.goes_wrong(point)
    with site(job.folder / "site", *faults) as north:
        with pytest.raises(EngineError, match="worker ended before it answered"):
            ask(north.folder, order(), node=job.node, keys=KEYS)
        process = job.process()
        again = ask(north.folder, order(), node=job.node, keys=KEYS)
        process.wait(60)
        left_behind = "command-left-behind" in north.events()
    assert bits(again) == undisturbed[1]
    assert left_behind == (point == "kills-the-worker")
