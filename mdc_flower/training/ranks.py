"""Several processes that train one site's model together, by torch's process group.

Only such processes import this module, because it imports much of torch.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mdc_flower.models.exchange import digest_of
from mdc_flower.models.tensors import tensors_of
from mdc_flower.training.arrays import copied, load_arrays
from mdc_flower.training.meetings import Meetings
from strategies.common.errors import ConfigError
from strategies.common.fault_points import reach


class Ranks(Meetings):
    """The processes of torch's default group, one for each GPU or so, with a model.

    Every method is a meeting of all processes: each must call it, in the same order.

    Parameters
    ----------
    shard
        Whether each process keeps only its share of parameters, gradients and optimizer state
        (FSDP2); otherwise each has the whole model (DDP). Both give the same bits.
    """

    def __init__(self, shard: bool) -> None:
        super().__init__()
        self.shard = shard
        # The first backward pass decides in which buckets DDP adds up the gradients, and so the
        # order of the sum of more than two numbers.
        self.first_step_decides = not shard
        self._step = 0
        self._wholes: dict[Tensor, DTensor] = {}

    def load(
        self,
        model: nn.Module,
        arrays: Sequence[NDArray[Any]],
        names: Sequence[str] | None = None,
    ) -> None:
        """Overwrite a new model with the first process's, which has the arrays."""
        reach("rank-loads", rank=self.rank)
        self._step = 0
        self.from_first(lambda: load_arrays(model, arrays, names))
        # A copy, because the function renames the keys of what it gets.
        state = dict(model.state_dict()) if self.rank == 0 else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(model, state, options=options)

    def place(self, model: nn.Module, device: torch.device) -> None:
        """Move a loaded model to its device, sharded if that is wanted."""
        if not self.shard:
            model.to(device)
            return
        if isinstance(model, FSDPModule):  # it is already in its place
            return
        mesh = init_device_mesh(device.type, (self.size,))
        for block in _blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the module to call in training."""
        return model if self.shard else DistributedDataParallel(model)

    def adapted(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Let an optimizer work on this process's shards, as on plain tensors.

        So it gives the same bits as on the whole model. It must treat each number of a parameter
        alone, as SGD and AdamW do.
        """
        _unfuse_on_cpu(optimizer)
        self._wholes = _on_local_shards(optimizer) if self.shard else {}
        return optimizer

    def gather(self, model: nn.Module, names: Sequence[str]) -> dict[str, NDArray[np.generic]]:
        """Return copies of the model's arrays at the first process."""
        reach("rank-gathers", rank=self.rank)
        tensors = tensors_of(model)
        gathered = self.copies({name: tensors[name] for name in names})
        reach("rank-gathered", rank=self.rank)
        return gathered

    def digests(self, model: nn.Module, names: Sequence[str]) -> dict[str, str]:
        """Return the digests of the model's arrays at the first process."""
        return {name: digest_of(array) for name, array in self.gather(model, names).items()}

    def as_part(self, value: Tensor, parameter: Tensor) -> Tensor:
        """Return an optimizer's value for a shard of a parameter, as a part of the whole."""
        whole = self._wholes.get(parameter)
        if whole is None or not value.ndim:
            return value
        if value.shape != parameter.shape:
            raise ConfigError(
                "the optimizer does not treat each number of a parameter alone",
                where="shard",
                got=f"a state of shape {tuple(value.shape)}",
                expected=f"the shape of the parameter, {tuple(parameter.shape)} in this process",
                hint="Only the site can change this: shard = false",
            )
        spec = whole.device_mesh, whole.placements
        return DTensor.from_local(value, *spec, shape=whole.shape, stride=whole.stride())

    @torch.no_grad()
    def copies(self, tensors: Mapping[str, Tensor]) -> dict[str, NDArray[np.generic]]:
        """Return copies of whole tensors at the first process, nothing at the others."""
        found = {}
        for name, tensor in tensors.items():  # one after the other, to need little memory
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.rank == 0:
                found[name] = copied(whole)
        return found

    def overwrite(self, tensor: Tensor, whole: Tensor) -> None:
        """Overwrite a tensor, or this process's part of it, with the values of the whole one."""
        if isinstance(tensor, DTensor):
            part = distribute_tensor(
                whole, tensor.device_mesh, tensor.placements, src_data_rank=None
            )
            tensor, whole = tensor.to_local(), part.to_local()
        tensor.copy_(whole)

    def total_count(self, count: int) -> int:
        """Return the sum of a number over all processes."""
        self._step += 1
        reach("rank-steps", rank=self.rank, step=self._step)
        return int(self.total(torch.tensor(count)))

    def weighted(self, loss: Tensor, count: int, whole: int) -> Tensor:
        """Return the loss, weighted by this process's part of the batch."""
        return loss * (count * self.size / whole)

    def accumulating(self, module: nn.Module, is_last: bool) -> AbstractContextManager[object]:
        """Let DDP average only complete gradients; FSDP2 adds up the shards of averages."""
        if is_last or not isinstance(module, DistributedDataParallel):
            return nullcontext()
        return module.no_sync()


def _unfuse_on_cpu(optimizer: torch.optim.Optimizer) -> None:
    """Use no fused kernel on a CPU: its bits depend on a number's place in its tensor."""
    for group in optimizer.param_groups:
        if group.get("fused") and all(p.device.type == "cpu" for p in group["params"]):
            group["fused"] = False
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def _on_local_shards(optimizer: torch.optim.Optimizer) -> dict[Tensor, DTensor]:
    """Hand an optimizer plain tensors, and return the parameter of which each is a shard."""
    shards: list[tuple[Tensor, Tensor]] = []
    for group in optimizer.param_groups:
        own = [p.to_local().detach() if isinstance(p, DTensor) else p for p in group["params"]]
        shards += [(p, q) for p, q in zip(group["params"], own, strict=True) if p is not q]
        group["params"] = own

    def take(*step: Any) -> None:
        for parameter, shard in shards:
            grad = cast("DTensor | None", parameter.grad)
            shard.grad = None if grad is None else grad.to_local()

    def drop(*step: Any) -> None:
        for parameter, shard in shards:
            parameter.grad = shard.grad = None

    optimizer.register_step_pre_hook(take)
    optimizer.register_step_post_hook(drop)
    return {shard: cast("DTensor", parameter) for parameter, shard in shards}


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return the outermost blocks of a model's lists: while one computes, others stay sharded."""
    blocks: list[nn.Module] = []
    for name, module in model.named_modules():
        parent = model.get_submodule(name.rpartition(".")[0])
        is_inside = any(module in set(block.modules()) for block in blocks)
        if isinstance(parent, nn.ModuleList) and not is_inside:
            blocks.append(module)
    shared = [p for block in blocks for p in set(block.parameters())]
    outside = set(model.parameters()) - set(shared)
    is_tied = len(set(shared)) < len(shared) or bool(outside & set(shared))
    return [] if is_tied else blocks
