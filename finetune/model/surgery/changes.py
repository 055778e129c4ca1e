"""Records of changes to a model, so that loading a checkpoint can repeat them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CUSTOM_HEAD = "custom"
"""Stands for a head module that only the user's own code can build."""


@dataclass(frozen=True)
class HeadReplacement:
    """One call of `replace_head`.

    Attributes:
        n: Number of outputs.
        names: Full names of the replaced layers.
        head: None for a layer like the old one, `"append"` for a layer behind it, `CUSTOM_HEAD`, or the
            description of standard layers that `layer_specs.build` understands.
    """

    n: int
    names: tuple[str, ...]
    head: str | Mapping[str, Any] | None


@dataclass(frozen=True)
class InputAdaptation:
    """The first layers adapted to another number of channels."""

    in_channels: int


@dataclass(frozen=True)
class LoraAdapters:
    """LoRA adapters added to layers.

    Attributes:
        lora_rank: Rank of the adapters.
        layers: Full names of the adapted layers.
    """

    lora_rank: int
    layers: tuple[str, ...]


ModelChange = HeadReplacement | InputAdaptation | LoraAdapters
