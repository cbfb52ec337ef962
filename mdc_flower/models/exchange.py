"""Which arrays of a model a run exchanges, and which each site keeps as its own.

All others are its base: nobody changes it, and it is the same everywhere.
"""

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


def exchanged_names(model: nn.Module, exchange: str, keep: str = "") -> list[str]:
    """Return the names of the arrays that coordinator and sites exchange, in the model's order.

    Parameters
    ----------
    model
        A new model, as in `tensors_of`.
    exchange
        ``all``, or words separated by commas. Each is the pattern of a name (``*``, ``?``,
        ``[...]``), or ``trainable``: every trainable parameter, and the buffers of the layers that
        have one.
    keep
        The arrays that each site keeps as its own, in the same form; see `kept_names`.

    Raises
    ------
    ConfigError
        If a word matches nothing, if a trainable parameter is neither exchanged nor kept, or if
        every one is kept.
    """
    names, trainable = list(tensors_of(model)), trainable_names(model)
    kept = set(kept_names(model, keep))
    chosen = set(names) if exchange == ALL else _all_matching(model, exchange, "exchange")
    if lost := [name for name in names if name in trainable - chosen - kept]:
        raise ConfigError(
            "a trainable parameter is neither exchanged nor kept, so its training would be lost",
            where="exchange",
            got=f"{exchange!r}, without {lost[0]!r}",
            hint="Freeze it with requires_grad_(False), exchange it, or keep it at the sites",
        )
    if kept and not trainable - kept:
        raise ConfigError(
            "every trainable parameter stays at the sites, so nothing would be learned together",
            where="keep",
            got=keep,
            expected="patterns that leave a trainable parameter to be exchanged",
        )
    return [name for name in names if name in chosen - kept]


def kept_names(model: nn.Module, keep: str) -> list[str]:
    """Return the names of the arrays that each site keeps as its own, in the model's order.

    Parameters
    ----------
    model
        A new model, as in `tensors_of`.
    keep
        Words as in `exchanged_names`; empty for none.

    Raises
    ------
    ConfigError
        If a word matches nothing.
    """
    kept = _all_matching(model, keep, "keep")
    return [name for name in tensors_of(model) if name in kept]


def base_digests(model: nn.Module, changing: Collection[str]) -> dict[str, str]:
    """Return the SHA-256, in hex, of each array of the base: type, shape and values.

    ``changing`` are all other arrays: those that are exchanged or kept.
    """
    rest = [name for name in tensors_of(model) if name not in changing]
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


def _all_matching(model: nn.Module, words: str, key: str) -> set[str]:
    """Return what matches one of the words of a key of the run config."""
    split = [word.strip() for word in words.split(",") if word.strip()]
    return {name for word in split for name in _matching(model, word, key)}


def _matching(model: nn.Module, word: str, key: str) -> set[str]:
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
            where=key,
            got=word,
            expected="'trainable', or patterns of names, separated by commas",
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
