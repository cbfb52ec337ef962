"""BatchNorm's statistics taken anew: PyTorch's own way is the oracle, and nothing else changes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from mdc_flower.models import build_model
from mdc_flower.training.arrays import model_arrays
from mdc_flower.training.batch_norm import buffers_of, check_policy, recalibrate, statistics_of
from mdc_flower.training.batches import InputPipeline, Tensors, shuffled
from mdc_flower.training.job import Pass, Spare
from mdc_flower.training.loop import TrainSettings
from strategies.aggregation.averaging import Update, by_examples
from strategies.aggregation.pooled_statistics import pooled_statistics
from strategies.common.errors import ConfigError, DeadlineError
from strategies.common.seeds import derive_seed
from tests.mdc_flower.examples import CPU, job_of, same_bits, state_of

PIPELINE = InputPipeline(mean=(0.5,), std=(0.25,))


def network(seed: int = 1, dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(dropout), nn.Flatten(),
            nn.Linear(16, 5), nn.BatchNorm1d(5, momentum=0.3),
        )  # fmt: skip


def images(count: int, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return Tensors(
        torch.randint(0, 256, (count, 1, 4, 4), generator=generator, dtype=torch.uint8),
        torch.zeros(count, dtype=torch.int64),
    )


def retake(model: nn.Module, data: Tensors, batch_size: int = 4, site: str = "a") -> nn.Module:
    recalibrate(
        model, job_of(data, TrainSettings(batch_size=batch_size), PIPELINE), CPU, None, 3, site
    )
    return model


def batches(data: Tensors, batch_size: int, site: str) -> list[Tensor]:
    order = torch.Generator().manual_seed(derive_seed(3, "statistics", site))
    rows = shuffled(len(data), batch_size, order)
    return [PIPELINE(data.inputs[some], CPU) for some in rows]


def test_statistics_are_those_of_update_bn_to_the_bit() -> None:
    data, model, oracle = images(10), network(), network()
    update_bn(batches(data, 4, "a"), oracle.to(memory_format=torch.channels_last))
    assert not same_bits(model, oracle)
    assert same_bits(retake(model, data), oracle)


@pytest.mark.parametrize("name", ["small-cnn", "resnet8"])
def test_so_are_those_of_the_networks_here(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    data = Tensors(
        torch.randint(0, 256, (9, 1, 8, 8), generator=generator, dtype=torch.uint8),
        torch.zeros(9, dtype=torch.int64),
    )
    model, oracle = (build_model(name, (1, 8, 8), 10, seed=1) for _ in range(2))
    update_bn(batches(data, 4, "a"), oracle.to(memory_format=torch.channels_last))
    retake(model, data)
    for mean, variance in statistics_of(model).items():
        for array in (mean, variance):
            assert state_of(model)[array].tobytes() == state_of(oracle)[array].tobytes()


def test_nothing_but_the_layers_buffers_changes_and_modes_and_momenta_come_back() -> None:
    model = network()
    before = state_of(model)
    model.train()
    retake(model, images(10))
    after = state_of(model)
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed == buffers_of(model)
    assert model.training
    assert [model[1].momentum, model[5].momentum] == [0.1, 0.3]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_neither_shifts_them_nor_draws_anything() -> None:
    data, state = images(10), torch.get_rng_state()
    assert same_bits(retake(network(dropout=0.9), data), retake(network(), data))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_examples_are_augmented_as_in_training() -> None:
    data, moving = images(10), InputPipeline((0.5,), (0.25,), augment="crop-flip")
    job = job_of(data, TrainSettings(batch_size=4), moving)
    order = torch.Generator().manual_seed(derive_seed(3, "statistics", "a"))
    drawn = [
        batch[0]
        for batch in job.batches(Pass("train", CPU, order, augment=True))
        if not isinstance(batch, Spare)
    ]
    model, oracle = network(), network()
    update_bn(drawn, oracle.to(memory_format=torch.channels_last))
    recalibrate(model, job, CPU, None, 3, "a")
    assert same_bits(model, oracle)
    assert not same_bits(model, retake(network(), data))


def test_what_was_there_before_does_not_matter_and_the_site_decides_the_order() -> None:
    data, used = images(10), network()
    used.train()(PIPELINE(images(8, seed=5).inputs[:], CPU))
    assert same_bits(retake(used, data), retake(network(), data))
    assert not same_bits(retake(network(), data, site="b"), retake(network(), data))


def test_examples_sorted_by_class_are_not_met_class_by_class() -> None:
    # Two classes far apart: batches of one class would have variance 0.
    inputs = torch.cat([torch.zeros(32, 1), torch.ones(32, 1)])
    data = Tensors(inputs, torch.zeros(64, dtype=torch.int64))
    model = nn.Sequential(nn.BatchNorm1d(1))
    recalibrate(
        model, job_of(data, TrainSettings(batch_size=8), InputPipeline()), CPU, None, 3, "a"
    )
    # 1/4 of all examples together, by the unbiased estimate 16/63.
    assert float(state_of(model)["0.running_var"][0]) == pytest.approx(0.25, abs=0.05)


def test_folded_statistics_of_the_sites_are_those_of_the_pooled_data() -> None:
    # Each site's batch is all that it has. Of the input's layer the law of total variance is exact,
    # up to the factor n / (n - 1) by which PyTorch's estimates are unbiased.
    parts = [images(count, seed) for seed, count in enumerate((20, 12, 28))]
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten())
    layers = statistics_of(model)
    updates = []
    for index, part in enumerate(parts):
        retake(model, part, batch_size=len(part))
        arrays = {name: array for name, array in model_arrays(model).items() if "running" in name}
        n = len(part) * 16
        arrays["0.running_var"] = arrays["0.running_var"].astype(np.float64) * (n - 1) / n
        updates.append(Update(f"site-{index}", len(part), arrays, {}))
    folded = pooled_statistics(updates, by_examples, layers)

    pooled = Tensors(
        torch.cat([part.inputs[:] for part in parts]), torch.zeros(60, dtype=torch.int64)
    )
    update_bn([PIPELINE(pooled.inputs[:], CPU)], model)
    assert folded["0.running_mean"] == pytest.approx(state_of(model)["0.running_mean"], rel=1e-5)
    n = 60 * 16
    assert folded["0.running_var"] == pytest.approx(
        state_of(model)["0.running_var"].astype(np.float64) * (n - 1) / n, rel=1e-5
    )


def test_a_deadline_that_has_come_ends_it_and_gives_the_momenta_back() -> None:
    model = network()
    with pytest.raises(DeadlineError):
        recalibrate(
            model,
            job_of(images(10), TrainSettings(batch_size=4), PIPELINE),
            CPU,
            None,
            3,
            "a",
            stop_at=-math.inf,
        )
    assert model[1].momentum == 0.1


class Own(nn.BatchNorm1d):
    """A user's own kind of BatchNorm."""


def test_layers_are_found_by_what_they_are_each_once() -> None:
    shared = nn.BatchNorm2d(3)
    model = nn.ModuleDict(
        {
            "first": shared,
            "again": shared,
            "own": Own(2),
            "volume": nn.BatchNorm3d(2),
            "sync": nn.SyncBatchNorm(2),
            "without": nn.BatchNorm2d(3, track_running_stats=False),
            "group": nn.GroupNorm(1, 2),
        }
    )
    kept = ("first", "own", "volume", "sync")
    assert statistics_of(model) == {f"{n}.running_mean": f"{n}.running_var" for n in kept}
    assert buffers_of(model) < set(model_arrays(model))
    assert statistics_of(nn.BatchNorm1d(2)) == {"running_mean": "running_var"}


@pytest.mark.parametrize("policy", ["recalibrate", "local"])
def test_a_model_without_such_layers_takes_no_other_policy(policy: str) -> None:
    check_policy(nn.Linear(1, 1), "lines", "average")
    check_policy(network(), "net", policy)
    with pytest.raises(ConfigError, match="no BatchNorm layer") as caught:
        check_policy(nn.Linear(1, 1), "lines", policy)
    assert caught.value.where == "batch-norm"
    assert "lines" in str(caught.value.got)
