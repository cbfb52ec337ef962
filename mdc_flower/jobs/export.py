"""Export a trained model as a program of `torch.export`, which needs none of our code to run.

The program takes raw inputs and returns probabilities: scaling and normalization are part of it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export, save
from torch.nn import functional

from mdc_flower.common.user_code import user_code
from mdc_flower.jobs.classification import class_probabilities
from mdc_flower.jobs.prediction import TrainedModel
from mdc_flower.training.batches import InputPipeline
from mdc_flower.training.numerics import CPU
from strategies.common.errors import ConfigError, ModelError

SUFFIX = ".pt2"
ABOUT = "about.json"
"""Extra file in the program's file: the metadata of the model, such as its classes."""


class RawToProbabilities(nn.Module):
    """A model with what comes before it and after it.

    Parameters
    ----------
    module : nn.Module
        Takes prepared inputs and returns logits.
    about : Mapping
        Metadata with mean and std.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, about: Any, ndim: int) -> None:
        super().__init__()
        self.module = module
        shape = (1, -1) + (1,) * (ndim - 2)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(about[name], dtype=torch.float32).view(shape))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the probability of each class for raw inputs."""
        prepared = inputs
        if inputs.dtype != torch.int64:
            prepared = inputs.float()
            if inputs.dtype == torch.uint8:
                prepared = prepared / 255
            if self.mean.numel():
                prepared = (prepared - self.mean) / self.std
        return functional.softmax(self.module(prepared), dim=1)


def export_model(model: TrainedModel, output: Path) -> None:
    """Write a model's program, after a check that it computes what the model does.

    Parameters
    ----------
    output
        The file, with the suffix ``.pt2``.

    Raises
    ------
    ConfigError
        If the suffix is another one, or the file cannot be written.
    ModelError
        If `torch.export` does not support the model, or the program gives other results.
    """
    if output.suffix != SUFFIX:
        raise ConfigError(
            "the format is not known", where="--output", got=output.name, expected=f"*{SUFFIX}"
        )
    with user_code(ModelError, "the model cannot be exported", where="model"):
        program = _program(model)
    _check_equal(program, model)
    try:
        save(program, output, extra_files={ABOUT: json.dumps(dict(model.about))})
    except OSError as error:
        raise ConfigError(
            f"the file cannot be written: {error.strerror}", where="--output", got=str(output)
        ) from None


def _program(model: TrainedModel) -> ExportedProgram:
    module = model.module.to(CPU).to(memory_format=torch.contiguous_format)
    example = _examples(model, 3)
    whole = RawToProbabilities(module, model.about, example.ndim).eval()
    with torch.no_grad():
        return export(whole, (example,), dynamic_shapes=({0: Dim("inputs", min=1)},))


def _examples(model: TrainedModel, count: int) -> Tensor:
    """Return made-up raw inputs."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, *model.form.shape)
    if model.form.dtype == "uint8":
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if model.form.num_tokens or model.form.dtype == "int64":
        return torch.randint(0, max(1, model.form.num_tokens), shape, generator=generator)
    return torch.randn(shape, generator=generator)


def _check_equal(program: ExportedProgram, model: TrainedModel) -> None:
    pipeline = InputPipeline(model.pipeline.mean, model.pipeline.std, channels_last=False)
    for count in (1, 5):
        examples = _examples(model, count)
        with torch.no_grad():
            found = program.module()(examples)
        expected = class_probabilities(model.module, examples, pipeline, CPU)
        if not torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-5):
            raise ModelError(
                "the exported program gives other results than the model",
                where="model",
                got=f"a difference of {float((found - expected).abs().max()):.3g}",
            )
