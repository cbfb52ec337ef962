"""A trial of the model before a run: it finds within seconds what would fail in the run."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdc_flower.models.tensors import tensors_of, trainable_names
from mdc_flower.training.arrays import load_arrays, model_arrays
from mdc_flower.training.job import Job, Pass
from mdc_flower.training.loop import TrainSettings, evaluating, train
from strategies.common.errors import MdcError, ModelError
from strategies.method.round_plan import RoundPlan

CPU = torch.device("cpu")

STEP = RoundPlan(round=1, local_steps=1, lr_max=1e-3, lr_min=1e-3, shape="constant", seed=0)


def try_model(job: Job, settings: TrainSettings) -> None:
    """Train a job's model for one step, and rebuild it from its arrays.

    The trial runs in float32 on the CPU, so that a coordinator without a GPU can run it.

    Parameters
    ----------
    job
        The run's job, with few training examples and one step per epoch.
    settings
        Settings of the run, in float32 and not compiled.

    Raises
    ------
    ModelError
        If the step fails, if there is nothing to train, or if a model that is rebuilt from the
        arrays differs from the trained one.
    """
    new_model = job.model
    model = new_model()
    initial, names = model_arrays(model), trainable_names(model)
    _check_parameters(initial, names)
    _check_memory(model)
    try:
        train(model, job, STEP, settings, CPU, "trial")
    except MdcError:
        raise
    except Exception as error:  # user code may raise any exception
        raise ModelError(
            f"the model cannot be trained: {type(error).__name__}: {error}",
            where="model",
            hint="The trial trains for one step on two examples",
        ) from error
    rebuilt = new_model()
    if not _same(initial, model_arrays(rebuilt)):
        raise ModelError(
            "the model's initial weights differ each time it is built",
            where="model",
            hint="Draw them from the global generators of torch, numpy or random, which are seeded",
        )
    load_arrays(rebuilt, model_arrays(model, initial))
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


def _same(one: Mapping[str, NDArray[np.generic]], other: Mapping[str, NDArray[np.generic]]) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


def _evaluated(model: nn.Module, job: Job) -> Tensor:
    """Return loss and sums of the training examples, as in evaluation."""
    job.prepare(model)
    with evaluating(model, CPU, None):
        done = [job.forward(model, batch) for batch in job.batches(Pass("train", CPU))]
    values = [[one.loss.double().reshape(1), *one.sums.values()] for one in done]
    return torch.cat([value for one in values for value in one])
