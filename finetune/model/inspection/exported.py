"""Models that torch.jit or torch.export has turned into fixed programs: they run and train, but have no layers."""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType

import torch
from torch import nn
from torch.fx import GraphModule

from finetune.errors import ArgumentError

# Operations whose result depends on the mode, which torch.export fixes.
_BY_MODE = ("dropout", "batch_norm", "rrelu")


def program_of(model: nn.Module) -> str | None:
    """Return `"torch.jit"` or `"torch.export"` if that made the model a fixed program, else None.

    Example:
        >>> program = torch.export.export(nn.Linear(2, 2), (torch.zeros(3, 2),)).module()
        >>> program_of(program), program_of(nn.Linear(2, 2))
        ('torch.export', None)
    """
    if isinstance(model, torch.jit.ScriptModule):
        return "torch.jit"
    return "torch.export" if isinstance(model, GraphModule) and "_guards_fn" in model._modules else None


def free_exported_modes(model: nn.Module) -> None:
    """Let exported programs within a model take part in `train()` and `eval()`, which torch.export makes them refuse.

    Raises:
        ArgumentError: If a program gives other results in the other mode, which it can no longer take.
    """
    for program in _exported(model):
        by_mode = sorted({name for node in program.graph.nodes for name in _BY_MODE if name in str(node.target)})
        if by_mode:
            raise ArgumentError(
                f"Expected a model that can switch between train and eval mode, but torch.export has fixed the mode of "
                f"its {' and '.join(by_mode)}. Pass the module that it was exported from."
            )
        for name in ("train", "eval"):
            vars(program).pop(name, None)  # the methods that raise; the class has working ones


def _exported(model: nn.Module) -> Iterator[GraphModule]:
    for module in model.modules():
        if isinstance(module, GraphModule) and isinstance(vars(module).get("train"), MethodType):
            yield module
