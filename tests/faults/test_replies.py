"""Replies that are rejected: the site is named, and the others are averaged exactly."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from mdc_flower import client_app
from mdc_flower.config import RunConfig
from mdc_flower.engines import in_process
from mdc_flower.engines.in_process import run_in_process
from strategies.common.errors import QuorumError
from strategies.exchange.messages import (
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    PLAN_ID,
    REPLY,
    record_to_arrays,
)
from strategies.exchange.metrics import TRAIN_METRICS
from strategies.storage.model_files import read_model
from strategies.storage.run_directory import GLOBAL_MODEL, read_events, read_history
from tests.faults.catalog import fault
from tests.faults.runs import NUM_ROUNDS, NUM_SITES, config_in, resumed, sha256
from tests.integration.conftest import summary_of

BAD_SITE = 1
Spoil = Callable[[RecordDict], None]

DROPPED = (
    "the site is asked once more, then dropped with the reason; the others are averaged exactly"
)
LOST = "that site's update of that round"


def _first(content: RecordDict) -> tuple[ArrayRecord, str, NDArray[np.generic]]:
    arrays = content.array_records[ARRAYS]
    name, array = next(iter(arrays.items()))
    return arrays, name, array.numpy()


def nan(content: RecordDict) -> None:
    arrays, name, array = _first(content)
    arrays[name] = Array(np.full_like(array, np.nan))


def infinite(content: RecordDict) -> None:
    arrays, name, array = _first(content)
    spoiled = array.copy()
    spoiled.flat[0] = np.inf
    arrays[name] = Array(spoiled)


def too_large(content: RecordDict) -> None:
    arrays, name, array = _first(content)
    arrays[name] = Array(np.multiply(array, 1e20, dtype=np.float32))


def wrong_shape(content: RecordDict) -> None:
    arrays, name, array = _first(content)
    arrays[name] = Array(array[:-1].copy())


def wrong_dtype(content: RecordDict) -> None:
    arrays, name, array = _first(content)
    arrays[name] = Array(array.astype(np.float64))


def missing_array(content: RecordDict) -> None:
    arrays, name, _ = _first(content)
    del arrays[name]


def extra_array(content: RecordDict) -> None:
    arrays, _, array = _first(content)
    arrays["backdoor"] = Array(array)


def no_examples(content: RecordDict) -> None:
    del content.metric_records[METRICS][NUM_EXAMPLES]


def extra_metric(content: RecordDict) -> None:
    content.metric_records[METRICS]["num-patients"] = 12


def zero_examples(content: RecordDict) -> None:
    content.metric_records[METRICS][NUM_EXAMPLES] = 0


def wrong_plan_id(content: RecordDict) -> None:
    content.config_records[REPLY][PLAN_ID] = "0123456789abcdef"


def raises(content: RecordDict) -> None:
    raise OSError("the disk of this site is gone")


class Sites:
    """The real ClientApp, except that one site's training replies are spoiled.

    It keeps a copy of every reply from before that.
    """

    def __init__(self, spoil: Spoil, times: int = 1_000_000) -> None:
        self.spoil = spoil
        self.times = times
        self.asked = 0
        self.honest: dict[int, dict[str, NDArray[np.generic]]] = {}
        self.examples: dict[int, int] = {}
        self.app = ClientApp()
        self.app.query()(self._pass_on)
        self.app.train()(self._train)

    def _pass_on(self, message: Message, context: Context) -> Message:
        return client_app.app(message, context)

    def _train(self, message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        site = int(context.node_config["partition-id"])
        self.honest[site] = record_to_arrays(reply.content.array_records[ARRAYS])
        self.examples[site] = int(reply.content.metric_records[METRICS][NUM_EXAMPLES])  # type: ignore[arg-type]
        if site == BAD_SITE:
            self.asked += 1
            if self.asked <= self.times:
                self.spoil(reply.content)
        return reply


SPOILS = [
    (nan, "NaN in an array", "not finite"),
    (infinite, "an infinite value in an array", "1 of 8 values are not finite"),
    (too_large, "an update beyond `max-relative-update`", "max-relative-update is 100"),
    (wrong_shape, "an array of another shape", "expected float32[2, 4]"),
    (wrong_dtype, "an array of another dtype", "got float64[2, 4], expected float32[2, 4]"),
    (missing_array, "a missing array", "is missing"),
    (extra_array, "an array that is not in the model", "'backdoor' is not in the global model"),
    (no_examples, "no number of examples", "'num-examples' is missing"),
    (extra_metric, "a metric that sites may not send", "'num-patients'"),
    (zero_examples, "zero examples", "'num-examples' is 0"),
    (wrong_plan_id, "the id of another round plan", "expected"),
    (raises, "the site raises an exception", "OSError: the disk of this site is gone"),
]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(spoil, reason, marks=fault(f"reply: {what}", DROPPED, LOST), id=spoil.__name__)
        for spoil, what, reason in SPOILS
    ],
)
def test_a_bad_site_is_named_and_the_others_are_averaged(
    tmp_path: Path, spoil: Spoil, reason: str
) -> None:
    sites = Sites(spoil)
    config = config_in(tmp_path / "run", epoch_budget=1, max_relative_update=100.0)
    run_in_process(config, NUM_SITES, client=sites.app)

    (line,) = read_history(tmp_path / "run")
    assert list(line["dropped"]) == ["site-1"]
    assert reason in line["dropped"]["site-1"]
    assert sorted(line["participants"]) == ["site-0", "site-2"]
    assert line["asked_again"] == ["site-1"]
    assert sites.asked == 2
    assert not line["failed"]
    assert summary_of(tmp_path / "run")["status"] == "finished"
    assert_average(tmp_path / "run", sites, [0, 2])


def assert_average(run_dir: Path, sites: Sites, those: list[int]) -> None:
    """Check the model against the mean of two sites, weighted by examples, in float64."""
    averaged, _ = read_model(run_dir / GLOBAL_MODEL)
    first, second = those
    n, m = sites.examples[first], sites.examples[second]
    for name, array in averaged.items():
        left = sites.honest[first][name].astype(np.float64) * n
        right = sites.honest[second][name].astype(np.float64) * m
        expected = ((left + right) / (n + m)).astype(array.dtype)
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_the_history_has_the_error_of_a_site_with_its_traceback(tmp_path: Path) -> None:
    run_in_process(config_in(tmp_path / "run", epoch_budget=1), NUM_SITES, client=Sites(raises).app)
    (line,) = read_history(tmp_path / "run")
    first, *trace = line["errors"]["site-1"].splitlines()
    assert first == "OSError: the disk of this site is gone"
    assert "in raises" in "".join(trace)


@fault(
    "reply: the site raises an exception, once",
    "the site is asked once more, and its second reply counts",
)
def test_a_site_that_fails_once_is_asked_again(tmp_path: Path, undisturbed: str) -> None:
    sites = Sites(raises, times=1)
    run_in_process(config_in(tmp_path / "run"), NUM_SITES, client=sites.app)
    assert sha256(tmp_path / "run") == undisturbed
    first, *others = read_history(tmp_path / "run")
    assert (first["asked_again"], first["dropped"]) == (["site-1"], {})
    assert "the disk of this site is gone" in first["errors"]["site-1"]
    assert all(line["asked_again"] == [] for line in others)


def test_a_site_that_is_bad_in_every_round_is_dropped_in_every_round(tmp_path: Path) -> None:
    run_in_process(config_in(tmp_path / "run"), NUM_SITES, client=Sites(nan).app)
    dropped = [list(line["dropped"]) for line in read_history(tmp_path / "run")]
    assert dropped == [["site-1"]] * NUM_ROUNDS


@fault(
    "too few sites send a valid update",
    "the round is repeated, and only the missing sites are asked; after `max-round-retries` the "
    "run stops with exit status 3, and its checkpoint is kept",
)
def test_below_the_quorum_the_run_stops_and_can_go_on(tmp_path: Path, undisturbed: str) -> None:
    config = config_in(tmp_path / "run", min_sites=3, max_round_retries=1)
    sites = Sites(nan)
    with pytest.raises(QuorumError, match="round 1 has too few updates, after 2 attempts"):
        run_in_process(config, NUM_SITES, client=sites.app)

    assert sites.asked == 4  # twice in each attempt; each other site once in total
    (line,) = read_history(tmp_path / "run")
    assert (line["failed"], line["attempts"], list(line["dropped"])) == (True, 2, ["site-1"])
    retried = read_events(tmp_path / "run", "round-started")[1]
    assert (retried["sites"], retried["kept"]) == (["site-1"], ["site-0", "site-2"])
    summary = summary_of(tmp_path / "run")
    assert (summary["status"], summary["exit-status"]) == ("stopped", 3)
    assert "site-1: array" in summary["error"]

    run_in_process(resumed(config), NUM_SITES)
    assert sha256(tmp_path / "run") == undisturbed
    assert len(read_history(tmp_path / "run")) == NUM_ROUNDS


@fault(
    "too few sites send a valid update, once",
    "the round is repeated with the same plan, and only the missing sites are asked",
)
def test_a_round_that_is_repeated_gives_the_same_bits(tmp_path: Path, undisturbed: str) -> None:
    sites = Sites(nan, times=2)  # both times in the first attempt
    run_in_process(config_in(tmp_path / "run", min_sites=3), NUM_SITES, client=sites.app)
    assert sha256(tmp_path / "run") == undisturbed
    attempts = [line["attempts"] for line in read_history(tmp_path / "run")]
    assert attempts == [2, 1, 1]


class EchoGrid(in_process.InProcessGrid):
    """A grid that returns every reply twice."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [reply for reply in super().pull_messages(message_ids) for _ in range(2)]


@fault("the same reply twice", "the second reply is not used")
def test_a_reply_that_comes_twice_counts_once(
    tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "InProcessGrid", EchoGrid)
    run_in_process(config_in(tmp_path / "run"), NUM_SITES)
    assert sha256(tmp_path / "run") == undisturbed


class StaleSites:
    """The real ClientApp, except that one site always sends its first reply again."""

    def __init__(self) -> None:
        self.kept: Any = None
        self.app = ClientApp()
        self.app.query()(lambda message, context: client_app.app(message, context))
        self.app.train()(self._train)

    def _train(self, message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        if int(context.node_config["partition-id"]) != BAD_SITE:
            return reply
        self.kept = self.kept or reply.content
        return Message(self.kept, reply_to=message)


@fault("reply: the update of an earlier round", DROPPED, LOST)
def test_an_update_of_an_earlier_round_is_dropped(tmp_path: Path) -> None:
    run_in_process(config_in(tmp_path / "run", epoch_budget=2), NUM_SITES, client=StaleSites().app)
    first, second = read_history(tmp_path / "run")
    assert sorted(first["participants"]) == ["site-0", "site-1", "site-2"]
    assert sorted(second["participants"]) == ["site-0", "site-2"]
    assert first["plan"]["plan_id"] in second["dropped"]["site-1"]


def test_the_metrics_of_a_reply_are_the_ones_a_site_may_send(tmp_path: Path) -> None:
    config = config_in(tmp_path / "run", epoch_budget=1, site_evaluation=True)
    run_in_process(config, NUM_SITES)
    (line,) = read_history(tmp_path / "run")
    assert all(set(metrics) == TRAIN_METRICS for metrics in line["participants"].values())


def test_a_run_in_which_every_reply_is_bad_stops_and_says_so(tmp_path: Path) -> None:
    def train(message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        zero_examples(reply.content)
        return reply

    app = ClientApp()
    app.query()(lambda message, context: client_app.app(message, context))
    app.train()(train)
    config: RunConfig = config_in(tmp_path / "run", num_sites=2, max_round_retries=0)
    with pytest.raises(QuorumError, match="site-0: metrics: 'num-examples' is 0"):
        run_in_process(config, 2, client=app)
    assert summary_of(tmp_path / "run")["status"] == "stopped"
