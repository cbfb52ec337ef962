"""`torch_job`: a job made from what people have: a data set, a model, a loss and an optimizer."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from mdc_flower.common.digests import add_to_digest
from mdc_flower.common.seeded import seeded
from mdc_flower.jobs.metrics import JobMetric
from mdc_flower.training.batches import shuffled, steps_per_epoch
from mdc_flower.training.job import Forward, Part, Pass
from mdc_flower.training.micro_batches import length_of, rows_of
from mdc_flower.training.optimizers import SGD
from strategies.common.errors import ConfigError, DataError
from strategies.exchange.metrics import LOSS, Metric

Data = Dataset[Any] | DataLoader[Any]
"""Examples of a split: a map-style or iterable data set, or a loader of one."""

LossFunction = Callable[[Any, Any], Tensor | tuple[Tensor, int]]
"""Takes outputs and targets; returns the mean over the examples, or (sum, count)."""

WHOLE = Part(slice(None))
"""A batch that no other process shares."""

FINGERPRINT_ROWS = 64
"""About how many examples a fingerprint covers: reading all would take long."""


def torch_job(
    *,
    model: Callable[[], nn.Module],
    loss: LossFunction,
    train: Data | None = None,
    validation: Data | None = None,
    test: Data | None = None,
    metrics: Iterable[JobMetric | Metric] = (),
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    batch_size: int = 32,
    forward: Callable[[Callable[..., Any], Any], tuple[Any, Any]] | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    loss_metric: Metric = LOSS,
    signature: Mapping[str, str | float] | None = None,
) -> "TorchJob":
    """Return a job made from PyTorch's own parts.

    Parameters
    ----------
    model
        Builds the model. The global random generators are seeded with the run's seed meanwhile.
    loss
        Takes the model's outputs and the targets; returns the mean loss over the examples as a
        scalar tensor, or the sum and what it is a sum over, such as a number of tokens.
    train, validation, test
        The examples. A site needs ``train``, and may have ``validation``; a coordinator needs none.
        A `DataLoader` says how to read: its batch size, ``collate_fn``, workers and sampler are
        kept; its order is drawn anew from the run's seed. An `IterableDataset` is a stream:
        training is then counted in steps (``local-steps``).
    metrics
        What to measure; see `mdc_flower.jobs.metrics`. A plain `Metric` is computed from the sums
        of another one, or from those of the loss: ``Metric(..., sums="loss", size=2)``.
    optimizer
        Takes the model; returns its optimizer. The run's plan sets the learning rate before each
        step: a parameter group trains at that rate times its own ``lr_scale``, 1 by default. By
        default SGD with momentum 0.9.
    batch_size
        Examples per batch, for data that are no `DataLoader`.
    forward
        Takes model and batch; returns outputs and targets. By default a batch is a pair of inputs
        and targets, and the outputs are ``model(inputs)``.
    collate
        Makes a batch of a list of examples; by default as PyTorch does.
    loss_metric
        How the loss is reported: for example ``replace(LOSS, size=2)`` for a mean over tokens.
    signature
        What coordinator and sites must have in common, by name: texts, numbers or bools, such as
        the number of labels and the digest of a tokenizer. The metrics are compared in any case. A
        site with another value does not train.

    Raises
    ------
    ConfigError
        If a loader's order cannot be drawn from the run's seed.
    """
    given = {"train": train, "validation": validation, "test": test}
    splits = {
        name: Split.of(data, name, batch_size, collate)
        for name, data in given.items()
        if data is not None
    }
    return TorchJob(
        model,
        loss,
        splits,
        tuple(metrics),
        optimizer or _sgd,
        forward or _pair,
        loss_metric,
        signature or {},
    )


@dataclass(frozen=True)
class Split:
    """The examples of a split, and how to read them."""

    data: Dataset[Any]
    batch_size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    sampler: Any = None

    @classmethod
    def of(
        cls, data: Data, name: str, batch_size: int, collate: Callable[[list[Any]], Any] | None
    ) -> "Split":
        """Return a split of a data set or of a loader's data set."""
        if not isinstance(data, DataLoader):
            return cls(data, batch_size, {"collate_fn": collate})
        if data.batch_size is None:
            raise ConfigError(
                "the loader has a batch sampler of its own, or makes no batches",
                where=f"job, {name}",
                expected="a DataLoader with batch_size",
                hint="Give the order by a sampler with the attribute `generator`",
            )
        kept = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "drop_last")
        options = {key: getattr(data, key) for key in kept}
        own = None
        if not isinstance(data.dataset, IterableDataset) and not _takes_all(data):
            own = data.sampler
            if name == "train" and not hasattr(own, "generator"):
                raise ConfigError(
                    "the loader's sampler draws its order without a generator",
                    where=f"job, {name}",
                    got=type(own).__name__,
                    expected="a sampler with the attribute `generator`",
                    hint="Otherwise a repeated round would train on other batches",
                )
        return cls(data.dataset, data.batch_size, options, own)

    @property
    def is_stream(self) -> bool:
        """Return whether the examples can only be read in their order."""
        return isinstance(self.data, IterableDataset)

    def __len__(self) -> int:
        """Return the number of examples of data that are no stream."""
        return len(self.data if self.sampler is None else self.sampler)  # type: ignore[arg-type]

    def batches(
        self, generator: torch.Generator | None, start: int, for_gpu: bool = False
    ) -> Iterator[Any]:
        """Yield batches: in an order drawn from the generator, or in the stored order.

        A stream is in its own order, and ``start`` of its batches were read in earlier rounds.
        Batches for a GPU are in pinned memory, so that copying them does not wait for the GPU.

        Raises
        ------
        DataError
            If a stream of training examples ends.
        """
        options = {key: value for key, value in self.options.items() if value is not None}
        options["pin_memory"] = options.get("pin_memory", False) or for_gpu
        if self.is_stream and generator is not None:
            yield from islice(DataLoader(self.data, self.batch_size, **options), start, None)
            raise DataError(
                "the stream of training examples has ended",
                where="job, train",
                hint="It must last for all steps of the run; let it begin anew itself",
            )
        if self.sampler is not None:
            # An evaluation is over the same examples, in the same order, each time.
            drawn = generator or torch.Generator().manual_seed(0)
            if hasattr(self.sampler, "generator"):
                self.sampler.generator = drawn
            loader: DataLoader[Any] = DataLoader(
                self.data, self.batch_size, sampler=self.sampler, generator=drawn, **options
            )
        elif generator is None:
            loader = DataLoader(self.data, self.batch_size, **{**options, "drop_last": False})
        else:
            drop = options.pop("drop_last", False)
            order = [rows.tolist() for rows in shuffled(len(self), self.batch_size, generator)]
            order = order[: len(self) // self.batch_size] if drop else order
            loader = DataLoader(self.data, batch_sampler=order, generator=generator, **options)
        yield from loader

    def steps(self) -> int:
        """Return the number of batches of an epoch."""
        if self.options.get("drop_last"):
            return len(self) // self.batch_size
        if self.sampler is None:
            return steps_per_epoch(len(self), self.batch_size)
        return -(-len(self) // self.batch_size)


@dataclass(frozen=True)
class TorchJob:
    """A job made of PyTorch's parts; see `torch_job`."""

    new_model: Callable[[], nn.Module]
    loss: LossFunction
    splits: Mapping[str, Split]
    measured: Sequence[JobMetric | Metric]
    new_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    outputs_and_targets: Callable[[Callable[..., Any], Any], tuple[Any, Any]]
    loss_metric: Metric
    agreed: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def metrics(self) -> Sequence[Metric]:
        """The loss, and what is measured."""
        declared = (one.metric if isinstance(one, JobMetric) else one for one in self.measured)
        return (self.loss_metric, *declared)

    def model(self) -> nn.Module:
        """Return a new model."""
        return self.new_model()

    def prepare(self, model: nn.Module) -> None:
        """Change nothing."""

    def batches(self, which: Pass) -> Iterator[Any]:
        """Yield the batches of a pass, on its device; of each the part of this process."""
        for_gpu = which.device.type == "cuda"
        for batch in self.splits[which.split].batches(which.generator, which.start, for_gpu):
            part = which.part(length_of(batch)) if which.ranks > 1 else WHOLE
            own = batch if part is WHOLE else rows_of(batch, part.rows)
            yield part.of(to_device(own, which.device))

    def size(self, split: str) -> int | None:
        """Return the number of examples of a split; 0 without the split, None for a stream."""
        if split not in self.splits:
            return 0
        return None if self.splits[split].is_stream else len(self.splits[split])

    def fingerprint(self) -> str:
        """Return a digest of some training examples; empty for a stream."""
        split = self.splits["train"]
        if split.is_stream:
            return ""  # to read from it could change what is read next
        digest = hashlib.sha256(str(len(split)).encode())
        total = len(split.data)  # type: ignore[arg-type]
        with seeded(0):  # a data set may augment its examples
            for row in range(0, total, max(1, total // FINGERPRINT_ROWS)):
                add_to_digest(digest, split.data[row])
        return digest.hexdigest()

    def steps_per_epoch(self) -> int:
        """Return the number of batches of an epoch.

        Raises
        ------
        ConfigError
            If the training examples are a stream.
        """
        split = self.splits["train"]
        if split.is_stream:
            raise ConfigError(
                "a stream has no epochs",
                where="job, train",
                got="an IterableDataset in a run that counts epochs",
                expected="local-steps, and num-rounds or step-budget, in the run config",
            )
        return split.steps()

    def forward(self, model: Callable[..., Any], batch: Any) -> Forward:
        """Return loss and sums of a batch."""
        outputs, targets = self.outputs_and_targets(model, batch)
        if isinstance(self.loss, nn.Module):
            self.loss.to(outputs.device)  # class weights
        found = self.loss(outputs, targets)
        loss_sum = None
        if isinstance(found, tuple):
            loss_sum, count = found
            loss = loss_sum / max(count, 1)
        else:
            loss, count = found, _count(targets)
        training = torch.is_grad_enabled()
        with torch.no_grad():
            sums = {
                one.metric.sums: one.sums(outputs, targets).double()
                for one in self.measured
                if isinstance(one, JobMetric) and (one.metric.in_training or not training)
            }
        exact = None if loss_sum is None else loss_sum.detach().double()
        return Forward(loss, count, sums, exact, _count(targets))

    def signature(self) -> Mapping[str, str | float]:
        """Return what coordinator and sites must have in common, beside the metrics."""
        return self.agreed

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return a new optimizer."""
        return self.new_optimizer(model)


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device; tuples, lists and mappings keep their form."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _takes_all(loader: DataLoader[Any]) -> bool:
    """Return whether a loader reads each example once, in any order that the run may choose."""
    sampler = loader.sampler
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    return isinstance(sampler, SequentialSampler)


def _pair(model: Callable[..., Any], batch: Any) -> tuple[Any, Any]:
    """Return outputs and targets of a batch that is a pair of inputs and targets."""
    inputs, targets = batch
    return model(inputs), targets


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return SGD(trainable, lr=0.0, momentum=0.9)


def _count(targets: Any) -> int:
    """Return the number of examples of a batch: the length of its targets."""
    if isinstance(targets, Mapping):
        return _count(next(iter(targets.values())))
    return len(targets)
