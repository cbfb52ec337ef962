"""Arms: the ones that are shipped, those of a user, and what is said of a bad one."""

from pathlib import Path
from typing import Any

import pytest

from simulations.compare.arm import ARMS_DIR, Arm, ArmTable, load_arm
from simulations.figures.arm_styles import STYLES
from simulations.results.summary import OTHERS, STUDIED
from strategies.common.errors import ConfigError
from strategies.method.local_work import count_round
from strategies.method.recipes import (
    Recipe,
    annealed_co_learning,
    diloco,
    fedadam,
    fedavg,
    fedavgm,
    fedprox,
    qsr,
)

SHIPPED = sorted(path.stem for path in ARMS_DIR.glob("*.toml"))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_arm_loads_and_makes_a_config(name: str, tmp_path: Path) -> None:
    arm = load_arm(name, tmp_path, {})
    assert arm.key == name
    shared: dict[str, int | str] = {"num-sites": 3, "epoch-budget": 12}
    more = {"num_rounds": 4} if arm.table.rounds_of else {}
    config = arm.config(shared, seed=7, **more)
    budget = 12 * arm.budgets_of(config)
    assert (config.num_sites, config.epoch_budget, config.seed) == (3, budget, 7)
    for key, value in arm.values.items():
        assert config.to_flower()[key] == value


def test_tables_and_pictures_name_shipped_arms() -> None:
    assert {*STYLES, *STUDIED, *OTHERS} <= set(SHIPPED)


def test_yardsticks_differ_in_nothing_but_whose_data_they_have() -> None:
    names = (
        "centralized", "centralized-equal-steps", "centralized-equal-time", "one-site", "ensemble"
    )  # fmt: skip
    first, *others = map(values_of, names)
    assert others == [first] * 4


def values_of(name: str) -> dict[str, Any]:
    return load_arm(name, ARMS_DIR, {}).values


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fedprox", {"proximal-mu": 0.01}),
        ("fedavgm", {"outer-optimizer": "momentum", "outer-lr": 1.0, "outer-momentum": 0.9}),
        ("fedadam", {"outer-optimizer": "adam", "outer-lr": 0.01}),
        ("fedavg-global-cosine", {"lr-shape": "global-cosine", "lr-min-fraction": 0.0}),
        ("clr-only", {"lr-shape": "exponential", "lr-min-fraction": 0.25}),
        ("flower-fedavg", {"batch-norm": "average"}),
    ],
)
def test_what_is_compared_with_fedavg_differs_from_it_in_one_thing(
    name: str, changes: dict[str, Any]
) -> None:
    assert values_of(name) == values_of("fedavg") | changes
    assert load_arm(name, ARMS_DIR, {}).table.rounds_of == "co-learning"


def test_each_half_of_co_learning_has_one_half_of_it_and_one_of_fedavg() -> None:
    clr, ile, both = values_of("clr-only"), values_of("ile-only"), values_of("co-learning")
    plain = values_of("fedavg")
    schedule = ("lr-shape", "lr-min-fraction")
    assert [clr.get(key) for key in schedule] == [both.get(key) for key in schedule]
    assert [ile.get(key) for key in schedule] == [plain.get(key) for key in schedule]
    assert (clr["epochs"], ile["epochs"]) == (plain["epochs"], both["epochs"])


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("fedavg-each-epoch", fedavg(12, 1, 0.05)),
        ("fedprox", fedprox(4, 3, 0.05, 0.01)),
        ("fedavgm", fedavgm(4, 3, 0.05)),
        ("fedadam", fedadam(4, 3, 0.05, 0.01)),
        ("qsr", qsr(12, 0.05, 1, 0.1)),
    ],
)
def test_an_arm_sends_the_plans_of_the_recipe_that_it_is_named_after(
    name: str, recipe: Recipe
) -> None:
    arm = load_arm(name, ARMS_DIR, {})
    more = {"num_rounds": 4} if arm.table.rounds_of else {}
    ours = arm.config({"epoch-budget": 12}, **more).recipe()
    assert ours.outer == recipe.outer

    def plans(method: Recipe) -> list[tuple[int, float, float, float]]:
        state, told = method.controller.start(), []
        while not method.horizon.finished(state):
            plan = method.plan(state, seed=1)
            told.append((plan.local_epochs, plan.lr_at(0), plan.lr_at(1), plan.proximal_mu))
            counted = count_round(state, plan.local_epochs)
            state = method.controller.after_round(counted, None)
        return told

    assert plans(ours) == plans(recipe)


def test_annealed_co_learning_is_the_recipe_that_it_is_named_after() -> None:
    config = load_arm("annealed-co-learning", ARMS_DIR, {}).config({"epoch-budget": 12})
    assert config.recipe() == annealed_co_learning(12, 20, config.lr_max)


PIECES = {
    "annealed-without-falling-peak": {"lr-peak"},
    "annealed-without-growing-rounds": {"epochs"},
    "annealed-without-outer-momentum": {"outer-optimizer", "outer-nesterov", "outer-plain-last"},
    "annealed-without-plain-last": {"outer-plain-last"},
    "annealed-fedexp": {"outer-optimizer", "outer-nesterov"},
    "annealed-co-learning-recalibrated": {"batch-norm"},
    "annealed-fedavg": {"lr-peak", "lr-shape", "lr-min-fraction"},
}
"""The keys in which each arm of the ablation differs from annealed co-learning."""


@pytest.mark.parametrize("name", PIECES)
def test_an_arm_of_the_ablation_differs_in_its_piece_only(name: str) -> None:
    whole = load_arm("annealed-co-learning", ARMS_DIR, {}).config({}).to_flower()
    arm = load_arm(name, ARMS_DIR, {})
    assert arm.table.rounds_of == "annealed-co-learning"
    values = arm.config({}, num_rounds=20).to_flower()
    assert {key for key in whole if values[key] != whole[key]} == PIECES[name]


def test_diloco_is_adamw_inside_and_nesterov_outside() -> None:
    arm = load_arm("diloco", ARMS_DIR, {})
    config = arm.config({"epoch-budget": 12}, num_rounds=4)
    assert config.optimizer == "adamw"
    method, named = config.recipe(), diloco(4, 500, config.lr_max)
    assert (method.outer, method.schedule, method.weighting) == (
        named.outer,
        named.schedule,
        named.weighting,
    )


def test_a_users_arm_is_found_by_its_path_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    file = written(tmp_path / "mine" / "slow.toml", 'lr-max = 0.01\n[arm]\nkind = "one-site"\n')
    for reference, folder in (("mine/slow.toml", tmp_path), (str(file), Path("/"))):
        arm = load_arm(reference, folder, {"batch-size": 8, "lr-max": 0.02})
        assert (arm.key, arm.name, arm.table.kind) == ("slow", "slow", "one-site")
        assert arm.values == {"lr-max": 0.02, "batch-size": 8}, "overrides go before the file"


def test_an_arm_without_a_table_is_federated_and_called_by_its_file(tmp_path: Path) -> None:
    arm = load_arm(str(written(tmp_path / "plain.toml", "seed = 3\n")), tmp_path, {})
    assert arm.table == ArmTable(name="", kind="federated", protocol="equal-passes")
    assert arm.name == "plain"


def test_the_arms_keys_go_before_the_shared_ones_and_the_last_before_both() -> None:
    arm = Arm(key="a", table=ArmTable(), values={"lr-max": 0.2, "batch-size": 8})
    config = arm.config({"lr-max": 0.1, "batch-size": 4, "model": "mlp"}, batch_size=2)
    assert (config.lr_max, config.batch_size, config.model) == (0.2, 2, "mlp")


@pytest.mark.parametrize(
    ("table", "where", "named"),
    [
        ('kind = "federal"', "kind", "got 'federal'"),
        ("name = 7", "name", "got 7"),
        ('rounds_of = "x"', "rounds_of", "got 'x'"),  # it is written rounds-of
        ('colour = "red"', "colour", "got 'red'"),
        ('kind = "centralized"\nprotocol = "equal"', "protocol", "got 'equal'"),
    ],
)
def test_a_bad_table_is_refused_with_file_and_key(
    tmp_path: Path, table: str, where: str, named: str
) -> None:
    file = written(tmp_path / "bad.toml", f"[arm]\n{table}\n")
    with pytest.raises(ConfigError) as caught:
        load_arm(str(file), tmp_path, {})
    assert caught.value.where == f"{file}, [arm], {where}"
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "protocol", "known"),
    [
        ("one-site", "equal-time", "equal-passes"),
        ("centralized", "centralized-steps", "equal-passes, equal-steps, equal-time"),
        ("federated", "equal-steps", "equal-passes, centralized-steps"),
    ],
)
def test_a_kind_has_its_own_protocols(tmp_path: Path, kind: str, protocol: str, known: str) -> None:
    text = f'[arm]\nkind = "{kind}"\nprotocol = "{protocol}"\n'
    file = written(tmp_path / "bad.toml", text)
    with pytest.raises(ConfigError, match=f"{kind}.* has one of the protocols {known}") as caught:
        load_arm(str(file), tmp_path, {})
    assert caught.value.where == f"{file}, [arm]"


@pytest.mark.parametrize("key", ["epoch-budget", "step-budget"])
def test_with_the_steps_of_centralized_training_a_site_has_the_budget_of_all(key: str) -> None:
    arm = Arm(key="a", table=ArmTable(protocol="centralized-steps"), values={})
    config = arm.config({key: 6, "num-sites": 3, "epochs": "spread", "num-rounds": 2})
    assert config.to_flower()[key] == 18


@pytest.mark.parametrize("reference", ["fed-avg", "mine.toml", "arms/fedavg", ""])
def test_an_arm_that_is_not_there_is_answered_with_those_that_are(
    tmp_path: Path, reference: str
) -> None:
    with pytest.raises(ConfigError, match="no such arm") as caught:
        load_arm(reference, tmp_path, {})
    assert caught.value.got == reference
    assert caught.value.expected == f"one of: {', '.join(SHIPPED)}; or the path of a TOML file"


@pytest.mark.parametrize(
    ("values", "named"),
    [({"lr-mx": 0.1}, "Did you mean 'lr-max'"), ({"lr-max": -1}, "run config, lr-max")],
)
def test_keys_of_an_arm_are_checked_as_a_run_config(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Arm(key="a", table=ArmTable(), values=values).config({})
