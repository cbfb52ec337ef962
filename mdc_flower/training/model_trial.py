"""A trial of the model before a run: it finds within seconds what would fail in the run."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mdc_flower.data import DataSet
from mdc_flower.models.tensors import tensors_of, trainable_names
from mdc_flower.training.arrays import load_arrays, model_arrays
from mdc_flower.training.batches import InputPipeline, Tensors
from mdc_flower.training.loop import TrainSettings, evaluating, train
from strategies.common.errors import MdcError, ModelError
from strategies.common.seeds import derive_seed
from strategies.method.round_plan import RoundPlan

CPU = torch.device("cpu")

STEP = RoundPlan(round=1, local_steps=1, lr_max=1e-3, lr_min=1e-3, shape="constant", seed=0)


def try_model(
    new_model: Callable[[], nn.Module],
    data: DataSet,
    settings: TrainSettings,
    pipeline: InputPipeline,
) -> None:
    """Train a model for one step on two examples, and rebuild it from its arrays.

    The trial runs in float32 on the CPU, so that a coordinator without a GPU can run it.

    Parameters
    ----------
    new_model
        Builds the model of the run.
    data
        Two of its training examples are used; without examples, two are drawn at random.
    settings, pipeline
        Settings and pipeline of the run.

    Raises
    ------
    ModelError
        If the step fails, if there is nothing to train, or if a model that is rebuilt from the
        arrays differs from the trained one.
    """
    model = new_model()
    initial, names = model_arrays(model), trainable_names(model)
    _check_parameters(initial, names)
    _check_memory(model)
    examples = two_examples(data)
    settings = replace(settings, batch_size=2, autocast_dtype=None, compile=False)
    try:
        train(model, examples, STEP, settings, pipeline, CPU, "trial")
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
    inputs = pipeline(examples.inputs[:], CPU)
    if not torch.allclose(
        _outputs(model, inputs, pipeline),
        _outputs(rebuilt, inputs, pipeline),
        rtol=1e-4,
        atol=1e-6,
        equal_nan=True,
    ):
        raise ModelError(
            "a model rebuilt from the arrays of the trained model gives different outputs",
            where="model",
            hint="It has state that is neither a parameter nor a persistent buffer, and that "
            "changes in training or is drawn without the seed. Register it as a buffer",
        )


def two_examples(data: DataSet) -> Tensors:
    """Return the first and the last training example; random examples if there are none."""
    inputs, labels = data.train.inputs, data.train.labels
    if len(labels):
        rows = [0, -1]
        return Tensors(torch.from_numpy(inputs[rows]), torch.from_numpy(labels[rows]))
    generator = np.random.default_rng(derive_seed(0, "trial"))
    shape = (2, *data.input_shape)
    if inputs.dtype == np.float32:
        drawn: NDArray[np.generic] = generator.random(shape, np.float32)
    else:
        largest = 255 if inputs.dtype == np.uint8 else max(0, data.num_tokens - 1)
        drawn = generator.integers(0, largest, shape, inputs.dtype, endpoint=True)
    return Tensors(torch.from_numpy(drawn), torch.zeros(2, dtype=torch.int64))


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


def _outputs(model: nn.Module, inputs: Tensor, pipeline: InputPipeline) -> Tensor:
    if pipeline.channels_last:
        model.to(memory_format=torch.channels_last)
    with evaluating(model, CPU, None):
        outputs: Tensor = model(inputs)
    return outputs
