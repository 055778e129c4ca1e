"""Records of changes to a model, so that loading a checkpoint can repeat them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CUSTOM_HEAD = "custom"
"""Placeholder for a head module that only the user's code can build."""


@dataclass(frozen=True)
class HeadReplacement:
    """One call of `replace_head`.

    Attributes:
        n: Number of outputs.
        names: Full names of the replaced layers.
        head: None for a layer like the old one, `"append"` for a layer after it, `CUSTOM_HEAD`, or a
            description of standard layers for `layer_specs.build`.
        removed: Full names of the modules behind the head that identities have taken the place of.
    """

    n: int
    names: tuple[str, ...]
    head: str | Mapping[str, Any] | None
    removed: tuple[str, ...] = ()


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
