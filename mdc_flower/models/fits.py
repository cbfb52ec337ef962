"""Check whether a model accepts a data set's inputs; if not, find inputs that it accepts."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mdc_flower.common.seeded import seeded
from strategies.common.errors import ModelError

SIDES = (32, 48, 64, 75, 96, 128, 160, 192, 224, 256, 299, 384)
"""Heights and widths, in pixels, that are tried to suggest a suitable image size.

VGG and DenseNet need at least 32, Inception 75; transformers accept only the size in their name.
"""


def check_fits(
    model: nn.Module, spec: str, example: Tensor, num_classes: int, channels_last: bool = False
) -> None:
    """Check that a model accepts a data set's inputs and gives one output per class.

    The check runs in evaluation mode and in training mode, where some models return additional
    outputs. Weights, running statistics, mode and random state do not change; the memory layout
    of the weights may.

    Parameters
    ----------
    example
        A batch of at least two examples, as in training.
    channels_last
        Whether training lays out the model's weights channels-last, as it does images.

    Raises
    ------
    ModelError
        If it does not. The error gives the shapes and, for images, a size or number of channels
        that the model would accept, if one is found.
    """
    if channels_last:
        model.to(memory_format=torch.channels_last)
    for training in (False, True):
        try:
            outputs = _outputs(model, example, training)
        except Exception as error:  # the name may refer to library or user code
            if channels_last and _accepts_contiguous(model, example):
                raise ModelError(
                    "the model does not accept images in channels-last memory layout: "
                    f"{type(error).__name__}: {error}",
                    where="model",
                    got=spec,
                    hint="Set channels-last = false, or replace view by flatten or reshape in "
                    "the model",
                ) from error
            raise ModelError(
                f"the model does not fit the data: {type(error).__name__}: {error}",
                where="model",
                got=spec,
                expected=f"a model that accepts inputs of shape {tuple(example.shape[1:])}",
                hint=_suitable_images(model, example),
            ) from error
        if not isinstance(outputs, Tensor) or outputs.shape != (len(example), num_classes):
            when = " in training" if training else ""
            raise ModelError(
                f"the model's output does not match the number of classes{when}",
                where="model",
                got=tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs),
                expected=f"{(len(example), num_classes)}",
            )


def _suitable_images(model: nn.Module, example: Tensor) -> str:
    """Return a sentence about images that the model accepts; empty if none were found."""
    if example.ndim != 4:
        return ""
    _, channels, height, width = example.shape
    larger = [(side, side) for side in SIDES if side > min(height, width)]
    for wanted in dict.fromkeys((channels, 3)):
        for size in ((height, width), *larger):
            if _accepts(model, example.new_zeros(2, wanted, *size)):
                return _sentence(wanted, size, wanted != channels, size != (height, width))
    return ""


def _accepts_contiguous(model: nn.Module, example: Tensor) -> bool:
    return _accepts(model.to(memory_format=torch.contiguous_format), example.contiguous())


def _sentence(channels: int, size: tuple[int, int], recolor: bool, resize: bool) -> str:
    parts = [f"It accepts images (C, H, W) of {(channels, *size)}"]
    if resize:
        parts.append("the key image-size resizes images from files")
    if recolor:
        parts.append("timm:NAME builds a timm model for any number of channels")
    return "; ".join(parts)


def _accepts(model: nn.Module, example: Tensor) -> bool:
    try:
        for training in (False, True):
            _outputs(model, example, training)
    except Exception:  # any exception means that the model rejects the input
        return False
    return True


def _outputs(model: nn.Module, example: Tensor, training: bool) -> object:
    with _restored(model), seeded(0), torch.no_grad():
        return model.train(training)(example)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restore the mode of every submodule and the values of the buffers afterwards."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
