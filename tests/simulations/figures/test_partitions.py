"""Pictures of cuts: the app's own cut of the data, and a disc for each class at each site."""

from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from mdc_flower.data import load_dataset
from mdc_flower.reports.plotting import png
from simulations.cli import COMPARISONS_DIR
from simulations.compare.arm import ARMS_DIR, load_arm
from simulations.compare.comparison_file import read_comparison
from simulations.figures.partitions import ClassCounts, cut, draw_partitions, result_cut
from simulations.results.result_files import ArmFacts, Results
from strategies.common.errors import ConfigError
from tests.simulations.made_up import outcome, results


def test_a_cut_is_that_of_a_run() -> None:
    one = cut("even", {"dataset": "digits", "num-sites": 4, "seed": 1})
    labels = load_dataset("digits").train.labels
    assert one.counts.shape == (4, 10)
    assert one.counts.sum(axis=0).tolist() == np.bincount(labels).tolist()
    assert len(one.class_names) == 10


def results_from(name: str, **keys: Any) -> Results:
    """Return made-up results of a comparison file, with other data."""
    comparison, _ = read_comparison(COMPARISONS_DIR / f"{name}.toml")
    more = {key.replace("_", "-"): value for key, value in keys.items()}
    config = load_arm("fedavg", ARMS_DIR, {}).config(
        {**comparison.config, **more}, num_rounds=1, seed=1
    )
    kept = {key: value for key, value in config.to_flower().items() if key != "seed"}
    arm = ArmFacts(key="a", name="A", kind="federated", config=kept, per_step_bytes=1)
    return results({"a": {1: outcome((2, 0.5))}}, name=comparison.name, arms=[arm])


def test_a_comparison_is_cut_as_its_results_say() -> None:
    one = result_cut(results_from("size-skew", dataset="digits", max_train_examples=100))
    assert one.name == "5 sites, sizes 1 to 10, seed 1"
    # As in the test of splits: shares of 1, 1.78, 3.16, 5.62 and 10 of 100 images.
    assert one.counts.sum(axis=1).tolist() == [5, 8, 15, 26, 46]


def test_another_seed_is_another_cut() -> None:
    made = results_from("dirichlet-0.3", dataset="digits", max_train_examples=200)
    first, again, second = (result_cut(made, seed).counts for seed in (None, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_areas_are_in_proportion_to_the_examples() -> None:
    counts = np.array([[4, 0, 1], [2, 2, 0]])
    figure = draw_partitions([ClassCounts("made up", counts, ["a", "b", "c"])])
    (axes,) = figure.axes
    (discs,) = axes.collections
    assert isinstance(discs, PathCollection)
    assert np.asarray(discs.get_offsets()).tolist() == [[0, 0], [0, 2], [1, 0], [1, 1]]
    areas = np.asarray(discs.get_sizes())
    assert (areas / areas.max()).tolist() == [1.0, 0.25, 0.5, 0.5]
    assert [text.get_text() for text in axes.texts] == ["5", "4"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]


@pytest.mark.parametrize("num_sites", [1, 10, 40])
def test_many_sites_are_drawn_as_well(num_sites: int) -> None:
    even = ClassCounts("even", np.ones((num_sites, 3), dtype=np.int64), ["a", "b", "c"])
    figure = draw_partitions([even, even, even], columns=2)
    assert len(figure.axes) == 3
    assert png(figure)


def test_the_sites_of_a_users_job_have_examples_of_no_class() -> None:
    one = cut("even", {"job": "tests.tiny_jobs:line", "num-sites": 5})
    assert one.counts.tolist() == [[5], [5], [5], [5], [4]]
    figure = draw_partitions([one])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["5", "5", "5", "5", "4"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["examples"]
    assert "class" not in figure.get_supxlabel()


def test_the_examples_of_a_stream_cannot_be_counted() -> None:
    with pytest.raises(ConfigError, match="a stream has no number of examples"):
        cut("even", {"job": "tests.tiny_jobs:stream", "num-sites": 2})
