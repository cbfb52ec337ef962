"""One bad site never stops a run: it is dropped, named, and the others are averaged."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from mdc_flower import client_app
from mdc_flower.engines import run_in_process
from strategies.journal import GLOBAL_MODEL, read_history, read_model
from strategies.messages import ARRAYS, METRICS, NUM_EXAMPLES, TRAIN_METRICS, record_to_arrays
from tests.integration.conftest import small_config, summary_of

BAD_SITE = 1
Fault = Callable[[RecordDict], None]


def nan(content: RecordDict) -> None:
    name, array = next(iter(content.array_records[ARRAYS].items()))
    content.array_records[ARRAYS][name] = Array(np.full_like(array.numpy(), np.nan))


def wrong_shape(content: RecordDict) -> None:
    name, array = next(iter(content.array_records[ARRAYS].items()))
    content.array_records[ARRAYS][name] = Array(array.numpy()[:-1].copy())


def missing_array(content: RecordDict) -> None:
    del content.array_records[ARRAYS][next(iter(content.array_records[ARRAYS]))]


def extra_metric(content: RecordDict) -> None:
    content.metric_records[METRICS]["num-patients"] = 12


def zero_examples(content: RecordDict) -> None:
    content.metric_records[METRICS][NUM_EXAMPLES] = 0


def raises(content: RecordDict) -> None:
    raise OSError("the disk of this site is gone")


class Sites:
    """The real ClientApp, with one site's train replies spoiled, and every honest one kept."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
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
            self.fault(reply.content)
        return reply


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (nan, "not finite"),
        (wrong_shape, "expected float32[64, 64]"),
        (missing_array, "is missing"),
        (extra_metric, "'num-patients'"),
        (zero_examples, "'num-examples' is 0"),
        (raises, "the disk of this site is gone"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_bad_site_is_named_and_the_others_are_averaged(
    tmp_path: Path, fault: Fault, reason: str
) -> None:
    sites = Sites(fault)
    run_in_process(small_config(tmp_path / "run", epoch_budget=1), 3, client=sites.app)

    (line,) = read_history(tmp_path / "run")
    assert list(line["dropped"]) == ["site-1"]
    assert reason in line["dropped"]["site-1"]
    assert sorted(line["participants"]) == ["site-0", "site-2"]
    assert not line["failed"]
    assert summary_of(tmp_path / "run")["status"] == "finished"

    averaged, _ = read_model(tmp_path / "run" / GLOBAL_MODEL)
    n0, n2 = sites.examples[0], sites.examples[2]
    for name, array in averaged.items():
        # The mean by examples of the two other sites, folded in site order in float64.
        left = sites.honest[0][name].astype(np.float64) * n0
        right = sites.honest[2][name].astype(np.float64) * n2
        expected = ((left + right) / (n0 + n2)).astype(array.dtype)
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_a_site_that_is_bad_in_every_round_is_dropped_in_every_round(tmp_path: Path) -> None:
    run_in_process(small_config(tmp_path / "run", epoch_budget=3), 3, client=Sites(nan).app)
    assert [list(line["dropped"]) for line in read_history(tmp_path / "run")] == [["site-1"]] * 3


def test_a_run_in_which_every_reply_is_bad_fails_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no round had a reply that counts"):
        run_in_process(small_config(tmp_path / "run", num_sites=2), 2, client=_only_bad())
    assert summary_of(tmp_path / "run")["status"] == "failed"
    assert all(line["failed"] for line in read_history(tmp_path / "run"))


def _only_bad() -> ClientApp:
    app = ClientApp()

    def train(message: Message, context: Context) -> Message:
        reply = client_app.app(message, context)
        zero_examples(reply.content)
        return reply

    app.query()(client_app.app)
    app.train()(train)
    return app


def test_the_metrics_of_a_reply_are_the_ones_a_site_may_send(tmp_path: Path) -> None:
    run_in_process(small_config(tmp_path / "run", epoch_budget=1), 3)
    (line,) = read_history(tmp_path / "run")
    assert all(set(metrics) == TRAIN_METRICS for metrics in line["participants"].values())
