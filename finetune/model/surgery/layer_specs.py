"""Standard torch.nn layers as plain data, and back.

A checkpoint holds no pickled objects; this is how it can still rebuild a head that was given as a
`Sequential` of ordinary layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

_STANDARD = {
    layer.__name__: layer
    for layer in (
        nn.Linear, nn.Bilinear, nn.Identity, nn.Flatten, nn.Conv1d, nn.Conv2d, nn.Conv3d,
        nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
        nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
        nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
        nn.Tanh, nn.Sigmoid, nn.Softplus, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
    )
}  # fmt: skip


def describe(module: nn.Module) -> dict[str, Any] | None:
    """Return what `build` needs to make such a module again; None if a part is not a standard layer."""
    if type(module) is nn.Sequential:
        if len(list(module.named_parameters(remove_duplicate=False))) > len(list(module.parameters())):
            return None  # layers that share weights would come back with weights of their own
        # not `named_children`, which leaves out a layer's second place, such as that of one ReLU used twice
        children = {name: describe(child) for name, child in module._modules.items() if child is not None}
        return {"type": "Sequential", "children": children} if None not in children.values() else None
    if _STANDARD.get(type(module).__name__) is not type(module):
        return None
    return {"type": type(module).__name__, "arguments": _arguments(module)}


def build(description: Mapping[str, Any]) -> nn.Module:
    """Make the module that `describe` described, with fresh weights.

    Raises:
        KeyError: the description names a layer that is not a standard one.
    """
    if description["type"] == "Sequential":
        sequential = nn.Sequential()
        for name, child in description["children"].items():
            sequential.add_module(name, build(child))
        return sequential
    return _STANDARD[description["type"]](**description["arguments"])


def _arguments(module: nn.Module) -> dict[str, Any]:
    """Read a layer's constructor arguments back from its attributes, which bear the same names."""
    names = inspect.signature(type(module).__init__).parameters
    values = {name: getattr(module, name) for name in names if hasattr(module, name)}
    if "bias" in values:
        values["bias"] = values["bias"] is not None  # the argument is a flag, the attribute a tensor
    return values
