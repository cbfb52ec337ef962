"""Equal budgets: what may differ between arms, and what is refused before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from mdc_flower.config import RunConfig
from simulations.cli import COMPARISONS_DIR
from simulations.compare.arm import Arm, ArmTable, load_arm
from simulations.compare.comparison_file import Comparison, Tuning, read_comparison
from simulations.compare.equal_budgets import configs_of
from simulations.compare.runner import run_comparison
from strategies.common.errors import ConfigError

SHARED: dict[str, Any] = {"model": "mlp", "num-sites": 2, "epoch-budget": 4}
ARMS = ["centralized", "co-learning", "fedavg"]


def comparison_of(**changes: Any) -> Comparison:
    values = {"name": "x", "arms": ARMS, "num_seeds": 1, "config": SHARED, **changes}
    return Comparison(**values)


def arms_with(arm: str = "", **keys: Any) -> list[Arm]:
    """Return the three arms, one of them with more keys."""
    return [load_arm(name, Path(), keys if name == arm else {}) for name in ARMS]


@pytest.mark.parametrize("path", sorted(COMPARISONS_DIR.glob("*.toml")), ids=lambda path: path.stem)
def test_the_arms_of_every_shipped_comparison_have_equal_budgets(path: Path) -> None:
    comparison, arms = read_comparison(path)
    configs = configs_of(comparison, arms)
    assert list(configs) == [arm.key for arm in arms]
    num_candidates = {len(candidates) for candidates in configs.values()}
    assert num_candidates == {len(comparison.candidates(arms[0].key))}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch-budget", 8),
        ("num-sites", 3),
        ("batch-size", 64),
        ("model", "small-cnn"),
        ("dataset", "fashion-mnist"),
        ("max-train-examples", 100),
        ("partition", "dirichlet"),
        ("validation-fraction", 0.2),
        ("text-length", 32),
    ],
)
def test_an_arm_with_other_data_model_or_budget_is_refused(key: str, value: Any) -> None:
    default = {**RunConfig().to_flower(), **SHARED}[key]
    with pytest.raises(ConfigError, match="the same data, model and budget") as caught:
        configs_of(comparison_of(), arms_with("fedavg", **{key: value}))
    assert (caught.value.where, caught.value.got) == (f"fedavg, {key}", value)
    assert caught.value.expected == f"{default!r}, the value of the arm centralized"


@pytest.mark.parametrize("arm", ["centralized", "co-learning"])
def test_a_candidate_of_another_budget_is_refused(arm: str) -> None:
    tuning = Tuning(grid={"lr-max": [0.1, 0.2]}, arm_grid={arm: {"epoch-budget": [4, 8]}})
    with pytest.raises(ConfigError, match="the same data, model and budget") as caught:
        configs_of(comparison_of(tuning=tuning), arms_with())
    assert (caught.value.where, caught.value.got) == (f"{arm}, epoch-budget", 8)


def test_keys_of_the_method_may_differ() -> None:
    configs = configs_of(comparison_of(), arms_with("co-learning", **{"local-epochs": 2}))
    assert [configs[arm][0].local_epochs for arm in ARMS] == [5, 2, 5]


@pytest.mark.parametrize("key", ["local-steps", "step-budget", "num-rounds"])
@pytest.mark.parametrize("place", ["config", "arm", "grid"])
def test_steps_or_rounds_that_end_an_arm_are_refused(tmp_path: Path, key: str, place: str) -> None:
    # Co-learning would stop after 2 rounds, with 2 of the 4 passes.
    shared = {**SHARED, "num-rounds": 2, "local-epochs": 1} if key == "local-steps" else SHARED
    comparison = comparison_of(config=shared)
    arms = arms_with()
    if place == "config":
        comparison = comparison_of(config={**shared, key: 2})
    elif place == "arm":
        arms = arms_with("co-learning", **{key: 2})
    else:
        tuning = Tuning(grid={"lr-max": [0.1]}, arm_grid={"co-learning": {key: [2]}})
        comparison = comparison_of(config=shared, tuning=tuning)
    with pytest.raises(ConfigError, match="equal numbers of passes") as caught:
        run_comparison(comparison, arms, tmp_path / "out", workers=1)
    assert caught.value.got == 2
    assert not (tmp_path / "out").exists()


def test_a_quorum_of_some_of_the_sites_is_refused() -> None:
    configs_of(comparison_of(config={**SHARED, "min-sites": 2}), arms_with())
    with pytest.raises(ConfigError, match="every site must take part") as caught:
        configs_of(comparison_of(config={**SHARED, "min-sites": 1}), arms_with())
    assert caught.value.where == "centralized, min-sites"


def test_rounds_of_another_arm_are_no_rounds_of_ones_own() -> None:
    assert configs_of(comparison_of(), arms_with())["fedavg"][0].epochs == "spread"


def test_a_budget_of_one_pass_can_be_checked() -> None:
    configs = configs_of(comparison_of(config={**SHARED, "epoch-budget": 1}), arms_with())
    assert configs["fedavg"][0].epoch_budget == 1


def test_what_an_arm_gets_wrong_names_the_arm() -> None:
    arms = [*arms_with(), Arm(key="mine", table=ArmTable(), values={"lr-max": -1.0})]
    with pytest.raises(ConfigError, match="lr-max") as caught:
        configs_of(comparison_of(), arms)
    assert caught.value.__notes__ == ["in the config of the arm mine"]


def test_tuning_seeds_are_not_reported_whoever_says_so(tmp_path: Path) -> None:
    tuning = Tuning(grid={"lr-max": [0.1, 0.2]})
    comparison = comparison_of(tuning=tuning, num_seeds=101)
    with pytest.raises(ConfigError, match="tuning seeds must not be reported seeds") as caught:
        run_comparison(comparison, arms_with(), tmp_path / "out", workers=1)
    assert (caught.value.where, caught.value.got) == ("tuning, first-seed", 101)
