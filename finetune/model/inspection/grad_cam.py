"""Grad-CAM: the parts of an image on which a score of a model depends (arXiv 1610.02391)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.model.inspection.feature_map import FeatureMap, attends
from finetune.model.inspection.forward_graph import differentiable_from


def evidence(model: nn.Module, scores: Callable[[], Tensor], feature_map: FeatureMap) -> Tensor:
    """Return the evidence for the scores at the positions of a layer, float32 [N, h, w].

    Only the layers after the given one run with gradients, so that frozen ones cost nothing more.

    Args:
        model: The model.
        scores: Function that calls the model and returns the scores [N].
        feature_map: The layer.
    """
    with differentiable_from(model, feature_map.layer) as seen:
        total = scores().sum()
        (gradient,) = torch.autograd.grad(total, seen[1:])
    features, gradient = (feature_map.of(tensor.detach()).float() for tensor in (seen[0], gradient))
    if feature_map.is_sequence:
        return token_evidence(features, gradient)
    return grad_cam(features, gradient) if attends(model) else hires_cam(features, gradient)


def grad_cam(features: Tensor, gradient: Tensor) -> Tensor:
    """Return the sum of the features [N, C, h, w], each weighted with its mean gradient; zero where it is negative.

    Example:
        >>> grad_cam(torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]]), torch.tensor([[[[1.0, 1.0]], [[-1.0, -1.0]]]]))
        tensor([[[0., 3.]]])
    """
    return (features * gradient.mean((2, 3), keepdim=True)).sum(1).relu()


def hires_cam(features: Tensor, gradient: Tensor) -> Tensor:
    """Return the same with the gradient of each position in place of their mean (HiResCAM, arXiv 2011.08891).

    Before a global average, both are equal. Another head has weights for each position, which cancel out in the mean.

    Example:
        >>> hires_cam(torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0]], [[-1.0, 0.0]]]]))
        tensor([[[0., 0.]]])
    """
    return (features * gradient).sum(1).relu()


def token_evidence(features: Tensor, gradient: Tensor) -> Tensor:
    """Return the change of a score if a token became the mean token, to first order; zero where it would rise.

    The class token attends to few of the other tokens, so that a mean of their gradients would mean little.

    Args:
        features: Tokens at their positions [N, C, h, w].
        gradient: Gradient of the score with respect to them.
    """
    return ((features - features.mean((2, 3), keepdim=True)) * gradient).sum(1).relu()


def heat(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps [N, h, w] at another size, each scaled so that its largest value is 1. A map of zeros stays one.

    Example:
        >>> heat(torch.tensor([[[0.0, 2.0]]]), (2, 4))[0, 0]
        tensor([0.0000, 0.2500, 0.7500, 1.0000])
    """
    resized = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return resized / resized.amax((1, 2), keepdim=True).clamp_min(torch.finfo(resized.dtype).tiny)
