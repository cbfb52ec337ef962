"""`torch_job`: what people have becomes a job."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from mdc_flower.jobs.torch_job import TorchJob, to_device, torch_job
from mdc_flower.training.job import Pass, Spare
from mdc_flower.training.loop import TrainSettings, evaluate, train
from strategies.common.errors import ConfigError, DataError
from strategies.method.round_plan import RoundPlan
from tests.tiny_jobs import Counting

CPU = torch.device("cpu")
X = torch.arange(10.0)[:, None]
DATA = TensorDataset(X, 2 * X)


def job(train: Any = DATA, **options: Any) -> TorchJob:
    given = {"model": lambda: nn.Linear(1, 1), "loss": functional.mse_loss, "batch_size": 4}
    return torch_job(**{**given, "train": train, **options})


def plan(**fields: Any) -> RoundPlan:
    usual = {"round": 1, "lr_max": 0.1, "lr_min": 0.1, "shape": "constant", "seed": 1}
    return RoundPlan(**{**usual, **({"local_epochs": 1} | fields)})


def read(job: TorchJob, seed: int | None = 1, start: int = 0, skip: int = 0) -> list[list[float]]:
    """Return the inputs of each batch of a pass over the training examples."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    which = Pass("train", CPU, generator, start=start, skip=skip)
    return [inputs.flatten().tolist() for inputs, _ in job.batches(which)]


@pytest.mark.parametrize(
    "data",
    [
        DATA,
        DataLoader(DATA, batch_size=4, shuffle=True),
        DataLoader(DATA, batch_size=4, num_workers=1),
        DataLoader(DATA, batch_size=4, sampler=SubsetRandomSampler(range(10))),
        DataLoader(DATA, batch_size=4, sampler=WeightedRandomSampler([1.0] * 10, 10)),
    ],
    ids=["data-set", "shuffling-loader", "worker", "subset", "weighted"],
)
def test_the_order_depends_on_the_generator_alone(data: Any) -> None:
    one = job(data)
    first = read(one)
    assert first == read(one)
    assert first != read(one, seed=2)
    assert list(map(len, first)) == [4, 4, 2]
    assert one.steps_per_epoch() == 3
    assert [read(one, skip=skip) for skip in (1, 2, 3)] == [first[1:], first[2:], []]


def test_without_a_generator_examples_come_in_their_order() -> None:
    assert read(job(DataLoader(DATA, batch_size=5, shuffle=True)), None) == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
    ]


def test_a_loaders_own_collate_function_is_kept() -> None:
    def doubled(examples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        inputs, targets = zip(*examples, strict=True)
        return 2 * torch.stack(inputs), torch.stack(targets)

    assert read(job(DataLoader(DATA, batch_size=10, collate_fn=doubled)), None) == [
        [2.0 * value for value in range(10)]
    ]


class OwnOrder:
    """A sampler that draws from a generator which nobody can set."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(10).tolist())

    def __len__(self) -> int:
        return 10


@pytest.mark.parametrize(
    ("loader", "what"),
    [
        (lambda: DataLoader(DATA, sampler=OwnOrder()), "draws its order without a generator"),
        (
            lambda: DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 3, False)),
            "has a batch sampler of its own",
        ),
    ],
    ids=["sampler", "batch-sampler"],
)
def test_a_loader_whose_order_is_not_the_runs_is_refused(
    loader: Callable[[], Any], what: str
) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        job(loader())
    assert caught.value.where == "job, train"


def test_a_stream_goes_on_where_the_round_before_ended() -> None:
    first, second = job(Counting(16)), job(Counting(16))
    batches = read_some(first, 4)
    assert read_some(second, 2, start=2) == batches[2:]
    assert first.size("train") is None


def read_some(job: TorchJob, count: int, start: int = 0) -> list[list[float]]:
    found = job.batches(Pass("train", CPU, torch.Generator(), start=start))
    return [next(found)[0].flatten().tolist() for _ in range(count)]


def test_a_stream_that_ends_early_says_so() -> None:
    with pytest.raises(DataError, match="stream of training examples has ended"):
        train(nn.Linear(1, 1), job(Counting(6)), steps_plan(3), TrainSettings(), CPU, "north")


def test_a_stream_may_end_with_the_last_step() -> None:
    train(nn.Linear(1, 1), job(Counting(12)), steps_plan(3), TrainSettings(), CPU, "north")


def test_a_stream_needs_steps() -> None:
    with pytest.raises(ConfigError, match="a stream has no epochs") as caught:
        train(nn.Linear(1, 1), job(Counting()), plan(), TrainSettings(), CPU, "north")
    assert "local-steps" in str(caught.value)


def steps_plan(steps: int) -> RoundPlan:
    return plan(local_epochs=0, local_steps=steps)


def test_a_parameter_group_trains_at_the_plans_rate_times_its_own_scale() -> None:
    def groups(model: nn.Module) -> torch.optim.Optimizer:
        weight, bias = model.parameters()
        scaled: list[dict[str, Any]] = [{"params": [weight]}, {"params": [bias], "lr_scale": 0.25}]
        return torch.optim.SGD(scaled, lr=1.0)

    model = nn.Linear(1, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    only = TensorDataset(torch.ones(2, 1), torch.ones(2, 1))
    train(model, job(only, optimizer=groups), steps_plan(1), TrainSettings(), CPU, "north")
    # The gradient of (w + b - 1)**2 at 0 is -2 for both.
    assert model.weight.item() == pytest.approx(0.2)
    assert model.bias.item() == pytest.approx(0.05)


def test_a_loss_as_sum_and_count_is_a_mean_over_all_units() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        return (outputs - targets).abs().sum(), 3 * len(targets)

    found = evaluate(nn.Identity(), job(validation=DATA, loss=loss), "validation", CPU)
    assert found.loss == pytest.approx(sum(range(10)) / 30)
    assert found.num_examples == 10


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def test_a_batch_keeps_its_form_on_the_way_to_a_device() -> None:
    batch = {"pair": Pair(X, X), "list": [X, "text"], "number": 3}
    moved = to_device(batch, torch.device("meta"))
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].left.device.type == moved["list"][0].device.type == "meta"
    assert (moved["list"][1], moved["number"]) == ("text", 3)


class Words(Dataset[dict[str, Any]]):
    """Examples that are mappings with text in them."""

    def __init__(self, last: str) -> None:
        self.words = ["a", "b", last]

    def __len__(self) -> int:
        return 3

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"word": self.words[row], "value": torch.tensor([row])}


def test_a_fingerprint_changes_with_the_examples() -> None:
    assert job(Words("c")).fingerprint() == job(Words("c")).fingerprint()
    assert job(Words("c")).fingerprint() != job(Words("d")).fingerprint()
    assert job(DATA).fingerprint() != job(TensorDataset(X + 1, X)).fingerprint()
    assert job(Counting()).fingerprint() == "", "to read from a stream could change what comes next"
    flat = TensorDataset(X, torch.arange(10))
    assert job(flat).fingerprint() != job(TensorDataset(X, torch.arange(10) + 1)).fingerprint()


def test_a_fingerprint_covers_whole_arrays_and_does_not_change_by_augmentation() -> None:
    class Arrays(Dataset[Any]):
        def __init__(self, last: float) -> None:
            self.values = np.zeros(5000)
            self.values[2500] = last

        def __len__(self) -> int:
            return 1

        def __getitem__(self, row: int) -> Any:
            return self.values, torch.rand(1)

    assert job(Arrays(0)).fingerprint() == job(Arrays(0)).fingerprint()
    assert job(Arrays(0)).fingerprint() != job(Arrays(1)).fingerprint()


def test_a_loaders_sampler_chooses_the_examples_of_an_evaluation_too() -> None:
    loader = DataLoader(DATA, batch_size=4, sampler=SubsetRandomSampler(range(6, 10)))
    one = job(DATA, validation=loader)
    assert one.size("validation") == 4
    found = [x for inputs, _ in one.batches(Pass("validation", CPU)) for x in inputs.flatten()]
    assert sorted(map(float, found)) == [6, 7, 8, 9]


@pytest.mark.parametrize(
    ("loader", "steps", "examples"),
    [
        (lambda: DataLoader(DATA, batch_size=4, drop_last=True), 2, 8),
        (lambda: DataLoader(DATA, 4, sampler=RandomSampler(DATA, True, 6)), 2, 6),
    ],
    ids=["drop-last", "with-replacement"],
)
def test_a_loaders_length_is_kept(loader: Callable[[], Any], steps: int, examples: int) -> None:
    one = job(loader())
    assert one.steps_per_epoch() == steps
    assert sum(map(len, read(one))) == examples


class Large(IterableDataset[tuple[Tensor, Tensor]]):
    """A stream far longer than memory: what was read is not kept."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield torch.zeros(1_000_000), torch.zeros(1)


def test_a_stream_is_read_no_further_than_needed() -> None:
    found = job(Large()).batches(Pass("train", CPU, torch.Generator()))
    assert [len(next(found)[0]) for _ in range(3)] == [4, 4, 4]


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_share_each_batch(ranks: int) -> None:
    rows = torch.arange(10.0)[:, None]
    own = job(TensorDataset(rows, rows), batch_size=4)

    def read_as(rank: int, of: int) -> list[Any]:
        order = torch.Generator().manual_seed(1)
        return list(own.batches(Pass("train", CPU, order, rank=rank, ranks=of)))

    shared = [read_as(rank, ranks) for rank in range(ranks)]
    for whole, *parts in zip(read_as(0, 1), *shared, strict=True):
        counting = [part[0] for part in parts if not isinstance(part, Spare)]
        assert sorted(torch.cat(counting).flatten().tolist()) == sorted(whole[0].flatten().tolist())
    # The last batch has two examples, too few for two processes.
    assert all(isinstance(parts[-1], Spare) for parts in shared[1:])
