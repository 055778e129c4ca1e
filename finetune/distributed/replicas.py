"""The training step of a model that several processes train together.

`Replicas` are copies of the model, whose gradients are averaged by DistributedDataParallel. `Shards` divide it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from finetune.distributed.norms import can_join_norms, join_norms
from finetune.distributed.world import World

if TYPE_CHECKING:
    from finetune.distributed.shards import Shards

# torch 2.15 gave the argument a new name.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


def replicas_of(
    model: nn.Module,
    step: Callable[[Any], Any],
    world: World,
    device: torch.device,
    *,
    varies: bool = False,
    moving: bool = False,
) -> Replicas | Shards:
    """Return the training step of a model in its freeze state, for the processes of a world.

    Args:
        model: The model.
        step: Function of a batch that calls the model.
        world: The processes.
        device: Device of the weights.
        varies: Whether the parameters that get a gradient may differ between updates, as with a custom step.
        moving: Whether training updates buffers.

    Raises:
        ArgumentError: If the weights are to be divided, and cannot be.

    Example:
        >>> from finetune.distributed.world import ALONE
        >>> model = nn.Linear(2, 1)
        >>> replicas_of(model, lambda batch: model(batch).sum(), ALONE, torch.device("cpu"))(torch.zeros(3, 2)).shape
        torch.Size([])
    """
    joint_norms = moving and world.size > 1 and can_join_norms(device)
    if world.shards:
        from finetune.distributed.shards import Shards  # imports much of torch

        return Shards(model, step, world, device, varies=varies, joint_norms=joint_norms)
    return Replicas(model, step, world, varies=varies, moving=moving, joint_norms=joint_norms)


class Replicas:
    """The training step of a model that several processes train together.

    DistributedDataParallel wraps the step and not the model, so a custom step may call the model several times, or a
    part of it. It takes over after the first update, which shows which parameters get a gradient. A new freeze state
    needs new replicas.

    Args:
        model: The model in its freeze state.
        step: Function of a batch that calls the model.
        world: The processes.
        varies: Whether the parameters that get a gradient may differ between updates, as with a custom step.
        moving: Whether training updates buffers, which are then those of the first process in all of them.
        joint_norms: Whether batch norms take the statistics of the batches of all processes.
    """

    together = False  # a process without samples need not run the model

    def __init__(
        self,
        model: nn.Module,
        step: Callable[[Any], Any],
        world: World,
        *,
        varies: bool = False,
        moving: bool = False,
        joint_norms: bool = False,
    ) -> None:
        self._model, self._step, self._world = model, step, world
        self._varies, self._moving = varies or _drops_layers(model), moving
        self._parallel: DistributedDataParallel | None = None
        self.joint_norms, self._part_norms = joint_norms, join_norms(model) if joint_norms else lambda: None

    def __call__(self, batch: Any, *, synchronize: bool = True) -> Any:
        """Return the result of the step. The backward pass of a synchronized one averages all gradients so far."""
        if self._parallel is None:
            return self._step(batch)
        with nullcontext() if synchronize else self._parallel.no_sync():
            return self._parallel(batch)

    def around(self, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return another step of the model as it is, because each process has all weights."""
        return step

    def scaled(self, loss: Tensor) -> Tensor:
        """Return a part of the loss whose gradients add up over the processes, although these are averaged."""
        return loss if self._world.size == 1 else loss * self._world.size

    def finish(self) -> None:
        """Average the gradients of the first update, and let DistributedDataParallel do so from the next one on."""
        if self._world.size == 1 or self._parallel is not None:
            return
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        reached = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        reached = self._world.sum(reached)
        for parameter, processes in zip(parameters, reached.tolist(), strict=True):
            if processes:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                dist.all_reduce(parameter.grad)
                parameter.grad /= self._world.size
        some = bool((reached < self._world.size).any())
        # All weights are equal already, and writing them again would make cached activations look outdated.
        options: dict[str, Any] = {"init_sync": False, _SYNC_BUFFERS: self._moving}
        options["find_unused_parameters"] = some or self._varies
        self._parallel = DistributedDataParallel(_Step(self._model, self._step), **options)

    def close(self, *, failed: bool = False) -> None:
        """Give batch norms the statistics of their own process again. The model is whole in each."""
        self._part_norms()


class _Step(nn.Module):
    """A training step as a module, for DistributedDataParallel to find its parameters and the end of its forward."""

    def __init__(self, model: nn.Module, step: Callable[[Any], Any]) -> None:
        super().__init__()
        self.model = model
        self._step = step

    def forward(self, batch: Any) -> Any:
        """Return the result of the step."""
        return self._step(batch)


def _drops_layers(model: nn.Module) -> bool:
    """Return whether a model leaves out layers at random in training, as those of speech in transformers do."""
    settings = [vars(module) for module in model.modules()] + [vars(getattr(model, "config", object))]
    return any("layerdrop" in name and value for held in settings for name, value in held.items())
