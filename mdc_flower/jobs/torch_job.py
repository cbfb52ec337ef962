"""`torch_job`: a job made from what people have: a data set, a model, a loss and an optimizer."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mdc_flower.common.digests import add_to_digest
from mdc_flower.common.seeded import seeded
from mdc_flower.jobs.metrics import JobMetric
from mdc_flower.jobs.split import Data, Split
from mdc_flower.training.job import Counted, Forward, Part, Pass
from mdc_flower.training.micro_batches import length_of, rows_of
from mdc_flower.training.optimizers import SGD
from strategies.common.errors import ConfigError
from strategies.exchange.metrics import LOSS, Metric

LossFunction = Callable[[Any, Any], Tensor | tuple[Tensor, int | Tensor]]
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
    units: Callable[[Any], Tensor] | None = None,
) -> "TorchJob":
    """Return a job made from PyTorch's own parts.

    Parameters
    ----------
    model
        Builds the model. The global random generators are seeded with the run's seed meanwhile.
    loss
        Takes the model's outputs and the targets; returns the mean loss over the examples as a
        scalar tensor, or the sum and what it is a sum over, such as a number of tokens. If that
        number is computed on a GPU, every step waits for it, unless ``units`` counts it before.
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
    units
        Takes a batch on the CPU, before it goes to the device; returns how many tokens (pixels, and
        so on) each example adds to what the loss is over: integers, first axis the examples. A
        loss that is a mean is then one over these.

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
        units,
    )


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
    units: Callable[[Any], Tensor] | None = None

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
        split = self.splits[which.split]
        for batch in split.batches(which.generator, which.start, for_gpu, which.skip):
            part = which.part(length_of(batch)) if which.ranks > 1 else WHOLE
            own = batch if part is WHOLE else rows_of(batch, part.rows)
            there = to_device(own, which.device)
            yield part.of(there if self.units is None else Counted(there, self.units(own)))

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
        """Return loss and sums of a batch.

        Raises
        ------
        ConfigError
            In an evaluation on the CPU, if loss and ``units`` do not count alike.
        """
        batch, units = batch if isinstance(batch, Counted) else (batch, None)
        outputs, targets = self.outputs_and_targets(model, batch)
        if isinstance(self.loss, nn.Module):
            self.loss.to(outputs.device)  # class weights
        found, loss_sum = self.loss(outputs, targets), None
        count = _count(targets) if units is None else _total(units)
        training = torch.is_grad_enabled()
        if isinstance(found, tuple):
            loss_sum, said = found
            if units is None:
                count = int(said)
            elif not training:
                _check_count(said, count)
            loss = loss_sum / max(count, 1)
        else:
            loss = found
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


def _pair(model: Callable[..., Any], batch: Any) -> tuple[Any, Any]:
    """Return outputs and targets of a batch that is a pair of inputs and targets."""
    inputs, targets = batch
    return model(inputs), targets


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return SGD(trainable, lr=0.0, momentum=0.9)


def _total(units: Tensor) -> int:
    """Return the sum of numbers that are on the CPU."""
    return int(units.numpy().sum())


def _check_count(said: int | Tensor, count: int) -> None:
    """Hold that the loss counts as ``units`` does, where to read its number is not to wait."""
    if (not isinstance(said, Tensor) or said.device.type == "cpu") and int(said) != count:
        raise ConfigError(
            "the loss is over another number than `units` counts",
            where="job, loss",
            got=f"{int(said)} from the loss, {count} from units",
        )


def _count(targets: Any) -> int:
    """Return the number of examples of a batch: the length of its targets."""
    if isinstance(targets, Mapping):
        return _count(next(iter(targets.values())))
    return len(targets)
