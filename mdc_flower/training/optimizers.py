"""torch's optimizers without its compiler, whose import takes each process seconds."""

import inspect
from typing import TypeVar, cast

import torch
from torch.optim import Optimizer

Kind = TypeVar("Kind", bound=Optimizer)


def without_compiler(kind: type[Kind]) -> type[Kind]:
    """Return an optimizer class that computes the same bits as ``kind``, but is never compiled.

    torch imports its compiler in every process that makes an optimizer or takes a step, only to
    mark where compiled code must stop. Only the model is compiled here, so the mark is not needed.
    """
    methods = {
        "step": torch.no_grad()(inspect.unwrap(kind.step)),
        "add_param_group": inspect.unwrap(kind.add_param_group),
        "zero_grad": inspect.unwrap(kind.zero_grad),
    }
    return cast("type[Kind]", type(kind.__name__, (kind,), methods))


SGD = without_compiler(torch.optim.SGD)
AdamW = without_compiler(torch.optim.AdamW)
