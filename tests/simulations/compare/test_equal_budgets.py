"""Equal budgets: what may differ between arms, and what is refused before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from mdc_flower.config import RunConfig
from simulations.cli import COMPARISONS_DIR
from simulations.compare.arm import ARMS_DIR, Arm, ArmTable, load_arm
from simulations.compare.comparison_file import Comparison, Tuning, read_comparison
from simulations.compare.equal_budgets import configs_of
from simulations.compare.runner import run_comparison
from strategies.common.errors import ConfigError

SHARED: dict[str, Any] = {"model": "mlp", "num-sites": 2, "epoch-budget": 4}
ARMS = ["centralized", "co-learning", "fedavg"]
EPOCHS_ONLY = ["fedavg-each-epoch", "fedavg-global-cosine-each-epoch", "qsr"]


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


# Rounds


def with_rounds(rounds: int, **keys: Any) -> list[Arm]:
    values = {"num-rounds": rounds, **{k.replace("_", "-"): v for k, v in keys.items()}}
    return [load_arm("centralized", Path(), {}), Arm(key="mine", table=ArmTable(), values=values)]


@pytest.mark.parametrize(
    ("rounds", "keys"),
    [
        (3, {"epochs": "spread"}),
        (2, {"epochs": "fixed", "local_epochs": 2}),
        (2, {"epochs": "ile", "local_epochs": 3}),
    ],
    ids=["spread", "fixed", "ile"],
)
def test_a_number_of_rounds_that_uses_the_whole_budget_is_accepted(
    rounds: int, keys: dict[str, Any]
) -> None:
    (config,) = configs_of(comparison_of(), with_rounds(rounds, **keys))["mine"]
    assert config.num_rounds == rounds


@pytest.mark.parametrize("epochs", ["fixed", "ile"])
@pytest.mark.parametrize("place", ["arm", "grid"])
def test_a_number_of_rounds_that_may_end_before_the_budget_is_refused(
    tmp_path: Path, epochs: str, place: str
) -> None:
    # Two rounds of one epoch are two of four passes; ILE need not double.
    arms, comparison = with_rounds(2, epochs=epochs, local_epochs=1), comparison_of()
    if place == "grid":
        arms = with_rounds(0, epochs=epochs, local_epochs=1)
        tuning = Tuning(grid={"lr-max": [0.1]}, arm_grid={"mine": {"num-rounds": [2]}})
        comparison = comparison_of(tuning=tuning)
    with pytest.raises(ConfigError, match="may end before it has used the budget") as caught:
        run_comparison(comparison, arms, tmp_path / "out", workers=1)
    assert caught.value.where == "mine, num-rounds"
    assert caught.value.got == "2, in which it is certain to train 2 epochs"
    assert not (tmp_path / "out").exists()


# Budgets in steps

IN_STEPS: dict[str, Any] = {
    "model": "mlp", "num-sites": 2, "epoch-budget": 0, "step-budget": 400, "local-steps": 2
}  # fmt: skip


@pytest.mark.parametrize(
    "arm", sorted({path.stem for path in ARMS_DIR.glob("*.toml")} - {*EPOCHS_ONLY})
)
def test_arms_that_count_in_steps_can_be_compared_in_steps(arm: str) -> None:
    comparison = comparison_of(config=IN_STEPS, arms=["centralized", arm])
    loaded = load_arm(arm, Path(), {})
    (config,) = configs_of(comparison, [loaded])[arm]
    assert (config.unit, config.budget) == ("steps", 400 * loaded.budgets_of(config))


@pytest.mark.parametrize("arm", EPOCHS_ONLY)
def test_arms_that_count_epochs_are_refused_by_name_in_a_comparison_in_steps(arm: str) -> None:
    with pytest.raises(ConfigError, match="counts work in steps, and this arm in epochs") as caught:
        configs_of(comparison_of(config=IN_STEPS), [load_arm(arm, Path(), {})])
    assert caught.value.where == f"{arm}, local-epochs"


@pytest.mark.parametrize("key", ["local-steps", "step-budget", "ile-max-steps"])
def test_an_arm_that_counts_steps_is_refused_in_a_comparison_in_epochs(key: str) -> None:
    with pytest.raises(ConfigError, match="counts work in epochs, and this arm in steps") as caught:
        configs_of(comparison_of(), arms_with("co-learning", **{key: 2}))
    assert (caught.value.where, caught.value.got) == (f"co-learning, {key}", 2)


def test_rounds_in_steps_need_a_budget_in_steps() -> None:
    config = {**IN_STEPS, "step-budget": 0, "num-rounds": 3}
    with pytest.raises(ConfigError, match="a comparison needs this number") as caught:
        configs_of(comparison_of(config=config), [load_arm("centralized", Path(), {})])
    assert caught.value.where == "centralized, step-budget"


def test_an_arm_with_another_budget_in_steps_is_refused() -> None:
    arms = [
        load_arm("centralized", Path(), {}),
        load_arm("co-learning", Path(), {"step-budget": 8}),
    ]
    with pytest.raises(ConfigError, match="the same data, model and budget") as caught:
        configs_of(comparison_of(config=IN_STEPS), arms)
    assert (caught.value.where, caught.value.got) == ("co-learning, step-budget", 8)


@pytest.mark.parametrize("arm", ["centralized-equal-steps", "centralized-equal-time"])
def test_a_yardstick_follows_from_its_protocol_and_may_change_nothing_else(arm: str) -> None:
    changed = load_arm(arm, Path(), {"batch-size": 64})
    with pytest.raises(ConfigError, match="the same data, model and budget") as caught:
        configs_of(comparison_of(), [load_arm("centralized", Path(), {}), changed])
    assert caught.value.where == f"{arm}, batch-size"


def test_an_arm_with_the_steps_of_centralized_training_has_the_budget_times_the_sites() -> None:
    names = ["centralized", "annealed-co-learning-more-passes"]
    arms = [load_arm(name, Path(), {}) for name in names]
    pooled, annealed = configs_of(comparison_of(), arms).values()
    assert (pooled[0].epoch_budget, annealed[0].epoch_budget) == (4, 8)
    with pytest.raises(ConfigError, match="the same data, model and budget") as caught:
        configs_of(comparison_of(), [arms[0], load_arm(names[1], Path(), {"epoch-budget": 8})])
    assert (caught.value.where, caught.value.got) == (f"{names[1]}, epoch-budget", 8)


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
