"""Convert standard torch.nn layers to plain data and back.

Checkpoints hold no pickled objects. With these specs they can still rebuild a head that was given as a
`Sequential` of standard layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

STANDARD_LAYERS = {
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
    """Return the spec from which `build` makes the same module, or None if a part is not a standard layer.

    Example:
        >>> describe(nn.Dropout(0.2))
        {'type': 'Dropout', 'arguments': {'p': 0.2, 'inplace': False}}
        >>> build(describe(nn.Sequential(nn.Linear(4, 2), nn.ReLU())))
        Sequential(
          (0): Linear(in_features=4, out_features=2, bias=True)
          (1): ReLU()
        )
    """
    if type(module) is nn.Sequential:
        if len(list(module.named_parameters(remove_duplicate=False))) > len(list(module.parameters())):
            return None  # shared weights would come back as separate ones
        # named_children would skip the second place of a layer used twice
        children = {name: describe(child) for name, child in module._modules.items() if child is not None}
        return {"type": "Sequential", "children": children} if None not in children.values() else None
    if STANDARD_LAYERS.get(type(module).__name__) is not type(module):
        return None
    return {"type": type(module).__name__, "arguments": _arguments(module)}


def build(description: Mapping[str, Any]) -> nn.Module:
    """Build the module of a spec from `describe`, with random weights.

    Raises:
        KeyError: If the description names a layer that is not a standard one.
    """
    if description["type"] == "Sequential":
        sequential = nn.Sequential()
        for name, child in description["children"].items():
            sequential.add_module(name, build(child))
        return sequential
    return STANDARD_LAYERS[description["type"]](**description["arguments"])


def _arguments(module: nn.Module) -> dict[str, Any]:
    """Read a layer's constructor arguments from its attributes, which have the same names."""
    names = inspect.signature(type(module).__init__).parameters
    values = {name: getattr(module, name) for name in names if hasattr(module, name)}
    if "bias" in values:
        values["bias"] = values["bias"] is not None  # a flag as argument, a tensor as attribute
    return values
