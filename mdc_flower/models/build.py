"""Build the model that a config names; its initial weights depend only on the seed."""

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from itertools import chain

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mdc_flower.common.extras import library
from mdc_flower.common.references import load_reference, relative_paths_explained
from mdc_flower.common.seeded import seeded
from mdc_flower.models.audio import audio_cnn, audio_crnn
from mdc_flower.models.resnet9 import resnet9
from mdc_flower.models.small import Shape, fast_cnn, mlp, resnet, small_cnn
from mdc_flower.models.text import text_cnn, text_gru
from strategies.common.errors import ConfigError, MdcError, ModelError
from strategies.common.seeds import derive_seed

ModelFunction = Callable[..., nn.Module]
"""Takes ``(input_shape, num_classes)``, and ``num_tokens`` if it has this parameter."""

MODELS: dict[str, ModelFunction] = {
    "mlp": mlp,
    "small-cnn": small_cnn,
    "fast-cnn": fast_cnn,
    "resnet8": partial(resnet, blocks=1),
    "resnet20": partial(resnet, blocks=3),
    "resnet9": resnet9,
    "audio-cnn": audio_cnn,
    "audio-crnn": audio_crnn,
    "text-cnn": text_cnn,
    "text-gru": text_gru,
}
"""Built-in models, for images, spectrograms and texts."""


LIBRARIES = ("torchvision", "timm")
"""Libraries in ``LIBRARY:NAME``."""

TORCHVISION_OPTIONS: dict[str, dict[str, bool]] = {
    # Without the auxiliary classifiers, which in training return additional outputs. timm also
    # builds its inception_v3 without one.
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
"""Options of torchvision's models that differ from the defaults."""


def user_module(spec: str) -> str:
    """Return the module of a user's model; empty for a built-in or library model."""
    kind, separator, _ = spec.partition(":")
    return kind if separator and spec not in MODELS and kind not in LIBRARIES else ""


def build_model(
    spec: str, input_shape: Shape, num_classes: int, seed: int, num_tokens: int = 0
) -> nn.Module:
    """Return a new model in float32.

    Parameters
    ----------
    spec
        A name in `MODELS`, ``torchvision:NAME``, ``timm:NAME``, or ``module:function``: a
        function of ``(input_shape, num_classes)`` that returns a module.
    input_shape
        Shape of one example, without the batch axis.
    num_classes
        Number of outputs.
    seed
        The run's seed. It seeds the global generators of Python, numpy and torch while the model
        is built; their states are restored afterwards.
    num_tokens
        Number of tokens, for inputs that are tokens; passed by name to a function that has this
        parameter.

    Raises
    ------
    ConfigError
        If there is no such model.
    ModelError
        If the model cannot be built for this shape.
    """
    make = _maker(spec)
    with seeded(derive_seed(seed, "model")):
        try:
            with relative_paths_explained(spec, "model"):
                if _has_num_tokens(make):
                    model = make(input_shape, num_classes, num_tokens=num_tokens)
                else:
                    model = make(input_shape, num_classes)
            if not isinstance(model, nn.Module):
                raise ModelError(
                    "the function did not return a module", where="model", got=type(model).__name__
                )
            model = model.float()
            _initialize_lazy_layers(model, input_shape, num_tokens)
        except MdcError:
            raise
        except Exception as error:  # the name may refer to library or user code
            raise ModelError(
                f"the model cannot be built: {type(error).__name__}: {error}",
                where="model",
                got=spec,
                hint=f"It was built for inputs of shape {input_shape} and {num_classes} classes",
            ) from error
    return model


def _initialize_lazy_layers(model: nn.Module, input_shape: Shape, num_tokens: int) -> None:
    """Initialize lazy layers (`torch.nn.LazyLinear`) while the generators are seeded.

    They get their shapes and weights in the first forward pass.
    """
    if not any(map(is_lazy, chain(model.parameters(), model.buffers()))):
        return
    mode = model.training
    with torch.no_grad():
        dtype = torch.int64 if num_tokens else torch.float32
        model.eval()(torch.zeros(2, *input_shape, dtype=dtype))
    model.train(mode)
    unused = [n for n, t in chain(model.named_parameters(), model.named_buffers()) if is_lazy(t)]
    if unused:
        raise ModelError(
            "a lazy layer is not used in evaluation, so its shape is unknown",
            where="model",
            got=unused[0],
            hint="Replace it with a layer that is not lazy",
        )


def _has_num_tokens(make: ModelFunction) -> bool:
    try:
        return "num_tokens" in inspect.signature(make).parameters
    except (TypeError, ValueError):  # some functions written in C have no signature
        return False


def _maker(spec: str) -> ModelFunction:
    if spec in MODELS:
        return MODELS[spec]
    kind, _, name = spec.partition(":")
    if kind == "torchvision" and name:
        return lambda shape, classes: _torchvision(name, classes)
    if kind == "timm" and name:
        return lambda shape, classes: _timm(name, shape, classes)
    if name:
        return load_reference(spec, "model")
    near = difflib.get_close_matches(spec, MODELS, n=1)
    raise ConfigError(
        "no such model",
        where="model",
        got=spec,
        expected="one of: "
        + ", ".join([*MODELS, "torchvision:NAME", "timm:NAME", "module:function"]),
        hint=f"Did you mean {near[0]!r}?" if near else "",
    )


def _torchvision(name: str, num_classes: int) -> nn.Module:
    import torchvision.models

    builder = torchvision.models.get_model_builder(name)
    options = {"weights": None, "num_classes": num_classes, **TORCHVISION_OPTIONS.get(name, {})}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None  # the default downloads weights
    return builder(**options)  # type: ignore[no-any-return]


def _timm(name: str, input_shape: Shape, num_classes: int) -> nn.Module:
    timm = library("timm", "timm", f"model = 'timm:{name}'")
    model: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=num_classes, in_chans=input_shape[0]
    )
    return model
