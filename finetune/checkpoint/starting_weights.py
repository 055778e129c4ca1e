"""Weights that a training phase starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from finetune.checkpoint import restore
from finetune.data.randomness import seeded
from finetune.model import catalog
from finetune.model.network import Network
from finetune.model.surgery.reinitialize import fresh_weights
from finetune.naming.paths import local_path


def starting_weights(network: Network, start_from: str | Path, seed: int) -> Mapping[str, Tensor]:
    """Return the weights that a phase starts from, by name.

    Args:
        network: Network to load them into. It is not changed.
        start_from: Path of a checkpoint, or `"scratch"` for random weights.
        seed: Seed for random weights.

    Raises:
        ArgumentError: If the model cannot be reinitialized.
        CheckpointError: If the file is damaged or belongs to another model.
    """
    if start_from != "scratch":
        return restore.starting_weights(local_path(start_from), network.module)
    with seeded(seed, "scratch"):
        rebuilt = None if network.origin is None else catalog.rebuild(network.origin)
        return fresh_weights(network.module, rebuilt)
