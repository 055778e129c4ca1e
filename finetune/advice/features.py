"""`Features`: activations of each stage of a model, and the input of its head, pooled per sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finetune.data.batch import num_samples_of, split_batch
from finetune.model.inspection.forward_graph import watched

STAGES_UP_TO = 10_000  # samples of a check of data whose stages are kept for advice, which measures fewer


@dataclass(frozen=True)
class Features:
    """Pooled features of N samples.

    Attributes:
        last: Input of the head, float [N, D], pooled over positions or tokens.
        stages: Pooled output of each stage by name, float [N, D_k], from the stem on.
        targets: Targets [N, ...], class indices for advice.
        facts: Further facts of each sample by name, each [N, ...].
    """

    last: Tensor
    stages: dict[str, Tensor]
    targets: Tensor
    facts: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def labels(self) -> Tensor:
        """Targets as class indices, int64 [N]."""
        return self.targets.flatten().long()


def collect(
    model: nn.Module,
    stages: Sequence[str],
    head: str,
    passes: Iterable[tuple[Any, Any]],
    samples: float = math.inf,
    *,
    facts: Callable[[Any], dict[str, Tensor]] | None = None,
) -> Features:
    """Collect the features of at least `samples` samples while the model runs over batches.

    Args:
        model: Model to observe.
        stages: Full module names of the stages, from the stem on, without the head.
        head: Full module name of the head.
        passes: Pairs of a batch and the model's output, yielded as the model runs.
        samples: Number of samples to collect before stopping.
        facts: Function of a batch that returns further facts of its samples, or None.
    """
    kept: dict[str, list[Tensor]] = {}
    known: dict[str, list[Tensor]] = {}
    targets: list[Tensor] = []
    with watched(model, stages, head) as seen:
        for batch, _ in passes:
            size = num_samples_of(batch)
            for name, tensor in seen.items():
                if tensor.shape[:1] == (size,) and tensor.is_floating_point():
                    kept.setdefault(name, []).append(pooled(tensor).float().cpu())
            seen.clear()
            targets.append(torch.as_tensor(split_batch(batch)[1]).cpu())
            for name, values in (facts(batch) if facts else {}).items():
                known.setdefault(name, []).append(values.cpu())
            if sum(map(len, targets)) >= samples:
                break
    whole = {name: torch.cat(parts) for name, parts in kept.items() if len(parts) == len(targets)}
    in_order = {name: whole[name] for name in stages if name in whole}
    last = whole.get(head, next(reversed(in_order.values()), torch.empty(0)))
    found = torch.cat(targets) if targets else torch.empty(0, dtype=torch.int64)
    return Features(last, in_order, found, {name: torch.cat(parts) for name, parts in known.items()})


def pooled(features: Tensor) -> Tensor:
    """Average feature maps [N, D, ...] or [N, H, H, D] over positions, or [N, T, D] over tokens, to [N, D]."""
    if features.dim() == 3:
        return features.mean(1)
    channels_last = features.dim() == 4 and features.shape[1] == features.shape[2] != features.shape[3]
    return features.mean((1, 2)) if channels_last else features.flatten(2).mean(2) if features.dim() > 2 else features
