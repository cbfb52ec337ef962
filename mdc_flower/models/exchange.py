"""Which arrays of a model a run exchanges, and the others, its base, which stay where they are."""

import difflib
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mdc_flower.models.tensors import first_names, tensors_of, trainable_names
from strategies.common.errors import ConfigError, ModelError

ALL, TRAINABLE = "all", "trainable"


def exchanged_names(model: nn.Module, exchange: str) -> list[str]:
    """Return the names of the arrays that coordinator and sites exchange, in the model's order.

    Parameters
    ----------
    model
        A new model, as in `tensors_of`.
    exchange
        ``all``, or words separated by commas. Each is the pattern of a name (``*``, ``?``,
        ``[...]``), or ``trainable``: every trainable parameter, and the buffers of the layers that
        have one.

    Raises
    ------
    ConfigError
        If a word matches nothing, or if a trainable parameter is not exchanged.
    """
    names = list(tensors_of(model))
    if exchange == ALL:
        return names
    words = [word.strip() for word in exchange.split(",") if word.strip()]
    chosen = {name for word in words for name in _matching(model, word)}
    if lost := [name for name in names if name in trainable_names(model) - chosen]:
        raise ConfigError(
            "a trainable parameter is not exchanged, so its training would be lost",
            where="exchange",
            got=f"{exchange!r}, without {lost[0]!r}",
            hint="Freeze it with requires_grad_(False), or exchange it",
        )
    return [name for name in names if name in chosen]


def base_digests(model: nn.Module, exchanged: Collection[str]) -> dict[str, str]:
    """Return the SHA-256, in hex, of each array that is not exchanged: type, shape and values."""
    rest = [name for name in tensors_of(model) if name not in exchanged]
    return digests_of(model, rest)


def base_of(digests: Mapping[str, str]) -> str:
    """Return the SHA-256, in hex, of all these names and digests; empty if there are none."""
    return hashlib.sha256(json.dumps([*digests.items()]).encode()).hexdigest() if digests else ""


def digests_of(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return the digests of a model's arrays; at no time is there a copy of more than one."""
    tensors = tensors_of(model)
    return {name: digest_of(tensors[name].detach().cpu().contiguous().numpy()) for name in names}


def digest_of(array: NDArray[np.generic]) -> str:
    """Return the SHA-256, in hex, of an array: type, shape and values."""
    about = json.dumps([str(array.dtype), list(array.shape)])
    digest = hashlib.sha256(about.encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def check_unchanged(now: Mapping[str, str], before: Mapping[str, str]) -> None:
    """Check that arrays still have the digests that they had before training.

    Raises
    ------
    ModelError
        Naming the first array that has changed.
    """
    if changed := [name for name, digest in now.items() if digest != before[name]]:
        raise ModelError(
            "training changed an array that is not exchanged, so the change would be lost",
            where="model",
            got=f"{changed[0]!r}, the first of {len(changed)} that changed",
            hint="Add it to `exchange`. Or keep its layer from changing it: a frozen BatchNorm "
            "must stay in evaluation mode, so let train() of its module call super().train(False)",
        )


def check_base(own: str, expected: str, where: str) -> None:
    """Check that the arrays that are not exchanged are those of the other side, by `base_of`.

    Raises
    ------
    ModelError
        If they are not.
    """
    if own != expected:
        raise ModelError(
            "the arrays that are not exchanged, the model's base, are not the same here",
            where=where,
            got=f"SHA-256 {own[:16]}" if own else "no such arrays",
            expected=f"SHA-256 {expected[:16]}" if expected else "no such arrays",
            hint="Build the same base everywhere: from the same file of weights, or from the "
            "run's seed with the same versions of the libraries",
        )


def _matching(model: nn.Module, word: str) -> set[str]:
    if word == TRAINABLE:
        found = _trained(model)
    else:
        # A pattern may match any name of a tensor that layers share.
        found = {first for name, first in first_names(model).items() if fnmatchcase(name, word)}
    if not found:
        names = list(tensors_of(model))
        near = difflib.get_close_matches(word, names, n=3, cutoff=0.3) or names[:3]
        raise ConfigError(
            "nothing in the model matches",
            where="exchange",
            got=word,
            expected="'all', 'trainable', or patterns of names, separated by commas",
            hint=f"Names of the model: {', '.join(near)}" + (", ..." if len(names) > 3 else ""),
        )
    return found


def _trained(model: nn.Module) -> set[str]:
    """Return the trainable parameters, and the buffers of the layers that have one of them.

    The running statistics of a BatchNorm layer change together with its weights.
    """
    first, trained = first_names(model), trainable_names(model)
    found = set(trained)
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        own = {first.get(prefix + name) for name, _ in module.named_parameters(recurse=False)}
        if own & trained:
            buffers = [prefix + name for name, _ in module.named_buffers(recurse=False)]
            found |= {first[name] for name in buffers if name in first}
    return found
