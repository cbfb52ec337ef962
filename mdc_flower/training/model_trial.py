"""A trial of the model before a run: it finds within seconds what would fail in the run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdc_flower.common.seeded import seeded
from mdc_flower.common.user_code import user_code
from mdc_flower.models.exchange import (
    ALL,
    base_digests,
    check_unchanged,
    digests_of,
    exchanged_names,
    kept_names,
)
from mdc_flower.models.tensors import tensors_of, trainable_names
from mdc_flower.training.arrays import array_views, load_arrays
from mdc_flower.training.job import Counted, Forward, Job, Pass
from mdc_flower.training.loop import TrainSettings, evaluating, train
from strategies.common.errors import ConfigError, DataError, ModelError
from strategies.exchange.metrics import Metric
from strategies.method.round_plan import RoundPlan

CPU = torch.device("cpu")

STEP = RoundPlan(round=1, local_steps=1, lr_max=1e-3, lr_min=1e-3, shape="constant", seed=0)


def try_model(job: Job, settings: TrainSettings, exchange: str = ALL, keep: str = "") -> None:
    """Train a job's model for one step, and rebuild it from its arrays.

    The trial runs in float32 on the CPU, so that a coordinator without a GPU can run it.

    Parameters
    ----------
    job
        The run's job, with few training examples and one step per epoch.
    settings
        Settings of the run, in float32 and not compiled.
    exchange, keep
        The arrays that are exchanged, and those that sites keep; see `exchanged_names`.

    Raises
    ------
    ModelError
        If the step fails, if it changes an array that is not exchanged, if there is nothing to
        train, or if a model that is rebuilt from the arrays differs from the trained one.
    """
    model = job.model()
    _check_tensors(model)
    _try_step(job, model, settings, exchange, keep)


def _try_step(
    job: Job, model: nn.Module, settings: TrainSettings, exchange: str, keep: str
) -> None:
    """Train a new model of the job for one step, and rebuild it from its arrays.

    A model may fill much of the memory, so there are no more copies than in training.
    """
    initial = digests_of(model, tensors_of(model))
    changing = [*exchanged_names(model, exchange, keep), *kept_names(model, keep)]
    base = base_digests(model, changing)
    hint = "The trial trains for one step"
    with user_code(ModelError, "the model cannot be trained", where="model", hint=hint):
        train(model, job, STEP, settings, CPU, "trial")
    model.zero_grad(set_to_none=True)
    check_unchanged(digests_of(model, base), base)
    rebuilt = job.model()
    if digests_of(rebuilt, initial) != initial:
        raise ModelError(
            "the model's initial weights differ each time it is built",
            where="model",
            hint="Draw them from the global generators of torch, numpy or random, which are seeded",
        )
    load_arrays(rebuilt, array_views(model, initial))
    if not torch.allclose(
        _evaluated(model, job),
        _evaluated(rebuilt, job),
        rtol=1e-4,
        atol=1e-6,
        equal_nan=True,
    ):
        raise ModelError(
            "a model rebuilt from the arrays of the trained model gives different results",
            where="model",
            hint="It has state that is neither a parameter nor a persistent buffer, and that "
            "changes in training or is drawn without the seed. Register it as a buffer",
        )


def try_job(
    job: Job,
    settings: TrainSettings,
    counts_steps: bool = False,
    exchange: str = ALL,
    keep: str = "",
) -> None:
    """Check the first batch of a job, and train its model on it for one step.

    Where the job has no training examples, as at a coordinator without data, only the model is
    checked.

    Parameters
    ----------
    job
        The run's job.
    settings
        Settings of the run, in float32 and not compiled.
    counts_steps
        Whether the run counts its local work in steps, not in epochs.
    exchange, keep
        The arrays that are exchanged, and those that sites keep; see `exchanged_names`.

    Raises
    ------
    ModelError
        If the model cannot be built, or see `try_model`.
    DataError
        If there is no batch.
    ConfigError
        If the job's forward pass gives what the job has not declared, or a metric gives no value.
    """
    with user_code(ModelError, "the model cannot be built", where="job"):
        model = job.model()
    _check_tensors(model)
    with user_code(DataError, "the training examples cannot be counted", where="job"):
        if job.size("train") == 0:
            return
        if not counts_steps:
            job.steps_per_epoch()
        job.fingerprint()
    with user_code(DataError, "the job gives no batch", where="job"):
        batches = iter(job.batches(Pass("train", CPU, torch.Generator().manual_seed(0))))
        first = next(batches, None)
    if first is None:
        raise DataError("the job has training examples, but gives no batch", where="job, train")
    trial = _OneBatch(job, first)
    with seeded(0):
        _check_forward(trial)
        _check_metrics(trial)
    _try_step(trial, model, settings, exchange, keep)


@dataclass(frozen=True)
class _OneBatch:
    """A job reduced to its first batch."""

    job: Job
    first: Any

    @property
    def metrics(self) -> Sequence[Metric]:
        return self.job.metrics

    def model(self) -> nn.Module:
        return self.job.model()

    def prepare(self, model: nn.Module) -> None:
        self.job.prepare(model)

    def batches(self, which: Pass) -> list[Any]:
        return [self.first]

    def size(self, split: str) -> int:
        return 1

    def fingerprint(self) -> str:
        return ""

    def steps_per_epoch(self) -> int:
        return 1

    def forward(self, model: Callable[[Any], Any], batch: Any) -> Forward:
        return self.job.forward(model, batch)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return self.job.optimizer(model)


def _check_forward(job: _OneBatch) -> None:
    """Refuse a forward pass that gives no usable loss, or sums that the job has not declared."""
    model = job.model().train()
    job.prepare(model)
    got, hint = _described(job.first), "The trial is of the first training batch, on the CPU"
    with user_code(ModelError, "the forward pass fails", where="job", got=got, hint=hint):
        done = job.forward(model, job.first)
    for what, got, expected in _misfits(done, job.metrics):
        raise ConfigError(what, where="job, forward", got=got, expected=expected)


def _check_metrics(job: _OneBatch) -> None:
    """Refuse a metric that gives no value, or none that can select a model."""
    model = job.model()
    failing = user_code(ModelError, "the evaluation fails", where="job")
    with failing, evaluating(model, CPU, None):
        sums = {n: of.tolist() for n, of in job.forward(model, job.first).sums.items()}
    for metric in job.metrics:
        if metric.sums not in sums:
            continue
        where = f"job, metric {metric.name!r}"
        try:
            value = metric.compute(sums[metric.sums])
        except ValueError as error:
            raise ConfigError("it gives no value", where=where, said=str(error)) from error
        if metric.selects and isinstance(value, list):
            raise ConfigError(
                "it selects the best model, so it must be one number",
                where=where,
                got=f"{len(value)} numbers",
            )


def _misfits(done: Forward, metrics: Sequence[Metric]) -> Iterator[tuple[str, str, str]]:
    """Yield what is wrong with a result: what, got, expected."""
    loss = done.loss
    if not isinstance(loss, Tensor):
        yield "the loss is not a tensor", type(loss).__name__, "a scalar tensor with a gradient"
        return
    if loss.ndim:
        yield "the loss is not one number", f"shape {list(loss.shape)}", "a scalar: the mean loss"
    elif not torch.isfinite(loss):
        yield "the loss of the untrained model is not finite", str(float(loss)), "a finite number"
    if not loss.requires_grad:
        yield (
            "the loss has no gradient",
            "a loss that depends on no trainable parameter",
            "a loss computed from the model's outputs, outside of torch.no_grad",
        )
    if isinstance(done.count, Tensor):
        yield "the count is a tensor", str(done.count), "an int, which takes no wait for the device"
    elif done.count < 1:
        yield "the loss is over no examples", str(done.count), "a count of at least 1"
    sizes = {metric.sums: metric.size for metric in metrics}
    for name, sums in done.sums.items():
        if name not in sizes:
            known = ", ".join(sorted(sizes))
            yield "the forward pass gives sums of no declared metric", name, f"one of: {known}"
        elif sizes[name] and list(sums.shape) != [sizes[name]]:
            shape = str(list(sums.shape))
            yield f"the sums {name!r} have another size", shape, f"[{sizes[name]}]"


def _described(batch: Any) -> str:
    """Return the shapes in a batch, for an error."""
    if isinstance(batch, Counted):
        return _described(batch.batch)
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')}{list(batch.shape)}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {_described(of)}" for key, of in batch.items()) + "}"
    if isinstance(batch, list | tuple):
        return "(" + ", ".join(map(_described, batch)) + ")"
    return type(batch).__name__


def _check_tensors(model: nn.Module) -> None:
    """Refuse a new model whose parameters cannot be trained and averaged."""
    _check_parameters(array_views(model), trainable_names(model))
    _check_memory(model)


def _check_parameters(arrays: Mapping[str, NDArray[np.generic]], names: frozenset[str]) -> None:
    if not names:
        raise ModelError(
            "the model has no parameter to train",
            where="model",
            got="no parameters" if not arrays else "all parameters are frozen",
            expected="at least one parameter with requires_grad",
        )
    for name in sorted(names):
        if not np.issubdtype(arrays[name].dtype, np.floating):
            raise ModelError(
                "the parameter has a type that cannot be averaged",
                where=f"array {name!r}",
                got=str(arrays[name].dtype),
                expected="float32",
            )
        if not np.isfinite(arrays[name]).all():
            raise ModelError(
                "the parameter's initial values are not all finite", where=f"array {name!r}"
            )


def _check_memory(model: nn.Module) -> None:
    """Refuse tensors that share memory: the optimizer sees two, but loading fills only one."""
    seen: dict[int, str] = {}
    for name, tensor in tensors_of(model).items():
        first = seen.setdefault(tensor.data_ptr(), name)
        if tensor.numel() and first != name:
            raise ModelError(
                "two parameters or buffers share their memory",
                where="model",
                got=f"{first!r} and {name!r}",
                hint="To tie weights, assign the parameter itself, not its data",
            )


def _evaluated(model: nn.Module, job: Job) -> Tensor:
    """Return loss and sums of the training examples, as in evaluation."""
    job.prepare(model)
    with evaluating(model, CPU, None):
        done = [job.forward(model, batch) for batch in job.batches(Pass("train", CPU))]
    values = [[one.loss.double().reshape(1), *one.sums.values()] for one in done]
    return torch.cat([value for one in values for value in one])
