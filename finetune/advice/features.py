"""`Features`: activations of each stage of a model, and the input of its head, pooled per sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.data.batch import num_samples_of, split_batch
from finetune.model.inspection.forward_graph import watched


@dataclass(frozen=True)
class Features:
    """Pooled features of N samples.

    Attributes:
        last: Input of the head, float [N, D], pooled over positions or tokens.
        stages: Pooled output of each stage by name, float [N, D_k], from the stem on.
        labels: Class indices, int64 [N].
    """

    last: Tensor
    stages: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def collect(
    model: nn.Module, stages: Sequence[str], head: str, passes: Iterable[tuple[Any, Any]], samples: int
) -> Features:
    """Collect the features of at least `samples` samples while the model runs over batches.

    Args:
        model: Model to observe.
        stages: Full module names of the stages, from the stem on, without the head.
        head: Full module name of the head.
        passes: Pairs of a batch and the model's output, yielded as the model runs.
        samples: Number of samples to collect before stopping.
    """
    kept: dict[str, list[Tensor]] = {}
    labels: list[Tensor] = []
    with watched(model, stages, head) as seen:
        for batch, _ in passes:
            size = num_samples_of(batch)
            for name, tensor in seen.items():
                if tensor.shape[:1] == (size,) and tensor.is_floating_point():
                    kept.setdefault(name, []).append(pooled(tensor).float().cpu())
            seen.clear()
            labels.append(torch.as_tensor(split_batch(batch)[1]).flatten().long().cpu())
            if sum(map(len, labels)) >= samples:
                break
    whole = {name: torch.cat(parts) for name, parts in kept.items() if len(parts) == len(labels)}
    in_order = {name: whole[name] for name in stages if name in whole}
    last = whole.get(head, next(reversed(in_order.values()), torch.empty(0)))
    return Features(last, in_order, torch.cat(labels) if labels else torch.empty(0, dtype=torch.int64))


def pooled(features: Tensor) -> Tensor:
    """Average feature maps [N, D, ...] or [N, H, H, D] over positions, or [N, T, D] over tokens, to [N, D]."""
    if features.dim() == 3:
        return features.mean(1)
    channels_last = features.dim() == 4 and features.shape[1] == features.shape[2] != features.shape[3]
    return features.mean((1, 2)) if channels_last else features.flatten(2).mean(2) if features.dim() > 2 else features
