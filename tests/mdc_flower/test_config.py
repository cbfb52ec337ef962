"""The run config and the node config: every key, every refusal, and what becomes of them."""

import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import ValidationError

import mdc_flower
from mdc_flower.config import RunConfig, SiteConfig, read_run_config, read_site_config
from mdc_flower.data.readers.options import AudioReading, Columns, HubReading, Reading, TextReading
from strategies.aggregation.averaging import by_examples, uniform
from strategies.aggregation.outer_optimizers import Adam, Average, Momentum, OuterOptimizer
from strategies.common.errors import ConfigError
from strategies.exchange.deadline import Deadline
from strategies.exchange.metrics import TRAIN_METRICS
from strategies.method.local_work import (
    Fixed,
    Horizon,
    IncreasedLocalEpochs,
    QuadraticSynchronization,
    Spread,
)
from strategies.method.recipes import LrSchedule, Recipe

ROOT = Path(__file__).parents[2]

OTHER_VALUES: dict[str, Any] = {
    "dataset": "cifar10",
    "data-root": "/data",
    "contract": "contract:{}",
    "image-size": 64,
    "audio-sample-rate": 8000,
    "audio-mels": 40,
    "audio-seconds": 2.5,
    "text-length": 20,
    "vocabulary": "/words.txt",
    "vocabulary-size": 100,
    "vocabulary-min-count": 5,
    "input-column": "review",
    "label-column": "verdict",
    "group-column": "author",
    "hf-subset": "de",
    "hf-test-split": "validation",
    "max-train-examples": 500,
    "max-test-examples": 100,
    "validation-fraction": 0.25,
    "num-sites": 3,
    "partition": "shards",
    "partition-alpha": 1.5,
    "partition-shards": 4,
    "partition-size-ratio": 3.0,
    "job": "my_lab:job",
    "model": "mlp",
    "initial-model": "/weights.safetensors",
    "exchange": "trainable, stem.*",
    "keep": "",  # other values exclude a batch-norm, which has a test of its own
    "optimizer": "adamw",
    "momentum": 0.5,
    "nesterov": False,
    "optimizer-state": "keep",
    "weight-decay": 0.01,
    "batch-size": 64,
    "micro-batch-size": 16,
    "label-smoothing": 0.1,
    "clip-norm": 1.0,
    "augment": "crop-flip",
    "precision": "bf16",
    "channels-last": False,
    "compile": True,
    "device": "cpu",
    "threads-per-site": 2,
    "ranks-per-site": 2,
    "lr-max": 0.2,
    "lr-min-fraction": 0.5,
    "lr-shape": "cosine",
    "lr-max-decay": 0.9,
    "lr-peak": "cosine",
    "epochs": "fixed",
    "local-epochs": 2,
    "first-local-epochs": 0.2,
    "ile-epsilon": 0.5,
    "ile-max-epochs": 8,
    "qsr-alpha": 0.5,
    "local-steps": 0,  # other values need other keys, and have tests of their own
    "ile-max-steps": 0,
    "proximal-mu": 0.1,
    "num-rounds": 7,
    "epoch-budget": 10,
    "step-budget": 0,
    "weighting": "uniform",
    "max-site-weight": 0.5,
    "outer-optimizer": "momentum",
    "outer-lr": 1.0,  # other values need an outer optimizer, which have a test of their own
    "outer-momentum": 0.5,
    "outer-nesterov": True,
    "outer-plain-last": 1,
    "outer-beta1": 0.5,
    "outer-beta2": 0.5,
    "outer-epsilon": 0.5,
    "average-last": 3,
    "batch-norm": "recalibrate",
    "seed": 0,
    "site-evaluation": True,
    "max-relative-update": 0.5,
    "min-sites": 2,
    "max-round-retries": 0,
    "wait-for-sites-s": 5.0,
    "quorum-patience-s": 5.0,
    "round-deadline-s": 60.0,
    "deadline-factor": 1.5,
    "longest-round-s": 600.0,
    "output-dir": "/runs/{run-id}",
    "resume": True,
    "max-restarts": 0,
    "keep-checkpoints": 5,
    "keep-updates": True,
    "track": "tensorboard",
}


def refusal(home: Callable[[dict[str, Any]], object], **values: Any) -> ConfigError:
    """Return the error with which a home of config refuses these values."""
    keys = {key.replace("_", "-"): value for key, value in values.items()}
    with pytest.raises(ConfigError) as caught:
        home(keys)
    return caught.value


def test_every_key_has_another_value_here() -> None:
    assert list(OTHER_VALUES) == RunConfig.keys()


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_a_key_sets_its_field_and_no_other(key: str) -> None:
    defaults, value = RunConfig().to_flower(), OTHER_VALUES[key]
    config = read_run_config({key: value})
    assert getattr(config, key.replace("-", "_")) == value
    assert config.to_flower() == {**defaults, key: value}


def test_an_outer_learning_rate_is_read_beside_an_outer_optimizer() -> None:
    assert read_run_config({"outer-lr": 0.5, "outer-optimizer": "adam"}).outer_lr == 0.5


STEPS = {"local-steps": 100, "ile-max-steps": 400, "num-rounds": 3}


def test_keys_in_steps_are_read_beside_each_other() -> None:
    config = read_run_config({**STEPS, "step-budget": 5000})
    assert (config.local_steps, config.ile_max_steps, config.step_budget) == (100, 400, 5000)
    assert (config.unit, config.budget) == ("steps", 5000)
    assert (RunConfig().unit, RunConfig().budget) == ("epochs", 60)
    assert read_run_config({**STEPS, "num-rounds": 3}).budget == 0, "60 epochs are not a budget"


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [
        ("lr-mx", "lr-max"),
        ("lr_max", "lr-max"),
        ("epoch-bugdet", "epoch-budget"),
        ("localepochs", "local-epochs"),
        ("Dataset", "dataset"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(unknown: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_run_config({unknown: 1})
    assert caught.value.where == f"run config, {unknown}"
    assert caught.value.hint == f"Did you mean {nearest!r}?"


def test_a_key_that_is_near_to_none_is_refused_with_all_of_them() -> None:
    with pytest.raises(ConfigError) as caught:
        read_run_config({"xyzzy": 1})
    assert caught.value.expected == "one of: " + ", ".join(RunConfig.keys())


NOT_COUNTS = [-1, 1.5, "many"]
NOT_FINITE = [math.nan, math.inf]

BAD_VALUES: dict[str, list[Any]] = {
    "dataset": [5],
    "image-size": NOT_COUNTS,
    "audio-sample-rate": [999, *NOT_COUNTS],
    "audio-mels": [0, *NOT_COUNTS],
    "audio-seconds": [0.0, -1.0, *NOT_FINITE],
    "text-length": [0, *NOT_COUNTS],
    "vocabulary": [5],
    "vocabulary-size": NOT_COUNTS,
    "vocabulary-min-count": [0, *NOT_COUNTS],
    "input-column": ["", 5],
    "label-column": [""],
    "hf-test-split": ["", 5],
    "max-train-examples": NOT_COUNTS,
    "max-test-examples": NOT_COUNTS,
    "validation-fraction": [0.0, 1.0, *NOT_FINITE],
    "num-sites": NOT_COUNTS,
    "partition": ["random", ""],
    "partition-alpha": [0.0, -1.0, *NOT_FINITE],
    "partition-shards": [0, *NOT_COUNTS],
    "partition-size-ratio": [0.5, *NOT_FINITE],
    "exchange": ["", " , "],
    "keep": [" , "],
    "optimizer": ["lbfgs"],
    "momentum": [-0.1, 1.0, *NOT_FINITE],
    "nesterov": ["perhaps"],
    "optimizer-state": ["", "kept"],
    "weight-decay": [-1e-9, *NOT_FINITE],
    "batch-size": [0, *NOT_COUNTS],
    "micro-batch-size": NOT_COUNTS,
    "label-smoothing": [-0.1, 1.0, *NOT_FINITE],
    "clip-norm": [-1.0, *NOT_FINITE],
    "augment": ["rotate"],
    "precision": ["fp8"],
    "threads-per-site": [0, *NOT_COUNTS],
    "ranks-per-site": [0, *NOT_COUNTS],
    "lr-max": [0.0, -0.1, *NOT_FINITE],
    "lr-min-fraction": [-0.1, 1.1, *NOT_FINITE],
    "lr-shape": ["zigzag"],
    "lr-max-decay": [0.0, 1.1, *NOT_FINITE],
    "lr-peak": ["returning"],
    "epochs": ["many"],
    "local-epochs": [0, *NOT_COUNTS],
    "first-local-epochs": [0.0, -0.1, *NOT_FINITE],
    "ile-epsilon": [-0.1, *NOT_FINITE],
    "ile-max-epochs": [0, *NOT_COUNTS],
    "qsr-alpha": [0.0, -0.1, *NOT_FINITE],
    "local-steps": NOT_COUNTS,
    "ile-max-steps": NOT_COUNTS,
    "proximal-mu": [-0.1, *NOT_FINITE],
    "num-rounds": NOT_COUNTS,
    "epoch-budget": NOT_COUNTS,
    "step-budget": NOT_COUNTS,
    "weighting": ["random"],
    "max-site-weight": [0.0, 1.1, *NOT_FINITE],
    "outer-optimizer": ["rmsprop"],
    "outer-lr": [-0.1, *NOT_FINITE],
    "outer-momentum": [-0.1, 1.0, "much", *NOT_FINITE],
    "outer-nesterov": ["perhaps"],
    "outer-plain-last": NOT_COUNTS,
    "outer-beta1": [-0.1, 1.0, *NOT_FINITE],
    "outer-beta2": [-0.1, 1.0, *NOT_FINITE],
    "outer-epsilon": [0.0, -0.1, *NOT_FINITE],
    "average-last": NOT_COUNTS,
    "seed": [2**63, *NOT_COUNTS],
    "max-relative-update": [-0.1, "much", *NOT_FINITE],
    "min-sites": NOT_COUNTS,
    "max-round-retries": NOT_COUNTS,
    "wait-for-sites-s": [0.0, -1.0, *NOT_FINITE],
    "quorum-patience-s": [0.0, -1.0, *NOT_FINITE],
    "round-deadline-s": [-1.0, *NOT_FINITE],
    "deadline-factor": [0.9, *NOT_FINITE],
    "longest-round-s": [0.0, -1.0, *NOT_FINITE],
    "resume": ["perhaps"],
    "max-restarts": NOT_COUNTS,
    "keep-checkpoints": [0, *NOT_COUNTS],
    "keep-updates": ["perhaps"],
    "track": ["aim", "mlflow,auto"],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in BAD_VALUES.items() for value in values]
)
def test_a_bad_value_is_refused_with_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        read_run_config({key: value})
    assert caught.value.where == f"run config, {key}"
    assert repr(caught.value.got) == repr(value)  # by repr: NaN is not equal to itself
    assert f"got {value!r}" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("momentum", 0.999),
        ("label-smoothing", 0.0),
        ("lr-min-fraction", 1.0),
        ("lr-max-decay", 1.0),
        ("partition-size-ratio", 1.0),
        ("ile-epsilon", 0.0),
        ("clip-norm", 0.0),
        ("batch-size", 1),
        ("local-epochs", 1),
        ("round-deadline-s", 0.0),
        ("deadline-factor", 1.0),
        ("keep-checkpoints", 1),
        ("seed", 2**63 - 1),
    ],
)
def test_the_ends_of_a_range_belong_to_it(key: str, value: float) -> None:
    assert read_run_config({key: value}).to_flower()[key] == value


def test_a_refused_choice_is_answered_with_the_choices() -> None:
    message = str(refusal(read_run_config, partition="random"))
    for choice in ("iid", "dirichlet", "shards", "size-skew", "natural-id"):
        assert choice in message


QSR = {"epochs": "qsr", "lr-shape": "global-cosine", "epoch-budget": 30}
GROWING = {"epochs": "growing", "num-rounds": 20, "epoch-budget": 4}

# Each rule with the keys that break it, and the least change that keeps it.
RULES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a run ends": (
        {"num-rounds": 0, "epoch-budget": 0},
        {"num-rounds": 1, "local-epochs": 1},
        "num-rounds or epoch-budget must be set",
    ),
    "spread needs rounds": (
        {"epochs": "spread", "num-rounds": 0, "epoch-budget": 6},
        {"num-rounds": 6},
        "needs both num-rounds and epoch-budget",
    ),
    "spread needs a budget": (
        {"epochs": "spread", "num-rounds": 6, "epoch-budget": 0},
        {"epoch-budget": 6},
        "needs both num-rounds and epoch-budget",
    ),
    "spread gives each round an epoch": (
        {"epochs": "spread", "num-rounds": 7, "epoch-budget": 6},
        {"epoch-budget": 7},
        "epoch-budget 6 is below num-rounds 7",
    ),
    "growing rounds know their number": (
        GROWING | {"num-rounds": 0},
        {"num-rounds": 20},
        "epochs = 'growing' needs both num-rounds and epoch-budget",
    ),
    "growing rounds know their end": (
        GROWING | {"epoch-budget": 0, "local-steps": 2},
        {"step-budget": 40},
        "epochs = 'growing' needs both num-rounds and step-budget",
    ),
    "growing rounds do not shrink": (
        GROWING | {"first-local-epochs": 0.21},
        {"first-local-epochs": 0.2},
        "needs num-rounds times first-local-epochs of at most epoch-budget",
    ),
    "growing rounds in steps do not shrink": (
        GROWING | {"epoch-budget": 0, "local-steps": 3, "step-budget": 40},
        {"local-steps": 2},
        "needs num-rounds times local-steps of at most step-budget",
    ),
    "growing rounds in steps begin with steps": (
        GROWING
        | {"epoch-budget": 0, "local-steps": 2, "step-budget": 40, "first-local-epochs": 0.2},
        {"first-local-epochs": 0.1},
        "first-local-epochs 0.2 counts epochs, but the run counts steps: leave it out; local-steps",
    ),
    "peaks that fall know the end": (
        {"lr-peak": "linear", "num-rounds": 3, "epoch-budget": 0},
        {"epochs": "fixed"},
        "lr-peak 'linear' with epochs = 'ile' needs epoch-budget",
    ),
    "a rate falls over the run once": (
        {"lr-peak": "cosine", "lr-shape": "global-linear"},
        {"lr-peak": "constant"},
        "lr-shape 'global-linear' falls over the whole run already",
    ),
    "fedexp has no learning rate": (
        {"outer-optimizer": "fedexp", "outer-lr": 2.0},
        {"outer-lr": 1.0},
        "outer-optimizer 'fedexp' does not use outer-lr",
    ),
    "ile does not know its last rounds": (
        {"outer-plain-last": 2},
        {"outer-plain-last": 1},
        "outer-plain-last above 1 needs another rule than epochs = 'ile'",
    ),
    "a run in steps ends": (
        {"local-steps": 10, "epochs": "fixed"},
        {"step-budget": 100},
        "num-rounds or step-budget must be set",
    ),
    "a run has one unit": (
        {"local-steps": 10, "epochs": "fixed", "num-rounds": 3, "epoch-budget": 6},
        {"epoch-budget": 0},
        "local-steps counts steps, but epoch-budget 6 counts epochs",
    ),
    "a run has one budget": (
        {"step-budget": 10, "epochs": "spread", "num-rounds": 3, "epoch-budget": 6},
        {"epoch-budget": 0},
        "step-budget counts steps, but epoch-budget 6 counts epochs",
    ),
    "a budget in steps is no length of a round": (
        {"step-budget": 100},
        {"local-steps": 10},
        "step-budget with epochs = 'ile' needs local-steps",
    ),
    "steps do not double for ever": (
        {"local-steps": 10, "num-rounds": 3},
        {"ile-max-steps": 80},
        "it needs ile-max-steps or step-budget; use epochs = 'fixed'",
    ),
    "steps do not double for ever without a budget": (
        {"local-steps": 10, "num-rounds": 3},
        {"step-budget": 80},
        "it needs ile-max-steps or step-budget; use epochs = 'fixed'",
    ),
    "a maximum in steps is of steps": (
        {"ile-max-steps": 80},
        {"local-steps": 10, "num-rounds": 3},
        "ile-max-steps needs local-steps",
    ),
    "spread needs a budget in the run's unit": (
        {"local-steps": 10, "epochs": "spread", "num-rounds": 6},
        {"step-budget": 6},
        "needs both num-rounds and step-budget",
    ),
    "spread gives each round a step": (
        {"epochs": "spread", "num-rounds": 7, "step-budget": 6},
        {"step-budget": 7},
        "step-budget 6 is below num-rounds 7, but each round needs at least one step",
    ),
    "a global cosine in steps knows its end": (
        {"lr-shape": "global-cosine", "local-steps": 5, "ile-max-steps": 9, "num-rounds": 3},
        {"step-budget": 100},
        "'global-cosine' with epochs = 'ile' needs step-budget",
    ),
    "qsr in steps knows its end": (
        {**QSR, "epoch-budget": 0, "num-rounds": 3, "local-steps": 10},
        {"step-budget": 100},
        "epochs = 'qsr' needs step-budget",
    ),
    "an exponential does not reach zero": (
        {"lr-shape": "exponential", "lr-min-fraction": 0.0},
        {"lr-shape": "cosine"},
        "'exponential' needs lr-min-fraction above 0",
    ),
    "a global cosine knows its end": (
        {"lr-shape": "global-cosine", "epochs": "ile", "num-rounds": 3, "epoch-budget": 0},
        {"epochs": "fixed"},
        "'global-cosine' with epochs = 'ile' needs epoch-budget",
    ),
    "qsr knows its end": (
        QSR | {"epoch-budget": 0, "num-rounds": 3},
        {"epoch-budget": 30},
        "epochs = 'qsr' needs epoch-budget",
    ),
    "qsr follows a cosine over the run": (
        QSR | {"lr-shape": "cosine"},
        {"lr-shape": "global-cosine"},
        "epochs = 'qsr' needs epoch-budget, lr-shape 'global-cosine'",
    ),
    "qsr follows one cosine": (
        QSR | {"lr-max-decay": 0.9},
        {"lr-max-decay": 1.0},
        "and lr-max-decay 1",
    ),
    "a quorum is of the sites there are": (
        {"num-sites": 3, "min-sites": 4},
        {"min-sites": 3},
        "min-sites 4 is above num-sites 3",
    ),
    "nesterov needs momentum": (
        {"nesterov": True, "optimizer": "sgd", "momentum": 0.0},
        {"optimizer": "adamw"},
        "nesterov needs momentum above 0",
    ),
    "an average has no learning rate": (
        {"outer-optimizer": "average", "outer-lr": 0.7},
        {"outer-optimizer": "momentum"},
        "outer-optimizer 'average' does not use outer-lr",
    ),
    "outer nesterov needs momentum, too": (
        {"outer-optimizer": "momentum", "outer-nesterov": True, "outer-momentum": 0.0},
        {"outer-momentum": 0.1},
        "outer-nesterov needs outer-momentum above 0",
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_keys_that_do_not_fit_together_are_refused(rule: str) -> None:
    breaks, mends, named = RULES[rule]
    with pytest.raises(ConfigError, match=re.escape(named)) as caught:
        read_run_config(breaks)
    assert caught.value.where == "run config"
    read_run_config(breaks | mends)


def test_plain_sgd_without_momentum_is_allowed() -> None:
    assert not read_run_config({"momentum": 0.0, "nesterov": False}).nesterov


@pytest.mark.parametrize(
    ("min_sites", "num_sites", "quorum"),
    [(0, 1, 1), (0, 2, 2), (0, 3, 2), (0, 4, 3), (0, 5, 3), (1, 5, 1), (5, 5, 5)],
)
def test_a_quorum_is_what_is_set_or_more_than_half_of_the_sites(
    min_sites: int, num_sites: int, quorum: int
) -> None:
    assert read_run_config({"min-sites": min_sites}).quorum(num_sites) == quorum


def test_each_key_of_the_deadline_reaches_it() -> None:
    values = {"round-deadline-s": 5, "deadline-factor": 2, "longest-round-s": 700}
    assert read_run_config(values).deadline() == Deadline(5.0, 2.0, 700.0)


def test_each_key_of_reading_reaches_it() -> None:
    assert read_run_config(OTHER_VALUES | {"num-sites": 0}).reading() == Reading(
        64,
        AudioReading(8000, 40, 2.5),
        TextReading(20, "/words.txt", 100, 5),
        Columns("review", "verdict", "author"),
        HubReading("de", "validation"),
    )
    assert RunConfig().reading() == Reading()


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().seed = 2


@pytest.mark.parametrize("values", [{}, OTHER_VALUES, STEPS])
def test_a_config_comes_back_from_flower_and_from_its_file_unchanged(
    values: dict[str, Any],
) -> None:
    config = read_run_config(values)
    flat = config.to_flower()
    assert list(flat) == RunConfig.keys()
    assert {type(value) for value in flat.values()} <= {bool, int, float, str}
    assert read_run_config(flat) == config
    assert read_run_config(tomllib.loads(tomli_w.dumps(flat))) == config


def test_a_whole_number_is_kept_as_the_float_that_its_key_takes() -> None:
    value = read_run_config({"lr-max": 1}).to_flower()["lr-max"]
    assert (type(value), value) == (float, 1.0)


SCHEDULE = {"lr-max": 0.4, "lr-min-fraction": 0.5, "lr-shape": "triangular", "lr-max-decay": 0.9}
ILE = {"epochs": "ile", "local-epochs": 2, "ile-epsilon": 0.125, "ile-max-epochs": 16}
PIECE = LrSchedule(0.4, 0.5, "triangular", 0.9)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {**ILE, "num-rounds": 0, "epoch-budget": 30, "weighting": "examples"},
            Recipe(
                PIECE,
                IncreasedLocalEpochs(2, 0.125, 16),
                Horizon(None, 30),
                unit="epochs",
                weighting=by_examples,
                proximal_mu=0.0,
            ),
        ),
        (
            {**ILE, "num-rounds": 9, "epoch-budget": 30, "weighting": "uniform"},
            Recipe(PIECE, IncreasedLocalEpochs(2, 0.125, 16), Horizon(9, 30), weighting=uniform),
        ),
        (
            {"epochs": "fixed", "local-epochs": 3, "num-rounds": 4, "epoch-budget": 0},
            Recipe(PIECE, Fixed(3), Horizon(4, None)),
        ),
        (
            {"epochs": "spread", "num-rounds": 4, "epoch-budget": 10, "proximal-mu": 0.75},
            Recipe(PIECE, Spread(10, 4), Horizon(4, 10), proximal_mu=0.75),
        ),
        (
            {"epochs": "fixed", "local-steps": 100, "local-epochs": 5, "num-rounds": 4},
            Recipe(PIECE, Fixed(100), Horizon(4, None), unit="steps"),
        ),
        (
            {**ILE, **STEPS, "step-budget": 900},
            Recipe(PIECE, IncreasedLocalEpochs(100, 0.125, 400), Horizon(3, 900), unit="steps"),
        ),
        (
            {**ILE, "local-steps": 7, "step-budget": 900},
            Recipe(PIECE, IncreasedLocalEpochs(7, 0.125, None), Horizon(None, 900), unit="steps"),
        ),
        (
            {"epochs": "spread", "num-rounds": 4, "step-budget": 1000},
            Recipe(PIECE, Spread(1000, 4), Horizon(4, 1000), unit="steps"),
        ),
    ],
    ids=[
        "ile",
        "ile-to-rounds",
        "fixed",
        "spread",
        "steps",
        "ile-in-steps",
        "ile-to-budget",
        "spread-in-steps",
    ],
)
def test_each_key_reaches_its_piece_of_the_recipe(values: dict[str, Any], expected: Recipe) -> None:
    assert read_run_config({**SCHEDULE, **values}).recipe() == expected


def test_each_key_reaches_the_quadratic_synchronization_rule() -> None:
    values = {**QSR, "local-epochs": 2, "qsr-alpha": 0.3, "lr-max": 0.4, "lr-min-fraction": 0.5}
    assert read_run_config(values).recipe() == Recipe(
        LrSchedule(0.4, 0.5, "global-cosine"),
        QuadraticSynchronization(2, 0.3, lr_max=0.4, lr_min=0.2, budget=30),
        Horizon(None, 30),
    )
    in_steps = values | {"epoch-budget": 0, "step-budget": 900, "local-steps": 50}
    recipe = read_run_config(in_steps).recipe()
    assert recipe.controller == QuadraticSynchronization(50, 0.3, 0.4, 0.2, budget=900)
    assert (recipe.horizon, recipe.unit) == (Horizon(None, 900), "steps")


OUTER = {
    "outer-lr": 0.5,
    "outer-momentum": 0.25,
    "outer-nesterov": True,
    "outer-beta1": 0.5,
    "outer-beta2": 0.75,
    "outer-epsilon": 0.125,
}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Average()),
        (OUTER | {"outer-optimizer": "momentum"}, Momentum(0.5, 0.25, nesterov=True)),
        (OUTER | {"outer-optimizer": "adam"}, Adam(0.5, 0.5, 0.75, 0.125)),
        ({"outer-optimizer": "momentum"}, Momentum(1.0, 0.9)),
        ({"outer-optimizer": "adam"}, Adam(0.01)),
        ({"outer-optimizer": "adam", "outer-lr": 1.0}, Adam(1.0)),
    ],
)
def test_each_key_reaches_the_outer_optimizer(
    values: dict[str, Any], expected: OuterOptimizer
) -> None:
    assert read_run_config(values).recipe().outer == expected


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def typed(values: dict[str, Any]) -> list[tuple[str, type, Any]]:
    return [(key, type(value), value) for key, value in values.items()]


def test_flowers_table_has_every_key_with_its_default_in_order() -> None:
    table = pyproject()["tool"]["flwr"]["app"]["config"]
    assert typed(table) == typed(RunConfig().to_flower())


def test_the_version_is_the_projects() -> None:
    assert mdc_flower.__version__ == pyproject()["project"]["version"]


def documented(heading: str) -> list[tuple[str, Any]]:
    """Return keys and defaults of the table under a heading of the configuration page."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| `(.*?)` \|", section, re.MULTILINE)
    return [(key, tomllib.loads(f"value = {value}")["value"]) for key, value in rows]


def test_the_documentation_has_every_key_with_its_default_in_order() -> None:
    assert documented("Run config") == list(RunConfig().to_flower().items())
    # A node config is nothing without a name, so its defaults are read off one that has it.
    defaults = SiteConfig.read({"site": "north"}, "node config").to_flower() | {"site": ""}
    assert documented("Node config") == list(defaults.items())


@pytest.mark.parametrize(
    ("values", "name", "simulated"),
    [
        ({"site": "north"}, "north", False),
        (
            {"site": "north", "data": "my_lab:load", "data-root": "/d", "device": "cpu"},
            "north",
            False,
        ),
        ({"partition-id": 0, "num-partitions": 1}, "site-0", True),
        ({"partition-id": 11, "num-partitions": 12}, "site-11", True),
        ({"site": "north", "partition-id": 2, "num-partitions": 3}, "north", False),
    ],
)
def test_a_site_is_called_by_its_name_or_by_its_partition(
    values: dict[str, Any], name: str, simulated: bool
) -> None:
    site = read_site_config(values)
    assert site.name == name
    assert site.is_simulated is simulated
    assert read_site_config(site.to_flower()) == site


@pytest.mark.parametrize(
    ("values", "where", "named"),
    [
        ({}, "node config", "a site needs a name: --node-config 'site=\"NAME\"'"),
        ({"data": "digits"}, "node config", "a site needs a name"),
        (
            {"partition-id": 3, "num-partitions": 3},
            "node config",
            "partition-id 3 is not below num-partitions 3",
        ),
        ({"partition-id": 0}, "node config", "partition-id 0 is not below num-partitions 0"),
        ({"site": "north", "partition-id": -2}, "node config, partition-id", "got -2"),
        ({"site": "north", "num-partitions": -1}, "node config, num-partitions", "got -1"),
        ({"site": "north", "min-examples": -1}, "node config, min-examples", "got -1"),
        (
            {"site": "north", "metrics": "train-loss, patients"},
            "node config",
            "metrics: there is no metric 'patients'; a classification has num-examples, ",
        ),
        ({"site": 7}, "node config, site", "got 7"),
        ({"site": "north", "nodes": 0}, "node config, nodes", "got 0"),
        (
            {"site": "north", "command": "train.sh", "ranks": 2},
            "node config",
            "ranks and command exclude each other",
        ),
        ({"site": "north", "rendezvous": "gpu-1"}, "node config, rendezvous", "got 'gpu-1'"),
        ({"sight": "north"}, "node config, sight", "Did you mean 'site'?"),
        ({"site": "north", "lr-max": 0.1}, "node config, lr-max", "no such key"),
    ],
)
def test_a_node_config_that_names_no_site_or_has_odd_values_is_refused(
    values: dict[str, Any], where: str, named: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_site_config(values)
    assert caught.value.where == where
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("metrics", "shared"),
    [
        ("", TRAIN_METRICS),
        (" , ", TRAIN_METRICS),
        ("num-examples", {"num-examples"}),
        ("train-loss", {"num-examples", "train-loss"}),
        (" train-loss ,num-steps,", {"num-examples", "train-loss", "num-steps"}),
        (",".join(TRAIN_METRICS), TRAIN_METRICS),
    ],
)
def test_a_site_shares_the_metrics_it_names_and_always_the_number_of_examples(
    metrics: str, shared: set[str]
) -> None:
    read = read_site_config({"site": "north", "metrics": metrics})
    assert {name for name in TRAIN_METRICS if read.shares(name)} == shared
