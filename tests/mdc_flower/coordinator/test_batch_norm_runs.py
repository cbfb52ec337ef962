"""Whole runs with each policy: what is sent, what is saved, what is said of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from mdc_flower import client_app
from mdc_flower.config import RunConfig, read_run_config, read_site_config
from mdc_flower.engines.in_process import run_in_process
from mdc_flower.jobs.model_files import evaluate_run, load_model
from mdc_flower.jobs.task import load_task
from mdc_flower.site.client import SiteClient
from mdc_flower.training.arrays import model_arrays
from mdc_flower.training.batch_norm import buffers_of, recalibrate, statistics_of
from mdc_flower.training.batches import Tensors
from mdc_flower.training.loop import TrainSettings
from strategies.common.errors import ConfigError
from strategies.exchange.messages import (
    ARRAYS,
    STATISTICS,
    arrays_to_record,
    record_to_arrays,
    statistics_content,
)
from strategies.storage.model_files import read_model
from strategies.storage.run_directory import (
    AVERAGED_MODEL,
    BEST_MODEL,
    GLOBAL_MODEL,
    SUMMARY,
    read_events,
    read_history,
)
from tests.mdc_flower.commands import run_small
from tests.mdc_flower.examples import accuracy_of, evaluated, job_of, plan


def config_in(folder: Path, **keys: Any) -> RunConfig:
    values: dict[str, Any] = {
        "model": "small-cnn",
        "max-train-examples": 120,
        "max-test-examples": 100,
        "num-sites": 2,
        "num-rounds": 2,
        "epochs": "fixed",
        "local-epochs": 1,
        "output-dir": str(folder),
    }
    return read_run_config({**values, **{k.replace("_", "-"): v for k, v in keys.items()}})


def run(folder: Path, client: ClientApp = client_app.app, **keys: Any) -> dict[str, Any]:
    run_in_process(config_in(folder, **keys), 2, client=client)
    summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
    return summary


class Watched(ClientApp):
    """The sites' app; what comes and what is answered is kept."""

    def __init__(self, answer: Callable[[Message, Message], Message] | None = None) -> None:
        super().__init__()
        self.seen: list[tuple[Message, Message]] = []
        self._change = answer or (lambda request, reply: reply)

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self._change(message, client_app.app(message, context))
        self.seen.append((message, reply))
        return reply


def test_recalibrated_models_differ_from_averaged_ones_in_statistics_alone(
    tmp_path: Path,
) -> None:
    plain = run(tmp_path / "plain", average_last=2)
    summary = run(tmp_path / "run", average_last=2, batch_norm="recalibrate")
    layers = statistics_of(load_task(config_in(tmp_path)).new_model())
    statistics = {name for pair in layers.items() for name in pair}
    for file in (GLOBAL_MODEL, AVERAGED_MODEL):
        (before, told_before), (after, told) = (
            read_model(tmp_path / name / file) for name in ("plain", "run")
        )
        differ = {name for name in before if before[name].tobytes() != after[name].tobytes()}
        assert differ == statistics
        assert told == {**told_before, "batch-norm-statistics": "recalibrated"}
    # The history is of the models that the rounds gave; the summary, of what is saved.
    keys = ("evaluation", "sent_bytes", "relative_change")
    lines = [read_history(tmp_path / name) for name in ("plain", "run")]
    assert [[line[k] for k in keys] for line in lines[0]] == [
        [line[k] for k in keys] for line in lines[1]
    ]
    told = summary["recalibration"]
    assert summary["final"] == told["evaluation"] != plain["final"]
    result = evaluate_run(tmp_path / "run", "", "", best=False)
    assert result["accuracy"] == summary["final"]["test-accuracy"]
    assert told["participants"] == {"site-0": 54, "site-1": 54}
    spent = [told, summary["averaged"]["recalibration"]]
    for key, bytes_key in (("sent-bytes", "sent_bytes"), ("received-bytes", "received_bytes")):
        assert summary[key] == plain[key] + sum(one[bytes_key] for one in spent)
    assert len(read_events(tmp_path / "run", "recalibrated")) == 2


def test_the_best_model_is_the_recalibrated_one_only_if_it_scores_higher(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", batch_norm="recalibrate")
    best = max(line["evaluation"]["validation-accuracy"] for line in read_history(tmp_path / "run"))
    _, about = read_model(tmp_path / "run" / BEST_MODEL)
    better = summary["final"]["validation-accuracy"] > best
    assert ("batch-norm-statistics" in about) == better
    assert better  # after six steps, averaged statistics are still those of the beginning


def test_a_finished_run_that_goes_on_asks_no_site_for_statistics_again(tmp_path: Path) -> None:
    summary = run(tmp_path / "run", batch_norm="recalibrate")
    model = (tmp_path / "run" / GLOBAL_MODEL).read_bytes()
    watched = Watched()
    again = run(tmp_path / "run", watched, batch_norm="recalibrate", resume=True)
    assert STATISTICS not in {request.metadata.message_type for request, _ in watched.seen}
    assert (tmp_path / "run" / GLOBAL_MODEL).read_bytes() == model
    assert again["recalibration"] == summary["recalibration"]


def test_a_run_with_more_rounds_goes_on_as_if_it_had_not_been_recalibrated(
    tmp_path: Path,
) -> None:
    run(tmp_path / "whole", batch_norm="recalibrate", num_rounds=3)
    run(tmp_path / "cut", batch_norm="recalibrate", num_rounds=2)
    run(tmp_path / "cut", batch_norm="recalibrate", num_rounds=3, resume=True)
    files = [(tmp_path / name / GLOBAL_MODEL).read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_local_statistics_never_leave_a_site(tmp_path: Path) -> None:
    watched = Watched()
    summary = run(
        tmp_path / "run", watched, batch_norm="local", site_evaluation=True, average_last=1
    )
    model = load_task(config_in(tmp_path)).new_model()
    kept = buffers_of(model)
    assert kept
    answered = 0
    for request, reply in watched.seen:
        for record in reply.content.array_records.values():
            answered += 1
            came = record_to_arrays(request.content.array_records[ARRAYS])
            sent = record_to_arrays(record)
            assert {n for n in sent if sent[n].tobytes() == came[n].tobytes()} == kept
    assert answered == 4  # two sites, two rounds
    arrays, about = read_model(tmp_path / "run" / GLOBAL_MODEL)
    initial = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert all(arrays[name].tobytes() == initial[name].tobytes() for name in kept)
    assert about["batch-norm-statistics"] == "initial"
    assert summary["final"]["test-accuracy"] > 0.3  # chance is 0.1, and initial statistics


def test_local_weights_are_those_of_averaging(tmp_path: Path) -> None:
    run(tmp_path / "average")
    run(tmp_path / "local", batch_norm="local")
    models = [read_model(tmp_path / name / GLOBAL_MODEL)[0] for name in ("average", "local")]
    kept = buffers_of(load_task(config_in(tmp_path)).new_model())
    for name in models[0]:
        assert (models[0][name].tobytes() == models[1][name].tobytes()) == (name not in kept)


def test_the_coordinator_of_a_simulation_evaluates_with_every_sites_statistics(
    tmp_path: Path,
) -> None:
    summary = run(tmp_path / "run", batch_norm="local")
    config = config_in(tmp_path)
    seen = []
    for site in range(2):
        task = load_task(config)
        model, _ = load_model(tmp_path / "run" / GLOBAL_MODEL)
        own = task.site_data(read_site_config({"partition-id": site, "num-partitions": 2}))
        dtype = task.settings.autocast_dtype
        recalibrate(
            model,
            job_of(Tensors.of(own.train), TrainSettings(batch_size=32), task.pipeline),
            task.device,
            dtype,
            1,
            f"site-{site}",
        )
        test = Tensors.of(task.dataset.test)
        seen.append(accuracy_of(evaluated(model, test, task.pipeline, dtype)))
    assert summary["final"]["test-accuracy"] == pytest.approx(np.mean(seen))


def test_a_model_without_statistics_is_evaluated_with_those_of_a_data_set(tmp_path: Path) -> None:
    run(tmp_path / "run", batch_norm="local")
    with pytest.raises(ConfigError, match="never left the sites") as caught:
        evaluate_run(tmp_path / "run", "", "", best=False)
    assert "--recalibrate" in caught.value.hint
    result = evaluate_run(tmp_path / "run", "", "", best=False, recalibrate_on="digits")
    assert result["accuracy"] > 0.3


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("policy", ["recalibrate", "local"])
def test_a_model_without_batch_norm_is_refused_before_anything_starts(
    tmp_path: Path, policy: str
) -> None:
    keys = ("--set", f"batch-norm={policy}", "--set", "num-rounds=1")
    result = run_small(*keys, "--output", tmp_path / "run")
    assert result.exit_code == 2
    assert "no BatchNorm layer" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("identity")
@pytest.mark.parametrize("policy", ["average", "local"])
def test_a_site_gives_no_statistics_to_a_run_that_has_not_said_so(
    tmp_path: Path, policy: str
) -> None:
    config = config_in(tmp_path, batch_norm=policy)
    arrays = arrays_to_record(model_arrays(load_task(config).new_model()))
    message = Message(
        statistics_content(arrays, "0123", 60.0), dst_node_id=5, message_type=STATISTICS
    )
    node = {"partition-id": 0, "num-partitions": 2}
    context = Context(22, 5, dict(node), RecordDict(), dict(config.to_flower()))
    reply = client_app.app(message, context)
    assert reply.has_error()
    assert "a site sends statistics only in a run that recalibrates" in (reply.error.reason or "")


@pytest.mark.usefixtures("identity")
@pytest.mark.parametrize("trained_before", [False, True])
def test_a_site_gives_the_same_bits_whether_or_not_it_has_trained(
    tmp_path: Path, trained_before: bool
) -> None:
    config = config_in(tmp_path, batch_norm="recalibrate")
    site = {"partition-id": 0, "num-partitions": 2}

    def client() -> SiteClient:
        task = load_task(config)
        data = task.site_data(read_site_config(site))
        job = task.job({"train": data.train})
        return SiteClient("a", job, task.settings, task.device)

    fresh, used = client(), client()
    initial = fresh.get_parameters({})
    if trained_before:
        used.fit(initial, dict(plan(lr_max=0.01, lr_min=0.01).to_config_record()))  # type: ignore[arg-type]
    one, other = fresh.statistics(initial)[0], used.statistics(initial)[0]
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_a_site_that_sends_no_statistics_is_named_and_left_out(tmp_path: Path) -> None:
    def spoil(request: Message, reply: Message) -> Message:
        if request.metadata.message_type == STATISTICS and reply.has_content():
            examples = reply.content.metric_records["metrics"]["num-examples"]
            if request.metadata.dst_node_id == spoiled[0]:
                reply.content.array_records[ARRAYS].clear()
            assert examples == 54
        elif request.metadata.dst_node_id not in spoiled:
            spoiled.append(request.metadata.dst_node_id)
        return reply

    spoiled: list[int] = []
    summary = run(tmp_path / "run", Watched(spoil), batch_norm="recalibrate", min_sites=1)
    told = summary["recalibration"]
    assert len(told["participants"]) == 1
    (reason,) = told["dropped"].values()
    assert "is missing" in reason
