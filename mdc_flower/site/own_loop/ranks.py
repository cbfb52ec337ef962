"""Several processes of one script, as torchrun starts them: rank 0 talks to the site."""

import os
import sys
from typing import Any

from strategies.common.errors import ConfigError


def rank() -> int:
    """Return this process's rank in the default process group; 0 without one.

    Raises
    ------
    ConfigError
        If a launcher started several processes, but there is no process group.
    """
    if group := _group():
        return int(group.get_rank())
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError(
            "there are several processes, but no process group",
            where="mdc_flower.site",
            got=f"WORLD_SIZE={os.environ['WORLD_SIZE']}",
            hint="Call torch.distributed.init_process_group before site.rounds()",
        )
    return 0


def from_rank_0(value: Any) -> Any:
    """Return rank 0's value at every rank."""
    if group := _group():
        values = [value]
        group.broadcast_object_list(values, src=0)
        return values[0]
    return value


def spread(model: Any) -> None:
    """Overwrite parameters and buffers at every rank by those of rank 0."""
    if group := _group():
        from mdc_flower.models.tensors import tensors_of

        for tensor in tensors_of(model).values():
            group.broadcast(tensor.data, src=0)


def whole(model: Any) -> Any:
    """Return the model inside DistributedDataParallel.

    Raises
    ------
    ConfigError
        If its parameters are cut into pieces.
    """
    from torch import nn

    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    if any(type(p).__name__ == "DTensor" for p in model.parameters()):
        raise ConfigError(
            "the model's parameters are cut into pieces (FSDP)",
            where="mdc_flower.site",
            hint="Load `round.arrays` and send whole arrays with the functions of "
            "torch.distributed.checkpoint.state_dict",
        )
    return model


def _group() -> Any:
    """Return `torch.distributed` if there is a default process group; imports nothing."""
    if "torch" not in sys.modules:
        return None
    import torch.distributed as group

    return group if group.is_available() and group.is_initialized() else None
