"""Micro-batches: the gradient of the whole batch, from parts that fit into memory."""

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mdc_flower.config import RunConfig, read_run_config, read_site_config
from mdc_flower.jobs.context import JobContext
from mdc_flower.jobs.run_task import load_run_task, load_site_run_task
from mdc_flower.training.job import Spare
from mdc_flower.training.loop import TrainResult, TrainSettings, train
from mdc_flower.training.micro_batches import length_of, micro_batches, rows_of, slices
from mdc_flower.training.runtime import Runtime
from strategies.common.errors import ConfigError
from strategies.method.round_plan import RoundPlan
from tests.mdc_flower.examples import CPU, job_of, plan, same_bits, vectors
from tests.tiny_jobs import texts

PLAN = plan(local_epochs=3, lr_max=0.5, lr_min=0.1, shape="linear")

Trained = tuple[nn.Module, TrainResult]


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (8, 4, [4, 4]),
        (10, 4, [3, 3, 4]),
        (5, 4, [2, 3]),
        (3, 8, [3]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_micro_batches_are_all_rows_in_order_and_about_as_large(
    count: int, size: int, expected: list[int]
) -> None:
    rows = [list(range(count))[rows] for rows in slices(count, size)]
    assert [len(part) for part in rows] == expected
    assert [row for part in rows for row in part] == list(range(count))


def test_no_example_is_alone_unless_each_is_to_be() -> None:
    for count in range(2, 40):
        for size in range(2, 12):
            sizes = [rows.stop - rows.start for rows in slices(count, size)]
            assert 2 <= min(sizes) <= max(sizes) <= size + (size == 2)


class Named(NamedTuple):
    images: Tensor
    texts: list[str]


def test_a_part_of_a_batch_keeps_its_form() -> None:
    images = torch.arange(4.0)
    batch = {"in": Named(images, ["a", "b", "c", "d"]), "scale": torch.tensor(2.0)}
    assert length_of(batch) == 4
    part = rows_of(batch, slice(1, None, 2))
    assert part["in"].images.tolist() == [1.0, 3.0]
    assert part["in"].texts == ["b", "d"]
    assert part["scale"] == 2.0


def test_a_batch_without_an_axis_of_examples_cannot_be_divided() -> None:
    with pytest.raises(ConfigError, match="neither among processes nor into micro-batches"):
        length_of(object())


class Sharing(Runtime):
    """This process, and another one with more micro-batches."""

    def largest(self, count: int) -> int:
        return 3


def test_a_process_with_fewer_micro_batches_repeats_its_last_one_for_nothing() -> None:
    pieces = micro_batches(torch.arange(4), 2, Sharing())
    assert [piece.tolist() for piece in pieces[:2]] == [[0, 1], [2, 3]]
    assert isinstance(pieces[2], Spare)
    assert pieces[2].batch.tolist() == [2, 3]
    spare = Spare(torch.arange(2))
    assert micro_batches(spare, 2, Sharing()) == [spare] * 3


def trained(job: Any, micro_batch_size: int, mu: float = 0.0, **changes: Any) -> Trained:
    settings = replace(TrainSettings(batch_size=8), micro_batch_size=micro_batch_size, **changes)
    torch.manual_seed(1)
    model = job.model()
    done = train(model, job, replace_in(PLAN, mu), settings, CPU, "north")
    return model, done


def replace_in(plan: RoundPlan, mu: float) -> RoundPlan:
    return plan.model_copy(update={"proximal_mu": mu})


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def classification() -> Any:
    """Return a job of 19 vectors: the last of three batches has 3."""
    x = torch.randn(19, 3, generator=torch.Generator().manual_seed(2))
    data = vectors(x.tolist(), (x[:, 0] > 0).long().tolist())
    return replace(job_of(data, TrainSettings(batch_size=8)), new_model=network)


def language_model() -> Any:
    """Return a job whose examples have different numbers of tokens."""
    return texts(JobContext(RunConfig()))


def assert_alike(one: Trained, other: Trained, tolerance: float = 1e-5) -> None:
    for p, q in zip(one[0].parameters(), other[0].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
    assert (one[1].num_steps, one[1].num_examples) == (other[1].num_steps, other[1].num_examples)
    assert one[1].loss == pytest.approx(other[1].loss, rel=tolerance)
    assert one[1].metrics == pytest.approx(other[1].metrics, rel=tolerance)


@pytest.mark.parametrize("given", [{}, {"clip_norm": 0.1}, {"mu": 3.0}], ids=str)
@pytest.mark.parametrize("size", [1, 3, 4])
def test_training_is_that_of_whole_batches(size: int, given: dict[str, Any]) -> None:
    whole, parts = trained(classification(), 0, **given), trained(classification(), size, **given)
    assert_alike(parts, whole)
    assert not same_bits(parts[0], whole[0])  # it is not the same computation


@pytest.mark.parametrize("mu", [0.0, 3.0])
@pytest.mark.parametrize("size", [1, 3])
def test_a_micro_batch_weighs_as_many_tokens_as_it_has(size: int, mu: float) -> None:
    assert_alike(trained(language_model(), size, mu), trained(language_model(), 0, mu))


def test_scaled_float16_gradients_are_added_up_before_they_are_clipped() -> None:
    given: dict[str, Any] = {"autocast_dtype": torch.float16, "clip_norm": 0.1}
    whole, parts = trained(classification(), 0, **given), trained(classification(), 3, **given)
    assert_alike(parts, whole, tolerance=5e-3)


@pytest.mark.parametrize("size", [8, 100])
def test_a_batch_that_fits_gives_the_bits_of_a_whole_one(size: int) -> None:
    whole, fitting = trained(classification(), 0), trained(classification(), size)
    assert same_bits(fitting[0], whole[0])


@pytest.mark.parametrize(("run", "site", "expected"), [(0, 0, 0), (8, 0, 8), (8, 2, 2), (0, 2, 2)])
@pytest.mark.parametrize("job", ["classification", "tests.tiny_jobs:line"])
def test_a_sites_own_size_goes_before_the_runs(
    job: str, run: int, site: int, expected: int
) -> None:
    config = read_run_config({"job": job, "micro-batch-size": run})
    own = read_site_config({"site": "north", "micro-batch-size": site})
    assert load_run_task(config).settings.micro_batch_size == run
    assert load_site_run_task(config, own).settings.micro_batch_size == expected
