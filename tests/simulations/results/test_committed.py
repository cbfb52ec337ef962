"""Results of several comparisons: which are found, in which order, and with which arms."""

from pathlib import Path
from typing import Any

import pytest

from simulations.results.committed import (
    of_first_data,
    only,
    read_all,
    read_comparisons,
    read_splits,
    split_name,
)
from simulations.results.result_files import Results, write_results
from strategies.common.errors import DataError
from tests.simulations.made_up import outcome, results

OUTCOMES = {key: {1: outcome((2, 0.5)), 2: outcome((2, 0.6))} for key in ("a", "b", "c")}


def split(
    name: str, partition: str, num_sites: int, alpha: float = 0.3, dataset: str = "d"
) -> Results:
    config: dict[str, Any] = {
        "dataset": dataset, "partition": partition, "partition-alpha": alpha
    }  # fmt: skip
    one = results(OUTCOMES, name=name, num_sites=num_sites)
    arms = [arm.model_copy(update={"config": {**arm.config, **config}}) for arm in one.facts.arms]
    return one.model_copy(update={"facts": one.facts.model_copy(update={"arms": arms})})


def test_comparisons_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_results(tmp_path / name, results(OUTCOMES, name=name))
    assert [one.facts.name for one in read_comparisons(tmp_path, ["y", "x"])] == ["y", "x"]


def test_a_folder_of_ones_own_is_one_comparison_or_has_several(tmp_path: Path) -> None:
    for name in ("y", "x"):
        write_results(tmp_path / name, split(name, "iid", 2))
    assert [one.facts.name for one in read_all(tmp_path)] == ["x", "y"]
    assert [one.facts.name for one in read_all(tmp_path / "y")] == ["y"]
    assert [one.facts.name for one in read_splits(tmp_path)] == ["x", "y"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"mdc compare FILE\.toml --output"):
        read_all(tmp_path / "none")


def test_splits_of_the_first_data_come_first() -> None:
    names = ("letters, 2 sites, IID", "letters, 5 sites, IID", "voices, 6 sites, a speaker each")
    made = [split(name, "iid", 2) for name in names]
    assert of_first_data(made) == made[:2]


def test_splits_go_from_the_even_to_the_uneven(tmp_path: Path) -> None:
    made = [
        split("dirichlet-0.1", "dirichlet", 5, 0.1),
        split("dirichlet-1.0", "dirichlet", 5, 1.0),
        split("sites-10", "iid", 10),
        split("sites-2", "iid", 2),
        split("size-skew", "size-skew", 5),
        split("speakers", "natural-id", 6, dataset="audio"),
    ]
    for one in made:
        write_results(tmp_path / "splits" / one.facts.name, one)
    (tmp_path / "splits" / "no-results").mkdir()
    assert [one.facts.name for one in read_splits(tmp_path)] == [
        "sites-2",
        "sites-10",
        "size-skew",
        "dirichlet-1.0",
        "dirichlet-0.1",
        "speakers",  # the data with most splits come first
    ]


def test_where_there_are_no_splits_the_error_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mdc compare simulations/comparisons/NAME\.toml --output"):
        read_splits(tmp_path)


def test_only_some_arms() -> None:
    (one,) = only([results(OUTCOMES, highlight=["b"])], ["c", "a"])
    assert [arm.key for arm in one.facts.arms] == ["a", "c"]
    assert list(one.outcomes) == ["a", "c"]
    assert one.facts.highlight == []


def test_differences_keep_the_arm_they_refer_to() -> None:
    with pytest.raises(DataError, match="a list that includes a"):
        only([results(OUTCOMES)], ["b", "c"])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("letters, 5 sites, IID", ("letters", "5 sites, IID")),
        ("letters, 1,000 of them, 5 sites, IID", ("letters, 1,000 of them", "5 sites, IID")),
        ("letters, 5 sites", ("letters", "5 sites")),
        ("letters", ("letters", "")),
    ],
)
def test_a_split_is_named_by_the_end_of_its_title(name: str, parts: tuple[str, str]) -> None:
    assert split_name(results(OUTCOMES, name=name)) == parts
