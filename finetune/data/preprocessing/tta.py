"""Test-time augmentation: outputs averaged over several views of the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from finetune.data.batch import join_batch, split_batch
from finetune.errors import ArgumentError

View = Callable[[Tensor], Tensor]


def over_views(step: Callable[[Any], Any], views: bool | Sequence[View]) -> Callable[[Any], Any]:
    """Return a step that averages its outputs over a batch and views of it.

    Args:
        step: Function of a batch that returns outputs [N, ...].
        views: Functions of the inputs [N, C, H, W]. True for a horizontal flip, False for none.
    """
    if views is False:
        return step
    from torchvision.transforms.v2 import functional as F

    functions = [F.horizontal_flip] if views is True else list(views)

    def averaged(batch: Any) -> Tensor:
        inputs, targets = split_batch(batch)
        if not isinstance(inputs, Tensor) or inputs.dim() < 4:
            raise ArgumentError(
                "Test-time augmentation needs images [N, C, H, W], but these inputs are not images. Omit tta."
            )
        others = [join_batch(batch, view(inputs), targets) for view in functions]
        return torch.stack([step(one) for one in (batch, *others)]).mean(0)

    return averaged
