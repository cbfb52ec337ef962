"""What a comparison file may ask for, beside what `test_comparison` runs."""

from pathlib import Path
from typing import Any

import pytest

from simulations.compare.arm import ARMS_DIR, load_arm
from simulations.compare.comparison_file import Comparison, read_comparison, with_settings
from simulations.compare.runner import run_comparison
from strategies.common.errors import ConfigError

COMPARISONS = sorted((ARMS_DIR.parent / "comparisons").glob("*.toml"))


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_seeds_follow_each_other_from_the_first(tmp_path: Path) -> None:
    text = 'name = "x"\narms = ["co-learning"]\nnum-seeds = 3\nfirst-seed = 7\n'
    comparison, _ = read_comparison(written(tmp_path / "c.toml", text))
    assert comparison.seeds == [7, 8, 9]


@pytest.mark.parametrize(
    ("text", "where", "got"),
    [
        ("num-seeds = 0", "num-seeds", 0),
        ("first-seed = -1", "first-seed", -1),
        ('config = "digits"', "config", "digits"),
        ('arm-config = { co-learning = "fast" }', "arm-config.co-learning", "fast"),
        ("colour = 1", "colour", 1),
    ],
)
def test_a_bad_value_is_refused_with_file_and_key(
    tmp_path: Path, text: str, where: str, got: object
) -> None:
    path = written(tmp_path / "c.toml", f'name = "x"\narms = ["co-learning"]\n{text}\n')
    with pytest.raises(ConfigError) as caught:
        read_comparison(path)
    assert (caught.value.where, caught.value.got) == (f"{path}, {where}", got)


def test_two_arms_of_one_file_name_are_refused_also_from_two_folders(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder / "mine.toml", "seed = 1\n")
    path = written(tmp_path / "c.toml", 'name = "x"\narms = ["a/mine.toml", "b/mine.toml"]\n')
    with pytest.raises(ConfigError, match="the same file name") as caught:
        read_comparison(path)
    assert (caught.value.where, caught.value.got) == (str(path), "mine")


TUNED = """name = "x"
arms = ["co-learning", "diloco"]
[tuning]
num-seeds = 2
[tuning.grid]
lr-max = [0.1, 0.2]
ile-epsilon = [0.01, 0.02]
[tuning.arm-grid.diloco]
"""


def test_every_combination_of_a_grid_is_a_candidate(tmp_path: Path) -> None:
    text = f"{TUNED}lr-max = [0.001, 0.002, 0.003, 0.004]\n"
    comparison, _ = read_comparison(written(tmp_path / "c.toml", text))
    assert comparison.tuning is not None
    assert comparison.tuning.seeds == [101, 102]
    assert comparison.tuning.candidates("co-learning") == [
        {"lr-max": 0.1, "ile-epsilon": 0.01},
        {"lr-max": 0.1, "ile-epsilon": 0.02},
        {"lr-max": 0.2, "ile-epsilon": 0.01},
        {"lr-max": 0.2, "ile-epsilon": 0.02},
    ]
    assert comparison.tuning.candidates("diloco")[2] == {"lr-max": 0.003}


def test_some_arms_can_be_taken_of_a_comparison(tmp_path: Path) -> None:
    text = f"{TUNED}lr-max = [0.001, 0.002, 0.003, 0.004]\n"
    path = written(tmp_path / "c.toml", f'highlight = ["diloco"]\n{text}')
    comparison, arms = read_comparison(path, ["co-learning"])
    assert ([arm.key for arm in arms], comparison.highlight) == (["co-learning"], [])
    with pytest.raises(ConfigError, match="no arm of the comparison") as caught:
        read_comparison(path, ["fedavg"])
    assert (caught.value.where, caught.value.got) == ("--arm", "fedavg")
    with pytest.raises(ConfigError, match="the arm named by rounds-of"):
        read_comparison(path, ["diloco"])


@pytest.mark.parametrize(
    ("change", "message", "where"),
    [
        (
            ("", "lr-max = [0.001]"),
            "number of different candidates",
            "tuning.arm-grid.diloco",
        ),
        (
            ("", "lr-max = [0.1, 0.2, 0.1, 0.2]"),
            "number of different candidates",
            "tuning.arm-grid.diloco",
        ),
        (("num-seeds = 2", "first-seed = 3"), "must not be reported seeds", "tuning, first-seed"),
        (("arm-grid.diloco", "arm-grid.dilco"), "no arm of", "tuning.arm-grid.dilco"),
        (("[0.1, 0.2]", "[]"), "at least 1", "tuning.grid.lr-max"),
        (("arms = [", 'highlight = ["fedavg"]\narms = ['), "no arm of", "highlight.fedavg"),
    ],
    ids=[
        "fewer-candidates",
        "equal-ones",
        "reported-seeds",
        "no-such-arm",
        "empty",
        "no-such-highlight",
    ],
)
def test_unequal_tuning_is_refused(
    tmp_path: Path, change: tuple[str, str], message: str, where: str
) -> None:
    old, new = change
    text = f"{TUNED}lr-max = [0.001, 0.002, 0.003, 0.004]\n" if old else f"{TUNED}{new}\n"
    path = written(tmp_path / "c.toml", text.replace(old, new, 1) if old else text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_comparison(path)
    assert caught.value.where == f"{path}, {where}"


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ("[config]", "[config]"),
        ("[arm-config.diloco]", "[arm-config.diloco]"),
        ("[tuning.config]", "[tuning.config]"),
        ("[tuning.grid]", "[tuning.grid]"),
        ("[tuning.arm-grid.diloco]", "[tuning.arm-grid.diloco]"),
    ],
)
def test_a_key_that_there_is_not_is_named_with_file_and_table(
    tmp_path: Path, table: str, where: str
) -> None:
    key = "lr-mx = [0.1]" if "grid" in table else "lr-mx = 0.1"
    text = f'name = "x"\narms = ["co-learning", "diloco"]\n{table}\n{key}\n'
    if table in ("[tuning.config]", "[tuning.arm-grid.diloco]"):
        text += "[tuning.grid]\nlr-max = [0.1]\n"
    path = written(tmp_path / "c.toml", text)
    with pytest.raises(ConfigError, match="no such key") as caught:
        read_comparison(path)
    assert caught.value.where == f"{path}, {where}, lr-mx"
    assert caught.value.hint == "Did you mean 'lr-max'?"


def test_a_key_of_an_arm_that_there_is_not_is_named_with_the_arms_file(tmp_path: Path) -> None:
    mine = written(tmp_path / "mine.toml", "lr-mx = 0.1\n")
    path = written(tmp_path / "c.toml", 'name = "x"\narms = ["mine.toml"]\n')
    with pytest.raises(ConfigError, match="no such key") as caught:
        read_comparison(path)
    assert caught.value.where == f"{mine}, lr-mx"


OWN_VALUES = """name = "x"
arms = ["co-learning", "diloco"]
[config]
lr-max = 0.4
batch-size = 16
[arm-config.co-learning]
momentum = 0.5
[tuning.grid]
local-epochs = [1, 2]
"""


def test_what_is_set_goes_before_what_all_arms_share(tmp_path: Path) -> None:
    comparison, arms = read_comparison(written(tmp_path / "c.toml", OWN_VALUES))
    changed = with_settings(comparison, arms, {"batch-size": 8, "momentum": 0.5})
    assert changed.config == {"lr-max": 0.4, "batch-size": 8, "momentum": 0.5}


@pytest.mark.parametrize(
    ("key", "value", "own"),
    [
        ("momentum", 0.9, "0.5, the value of the arm co-learning"),
        ("lr-max", 0.1, "0.001, the value of the arm diloco"),
        ("local-epochs", 2, "1, the value of the arm co-learning"),
    ],
    ids=["arm-config", "arm-file", "grid"],
)
def test_what_is_set_but_would_not_hold_for_an_arm_is_refused(
    tmp_path: Path, key: str, value: Any, own: str
) -> None:
    comparison, arms = read_comparison(written(tmp_path / "c.toml", OWN_VALUES))
    with pytest.raises(ConfigError, match="sets this key itself") as caught:
        with_settings(comparison, arms, {key: value})
    error = caught.value
    assert (error.where, error.got, error.expected) == (f"--set, {key}", value, own)


def test_more_seeds_than_the_file_has_may_not_be_those_of_tuning(tmp_path: Path) -> None:
    text = f"{TUNED}lr-max = [0.001, 0.002, 0.003, 0.004]\n"
    path = written(tmp_path / "c.toml", text)
    comparison, _ = read_comparison(path, num_seeds=100)
    assert comparison.seeds[-1] == 100
    with pytest.raises(ConfigError, match="must not be reported seeds") as caught:
        read_comparison(path, num_seeds=101)
    assert (caught.value.where, caught.value.got) == (f"{path}, tuning, first-seed", 101)


@pytest.mark.parametrize(
    ("arms", "tables"),
    [
        ("'mine.toml'", {"mine": 'rounds-of = "mine"'}),
        (
            "'co-learning', 'mine.toml', 'other.toml'",
            {"mine": 'rounds-of = "other"', "other": 'rounds-of = "co-learning"'},
        ),
        ("'centralized', 'mine.toml'", {"mine": 'rounds-of = "centralized"'}),
    ],
    ids=["its-own", "of-one-that-takes-them-too", "of-one-without-rounds"],
)
def test_rounds_can_be_taken_only_from_an_arm_that_has_its_own(
    tmp_path: Path, arms: str, tables: dict[str, str]
) -> None:
    for name, table in tables.items():
        written(tmp_path / f"{name}.toml", f'epochs = "spread"\n[arm]\n{table}\n')
    path = written(tmp_path / "c.toml", f'name = "x"\narms = [{arms}]\n')
    with pytest.raises(ConfigError, match="rounds"):
        read_comparison(path)


SMALL: dict[str, Any] = {
    "model": "mlp",
    "max-train-examples": 40,
    "epoch-budget": 1,
    "local-epochs": 1,
    "wait-for-sites-s": 0.1,
}


def test_a_federated_arm_without_a_number_of_sites_is_refused(tmp_path: Path) -> None:
    # Nobody would come: a run would wait for wait-for-sites-s, ten minutes by default.
    comparison = Comparison(name="x", arms=["co-learning"], num_seeds=1, config=SMALL)
    arms = [load_arm("co-learning", tmp_path, {})]
    with pytest.raises(ConfigError, match="num-sites"):
        run_comparison(comparison, arms, tmp_path / "out", workers=1)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"lr-mx": 0.1}, "no such key"),
        ({"dataset": "digit"}, "no such data set"),
        ({"model": "mpl"}, "no such model"),
        ({"model": "torchvision:resnet18"}, "does not fit the data"),
    ],
)
def test_what_is_wrong_in_the_config_is_found_before_anything_is_trained(
    tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    values = {**SMALL, "num-sites": 2, **config}
    comparison = Comparison(name="x", arms=["co-learning"], num_seeds=1, config=values)
    arms = [load_arm("co-learning", tmp_path, {})]
    with pytest.raises(Exception, match=named):
        run_comparison(comparison, arms, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()
