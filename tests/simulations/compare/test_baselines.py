"""The yardsticks: on whose data they train, for how long, and from which model."""

import math
from itertools import chain
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mdc_flower.config import RunConfig, read_run_config, read_site_config
from mdc_flower.jobs.task import load_task
from mdc_flower.training.job import Pass
from simulations.compare.arm import PROTOCOLS, Protocol
from simulations.compare.baselines import train_ensemble, train_without_exchange
from simulations.results.outcome import Outcome
from strategies.common.errors import MdcError
from strategies.method.round_plan import CycleShape, RoundPlan
from tests.simulations import numbers


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """Forget what was noted before."""
    numbers.trained_on.clear()
    numbers.evaluated_on.clear()


def config(**keys: Any) -> RunConfig:
    values: dict[str, Any] = {
        "dataset": "tests.simulations.numbers:numbers",
        "model": "tests.simulations.numbers:recorder",
        "precision": "none",
        "num-sites": 3,
        "partition": "size-skew",
        "partition-size-ratio": 4.0,
        "validation-fraction": 0.25,
        "batch-size": 4,
        "epoch-budget": 3,
    }
    return read_run_config({**values, **{k.replace("_", "-"): v for k, v in keys.items()}})


def run(kind: str, **keys: Any) -> Outcome:
    if kind == "ensemble":
        return train_ensemble(config(**keys))
    return train_without_exchange(config(**keys), kind)


def pooled(protocol: Protocol, **keys: Any) -> Outcome:
    return train_without_exchange(config(**keys), "centralized", protocol)


def site_rows(site: int, **keys: Any) -> list[float]:
    node = read_site_config({"partition-id": site, "num-partitions": 3})
    rows: list[float] = load_task(config(**keys)).site_data(node).train.inputs[:, 0].tolist()
    return rows


@pytest.mark.parametrize("seed", [1, 2])
def test_centralized_trains_on_exactly_the_union_of_what_the_sites_train_on(seed: int) -> None:
    run("centralized", seed=seed)
    union = sorted(chain(*(site_rows(site, seed=seed) for site in range(3))))
    # 80 rows with weights 1, 2 and 4 end at 80/7 = 11.4, 240/7 = 34.3 and 80: sizes 11, 23, 46,
    # of which round(2.75) = 3, round(5.75) = 6 and round(11.5) = 12 are held out: 8, 17, 34.
    assert len(union) == 8 + 17 + 34
    assert sorted(set(chain(*numbers.trained_on))) == union


def test_one_site_trains_on_exactly_what_site_0_trains_on() -> None:
    run("one-site")
    assert sorted(set(chain(*numbers.trained_on))) == sorted(site_rows(0))
    assert len(site_rows(0)) == 8


@pytest.mark.parametrize(
    # Of 59 in batches of 4, the last has 3: 15 steps. Of 8: 2 steps.
    ("kind", "num_examples", "steps"),
    [("centralized", 59, 15), ("one-site", 8, 2)],
)
def test_every_epoch_passes_once_over_the_data(kind: str, num_examples: int, steps: int) -> None:
    run(kind)
    epochs = [numbers.trained_on[i : i + steps] for i in range(0, 3 * steps, steps)]
    assert len(numbers.trained_on) == 3 * steps
    for epoch in epochs:
        seen = list(chain(*epoch))
        assert len(seen) == len(set(seen)) == num_examples


@pytest.mark.parametrize("shape", ["cosine", "linear", "exponential"])
def test_the_learning_rate_makes_one_cycle_over_the_whole_budget(shape: CycleShape) -> None:
    rates: list[float] = []

    def record(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    handle = register_optimizer_step_pre_hook(record)
    run("one-site", lr_shape=shape, lr_max=0.5, lr_min_fraction=0.25)
    handle.remove()
    # Three epochs of 8 examples in batches of 4: six steps.
    cycle = RoundPlan(round=1, local_epochs=3, lr_max=0.5, lr_min=0.125, shape=shape, seed=1)
    assert rates == [cycle.lr_at(step / 5) for step in range(6)]


def test_the_order_of_the_examples_depends_on_the_seed() -> None:
    def order(seed: int) -> list[int]:
        """Return the order of the first epoch, as places among the examples trained on."""
        numbers.trained_on.clear()
        run("centralized", seed=seed)
        first = list(chain(*numbers.trained_on[:15]))
        return [sorted(first).index(row) for row in first]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_both_are_evaluated_on_all_validation_and_all_test_examples() -> None:
    task = load_task(config())
    task.new_model()  # whether it fits the data is found out once, on two examples
    held = task.coordinator_data(3)
    expected = {
        tuple(held.validation.inputs[:, 0].tolist()),
        tuple(held.test.inputs[:, 0].tolist()),
    }
    for kind in ("centralized", "one-site"):
        numbers.evaluated_on.clear()
        outcome = run(kind)
        assert {tuple(batch) for batch in numbers.evaluated_on} == expected
        assert len(numbers.evaluated_on) == 2 * len(outcome.points)


# Twenty points at most, evenly, and always one at the end.
@pytest.mark.parametrize(
    ("budget", "epochs"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (20, list(range(1, 21))),
        (24, list(range(2, 25, 2))),
        (41, [*range(3, 41, 3), 41]),
        (60, list(range(3, 61, 3))),
    ],
)
def test_the_curve_has_at_most_twenty_points_and_ends_with_the_budget(
    budget: int, epochs: list[int]
) -> None:
    outcome = run("one-site", epoch_budget=budget)
    assert [point.epochs for point in outcome.points] == epochs
    assert {point.round for point in outcome.points} == {0}


def test_nothing_is_exchanged_and_the_time_is_measured() -> None:
    final = run("centralized").final
    assert (final.exchanges, final.sent_bytes, final.received_bytes) == (0, 0, 0)
    assert math.isfinite(final.seconds)
    assert final.seconds > 0


def test_an_ensembles_loss_is_that_of_its_mean_probabilities(
    trained: list[tuple[str, list[float]]],
) -> None:
    # Even, which all are, has 0.9998766, 0.2689414 and 0.2689414: 0.5125865 in the mean.
    outcome = run("ensemble", dataset="tests.simulations.numbers:always_even")
    assert outcome.final.test["loss"] == pytest.approx(-math.log(0.5125865), abs=1e-5)


@pytest.mark.parametrize("kind", ["centralized", "one-site", "ensemble"])
def test_the_same_config_gives_the_same_curve_and_another_seed_another(kind: str) -> None:
    def curve(seed: int) -> list[tuple[float, float]]:
        keys = {"dataset": "digits", "model": "mlp", "max_train_examples": 200}
        outcome = run(kind, partition="iid", seed=seed, **keys)
        return [(point.validation["accuracy"], point.test["accuracy"]) for point in outcome.points]

    assert curve(1) == curve(1)
    assert curve(1) != curve(2)


def test_pooled_data_teach_more_than_one_sites_and_so_does_an_ensemble() -> None:
    keys: dict[str, Any] = {
        "dataset": "digits",
        "model": "mlp",
        "partition": "iid",
        "max_train_examples": 300,
        "epoch_budget": 10,
        "lr_shape": "cosine",
    }
    pooled, together, alone = (
        run(kind, **keys).final.test["accuracy"] for kind in ("centralized", "ensemble", "one-site")
    )
    assert pooled > 0.85
    assert min(pooled, together) > alone + 0.02


# The three yardsticks: 59 pooled examples, and 8, 17 and 34 at the sites, in batches of 4.


def test_in_equal_steps_each_batch_is_as_large_as_those_of_all_sites() -> None:
    outcome = pooled("equal-steps")
    # 59 = 4 * 12 + 11: five steps in each of three passes.
    assert [len(batch) for batch in numbers.trained_on] == [12, 12, 12, 12, 11] * 3
    assert [(point.epochs, point.steps) for point in outcome.points] == [(1, 5), (2, 10), (3, 15)]
    assert outcome.final.examples == 3 * 59


def test_in_equal_steps_every_step_is_an_exchange_of_the_model_with_each_site() -> None:
    # Two weights and two biases of four bytes, to and from three sites.
    final = pooled("equal-steps").final
    assert final.exchanges == 15
    assert final.sent_bytes == final.received_bytes == 15 * 3 * 4 * 4


def test_in_equal_time_there_are_as_many_steps_as_the_largest_site_takes() -> None:
    outcome = pooled("equal-time")
    # 34 = 8 * 4 + 2: nine steps a pass, 27 in all; the pooled data have 15 a pass.
    assert len(numbers.trained_on) == 27
    assert [(point.epochs, point.steps) for point in outcome.points] == [(1, 15), (1.8, 27)]
    assert outcome.final.examples == round(1.8 * 59)
    assert (outcome.final.exchanges, outcome.final.sent_bytes) == (0, 0)


def test_the_learning_rate_ends_its_cycle_within_a_pass_if_training_does() -> None:
    rates: list[float] = []

    def record(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        rates.append(optimizer.param_groups[0]["lr"])

    handle = register_optimizer_step_pre_hook(record)
    pooled("equal-time", lr_shape="linear", lr_max=0.5, lr_min_fraction=0.0)
    handle.remove()
    assert rates == pytest.approx([0.5 * (1 - step / 26) for step in range(27)])


@pytest.mark.parametrize("kind", ["centralized", "one-site", "ensemble"])
def test_time_and_work_are_those_of_the_steps_and_examples(kind: str) -> None:
    final = run(kind).final
    # The ensemble's sites train at the same time, so the largest takes the longest.
    time_, work = {"centralized": (45, 177), "one-site": (6, 24), "ensemble": (27, 177)}[kind]
    assert (final.steps, final.examples) == (time_, work)


STEPS: dict[str, Any] = {"epoch_budget": 0, "step_budget": 10, "local_steps": 5}


@pytest.mark.parametrize(
    ("protocol", "batches", "examples"),
    [("equal-passes", 30, 120), ("equal-steps", 10, 120), ("equal-time", 10, 40)],
)
def test_a_budget_in_steps_is_that_of_each_site(
    protocol: Protocol, batches: int, examples: int
) -> None:
    final = pooled(protocol, **STEPS).final
    assert (len(numbers.trained_on), final.steps, final.examples) == (batches, batches, examples)
    # Work is drawn over the steps of each site.
    assert final.epochs == pytest.approx(10 if examples == 120 else 10 / 3)


@pytest.mark.parametrize("kind", ["one-site", "ensemble"])
def test_sites_alone_take_the_steps_of_the_budget(kind: str) -> None:
    final = run(kind, **STEPS).final
    assert (final.epochs, final.steps) == (10, 10)
    assert final.examples == (40 if kind == "one-site" else 120)


def test_a_stream_is_trained_on_in_steps() -> None:
    keys = {"job": "tests.simulations.streams:endless", **STEPS}
    final = {name: pooled(name, **keys).final for name in PROTOCOLS["centralized"]}
    assert {name: (point.steps, point.epochs) for name, point in final.items()} == {
        "equal-passes": (30, 10),
        "equal-steps": (10, 10),
        "equal-time": (10, 10 / 3),
    }


def test_a_budget_of_no_epochs_is_refused_and_no_crash() -> None:
    # Rounds alone end a federated run; a yardstick has none to count.
    for kind in ("centralized", "ensemble"):
        with pytest.raises(MdcError, match="epoch-budget"):
            run(kind, epoch_budget=0, num_rounds=3)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[float]]]:
    """Let training give site-i the i-th of `LOGITS`; note the sites and their examples.

    It goes through as many batches as training does.
    """
    seen: list[tuple[str, list[float]]] = []

    def train(model: Any, job: Any, plan: RoundPlan, *others: Any) -> None:
        site, data = others[-1], job.splits["train"]
        seen.append((site, data.inputs[0 : len(data)][:, 0].tolist()))
        with torch.no_grad():
            model.layer.weight.zero_()
            model.layer.bias.copy_(torch.tensor(LOGITS[len(seen) - 1]))
        for _ in range(plan.local_steps // job.steps_per_epoch()):
            generator = torch.Generator().manual_seed(1)
            for _ in job.batches(Pass("train", torch.device("cpu"), generator)):
                pass

    monkeypatch.setattr("simulations.compare.baselines.train", train)
    return seen


LOGITS = [(9.0, 0.0), (0.0, 1.0), (0.0, 1.0)]


def test_an_ensembles_class_is_that_with_the_highest_mean_probability(
    trained: list[tuple[str, list[float]]],
) -> None:
    # Even has softmax 0.9999, 0.269 and 0.269: 0.513 in the mean, though two of three say odd.
    outcome = run("ensemble", dataset="tests.simulations.numbers:always_even")
    assert [(point.epochs, point.test["accuracy"]) for point in outcome.points] == [
        (1, 1),
        (2, 1),
        (3, 1),
    ]


def test_it_is_the_probabilities_that_are_averaged_and_not_the_outputs(
    trained: list[tuple[str, list[float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Even has softmax 0.9999, 0.119 and 0.119: 0.413 in the mean, though its outputs sum to 9
    # against 4.
    monkeypatch.setattr(f"{__name__}.LOGITS", [(9.0, 0.0), (0.0, 2.0), (0.0, 2.0)])
    outcome = run("ensemble", dataset="tests.simulations.numbers:always_even")
    assert {point.test["accuracy"] for point in outcome.points} == {0.0}


def test_an_ensemble_has_a_model_of_every_site_on_its_own_data_and_sends_each_once(
    trained: list[tuple[str, list[float]]],
) -> None:
    outcome = run("ensemble")
    assert trained == [(f"site-{site}", site_rows(site)) for site in range(3)]
    # Two weights and two biases of four bytes, from three sites.
    final = outcome.final
    assert (final.exchanges, final.sent_bytes, final.received_bytes) == (1, 0, 3 * 4 * 4)
    assert {point.exchanges for point in outcome.points} == {1}
