"""`Shards`: a model whose weights, gradients and optimizer state are divided among the processes, by FSDP2."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import _composable_state
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from finetune.distributed.divided import whole
from finetune.distributed.norms import join_norms
from finetune.distributed.world import World
from finetune.errors import ArgumentError

log = logging.getLogger("finetune")

# A layer is gathered on its own if it holds at least this share of the weights. Smaller ones travel together.
_SHARE = 0.01

# The other processes get this many seconds to meet where one of them ended with an error.
_PATIENCE = 2.0


class Shards:
    """The training step of a model that is divided among processes, each of which keeps a part of every weight.

    The layers of the model's lists and sequences are put together one after the other while they run, by `fully_shard`.
    Parameters and optimizer state are `DTensor`s until `close` puts the model together again.

    Args:
        model: The model in its freeze state.
        step: Function of a batch that calls the model.
        world: The processes.
        device: Device of the weights.
        varies: Whether the parameters that get a gradient may differ between processes, as with a custom step.
        joint_norms: Whether batch norms take the statistics of the batches of all processes.

    Raises:
        ArgumentError: If this version of PyTorch lacks a part of `fully_shard` that is needed.
    """

    together = True  # every process takes part in every forward pass

    def __init__(
        self,
        model: nn.Module,
        step: Callable[[Any], Any],
        world: World,
        device: torch.device,
        *,
        varies: bool = False,
        joint_norms: bool = False,
    ) -> None:
        if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
            raise ArgumentError(f"distributed='fsdp' needs a later version of PyTorch than {torch.__version__}.")
        self._step, self._world = step, world
        self.joint_norms, self._part_norms = joint_norms, join_norms(model) if joint_norms else lambda: None
        self._held = [
            (module, name, parameter)
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        self._numbers = [p for p in model.parameters() if not p.dim()]  # which cannot be divided
        self._root = _Root(model)
        # The root, too, is divided again after its forward pass, so that the model has the same parameters between two.
        options: dict[str, Any] = {"reshard_after_forward": True, "ignored_params": {*self._numbers}}
        options["mesh"] = init_device_mesh(device.type, (world.size,))
        divided = [fully_shard(module, **options) for module in [*_units(model), self._root]]
        for module in divided:
            module.set_reduce_scatter_unused_params(varies)
        self._outermost = divided[-1]
        self._sizes = _freed(p for _, _, p in self._held if p.dim())

    def __call__(self, batch: Any, *, synchronize: bool = True) -> Any:
        """Return the result of the step. The backward pass of a synchronized one averages all gradients so far."""
        self._outermost.set_requires_gradient_sync(synchronize)
        return self._root(self._step, batch)

    def around(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a step in which the weights that belong to no layer of their own are put together."""
        return functools.wraps(step)(functools.partial(self._root, step))

    def scaled(self, loss: Tensor) -> Tensor:
        """Return a part of the loss whose gradients add up over the processes, although these are averaged."""
        return loss * self._world.size

    def finish(self) -> None:
        """Average the gradients of single numbers. The backward pass has averaged the others."""
        for number in self._numbers:
            if self._world.any(number.grad is not None):
                number.grad = self._world.sum(torch.zeros_like(number) if number.grad is None else number.grad)
                number.grad /= self._world.size

    @torch.no_grad()
    def close(self, *, failed: bool = False) -> None:
        """Put the weights together again, in the same parameters as before.

        Args:
            failed: Whether an error ends the run. If it does so in this process only, the weights are lost.
        """
        divided = {id(p): module.get_parameter(name) for module, name, p in self._held}
        for module in self._root.modules():
            _undo(module)
        self._part_norms()
        reached = not failed or self._world.all_reach(_PATIENCE)
        for storage, size in self._sizes:
            storage.resize_(size)
        for key, parameter in {id(p): p for _, _, p in self._held if p.dim()}.items():
            parameter.data.copy_(whole(divided[key]) if reached else torch.full((), torch.nan))
        for module, name, parameter in self._held:
            setattr(module, name, parameter)
        self._held, self._sizes = [], []


class _Root(nn.Module):
    """Any step as a module, in whose forward pass the remaining weights are put together."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, step: Callable[[Any], Any], batch: Any) -> Any:
        """Return the result of a step."""
        return step(batch)


def _units(model: nn.Module) -> list[nn.Module]:
    """Return the layers that are put together on their own, inner ones first.

    They are parts of the model's lists and sequences, which are called one after the other, with a fair share of the
    weights and with no weight that is used elsewhere, too.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    uses = _uses(model)
    parts = [
        part
        for holder in model.modules()
        if isinstance(holder, (nn.ModuleList, nn.Sequential))
        for part in holder
        if not isinstance(part, (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict))
        and sum(parameter.numel() for parameter in part.parameters()) >= _SHARE * total
        and all(uses[key] == number for key, number in _uses(part).items())
    ]
    return list(dict.fromkeys(reversed(parts)))


def _uses(module: nn.Module) -> Counter[int]:
    """Return the number of places of every parameter, by its identity."""
    return Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))


def _undo(module: nn.Module) -> None:
    """Take from a module what `fully_shard` has added. torch has no function for this."""
    _composable_state._module_state_mapping.pop(module, None)
    for name in (STATE_KEY, REGISTRY_KEY, "_is_fsdp_managed_module", "_fsdp_use_orig_params"):
        vars(module).pop(name, None)
    for hooks in [value for name, value in vars(module).items() if name.endswith("_hooks")]:
        for key in [key for key, hook in hooks.items() if _of_fsdp(hook)]:
            del hooks[key]
    if isinstance(module, FSDPModule):
        module.__class__ = type(module).__mro__[FSDPModule._orig_cls_mro_index]


def _of_fsdp(hook: object) -> bool:
    return getattr(getattr(hook, "hook", hook), "__module__", "").startswith(fully_shard.__module__.rpartition(".")[0])


def _freed(parameters: Iterable[Tensor]) -> list[tuple[torch.UntypedStorage, int]]:
    """Free the memory of parameters, and return their storages with the sizes in bytes that they had."""
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in parameters}
    sizes = [(storage, storage.nbytes()) for storage in storages.values() if storage.resizable()]
    for storage, _ in sizes:
        storage.resize_(0)
    return sizes
