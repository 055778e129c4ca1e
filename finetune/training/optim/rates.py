"""Learning rates per parameter: one number, a spread over the depth of the model, or a rate per pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from finetune.errors import ArgumentError, is_number, number
from finetune.model.freezing import trainable
from finetune.model.patterns import select
from finetune.model.stages import Stage, trainable_stages

# The default rate of the head is one over its number of input features, within these bounds. Updates of Adam have the
# size of the rate for any gradient, so one update moves a logit by about one, with 64 features as with 768.
# The pretrained stages get this share of the head's rate in the last and in the first stage, geometric in between:
# a factor of 0.75 per block in a transformer of 12 blocks, as published, down to a hundredth, as in fastai.
# benchmarks/results/accuracy.md compares these defaults with those of other libraries.
_HEAD_RATES = (1e-3, 1e-2)
_LAST_STAGE, _FIRST_STAGE = 10**-0.5, 0.01

# Default rates of SGD for the first trainable stage and for the head.
_SGD_RATES = (1e-3, 1e-2)

# Papers publish decays of 0.65 to 0.75 for a ViT-B or BERT: 12 blocks and an embedding. Over the 60 layers of a deep
# network the same factor would in effect freeze the stem: 0.75 ** 59 is 4e-8.
_PUBLISHED_DEPTH = 13


@dataclass(frozen=True)
class LayerDecay:
    """Learning rates that decay by a constant factor per stage, from the head down to the stem.

    In a model with more than 14 stages, the decay is weakened so that the stem trains at `lr * decay ** 13` at any
    depth.

    Attributes:
        lr: Base learning rate: the head trains at `lr * head`, the stage before it at `lr * decay`.
        decay: Factor from each stage to the one before it, in (0, 1].
        head: Multiple of `lr` for the head.

    Raises:
        ArgumentError: If a value is out of range.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> tuner = FineTuner(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)), device="cpu")
        >>> data = torch.randn(8, 4), torch.arange(8) % 2
        >>> history = tuner.fit(data, lr=LayerDecay(0.1, decay=0.5), schedule=lambda progress: 1.0)
        >>> history[0]["lr"]
        {'0': 0.025, '1': 0.05, '2': 0.1}
    """

    lr: float
    decay: float = 0.75
    head: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "lr", number("lr", self.lr, above=0))
        object.__setattr__(self, "decay", number("decay", self.decay, above=0, at_most=1))
        object.__setattr__(self, "head", number("head", self.head, above=0))

    def rate(self, depth: int, stages: int) -> float:
        """Return the rate of the stage at `depth`, counted from 0 at the stem, of `stages` in total.

        Example:
            >>> LayerDecay(0.1, decay=0.5).rate(0, stages=3)
            0.025
        """
        if depth == stages - 1:
            return self.lr * self.head
        below = stages - 1 - depth
        return float(self.lr * self.decay ** (below * min(1.0, _PUBLISHED_DEPTH / (stages - 1))))


Rate = float | tuple[float, float] | Mapping[str, float] | LayerDecay


def depth_aware_rates(model: nn.Module, stages: Sequence[Stage]) -> LayerDecay:
    """Return the default rates for an optimizer like Adam.

    Args:
        stages: All stages of the model, stem first.
    """
    falls = min(_PUBLISHED_DEPTH - 1, max(1, len(stages) - 2))
    decay = (_FIRST_STAGE / _LAST_STAGE) ** (1 / falls)
    step = decay / _LAST_STAGE  # from the head to the stage before it; from there on the step is the decay
    return LayerDecay(head_rate(model, stages) / step, decay, head=step)


def sgd_rates(model: nn.Module, stages: Sequence[Stage]) -> tuple[float, float]:
    """Return the default rates for SGD, spread from the first trainable stage to the head."""
    return _SGD_RATES


def head_rate(model: nn.Module, stages: Sequence[Stage]) -> float:
    """Return the default rate of the head for an optimizer like Adam."""
    parameters = dict(model.named_parameters())
    weights = [parameters[name] for stage in stages[-1:] for name in stage.parameters if parameters[name].dim() > 1]
    lowest, highest = _HEAD_RATES
    return min(highest, max(lowest, 1 / weights[0].shape[1:].numel())) if weights else lowest


def scaled(lr: Rate, factor: float) -> Rate:
    """Return the rates times a factor, in the same form."""
    if isinstance(lr, Mapping):
        return {pattern: rate * factor for pattern, rate in lr.items()}
    if isinstance(lr, LayerDecay):
        return replace(lr, lr=lr.lr * factor)
    if is_number(lr):
        return number("lr", lr) * factor
    first, last = _pair(lr)
    return first * factor, last * factor


def rates(model: nn.Module, stages: Sequence[Stage], lr: Rate) -> dict[str, tuple[str, float]]:
    """Return the group name and the learning rate of every trainable parameter, keyed by full name.

    Args:
        stages: All stages of the model, stem first.
        lr: One rate; a pair `(first, last)`, spread geometrically over the trainable stages; a `LayerDecay` over all
            stages; or a mapping of pattern to rate, in which the last match wins.

    Raises:
        ArgumentError: If a rate is invalid, or a trainable parameter has none.
        PatternError: If a pattern matches nothing.
    """
    if isinstance(lr, Mapping):
        return _rates_by_pattern(model, lr)
    training = trainable_stages(model, stages)
    if isinstance(lr, LayerDecay):
        spread = {stage.name: lr.rate(depth, len(stages)) for depth, stage in enumerate(stages)}
    else:
        spread = _spread(training, lr)
    return {name: (stage.name, spread[stage.name]) for stage in training for name in stage.parameters}


def _spread(training: Sequence[Stage], lr: float | tuple[float, float]) -> dict[str, float]:
    if is_number(lr):
        return {stage.name: number("lr", lr, above=0) for stage in training}
    first, last = _pair(lr)
    steps = max(1, len(training) - 1)
    shares = [(len(training) - 1 - depth) / steps for depth in range(len(training))]
    return {
        stage.name: first if share == 1 else last * (first / last) ** share
        for stage, share in zip(training, shares, strict=True)
    }


def _rates_by_pattern(model: nn.Module, lr: Mapping[str, float]) -> dict[str, tuple[str, float]]:
    training = trainable(model)
    chosen: dict[str, tuple[str, float]] = {}
    for pattern, rate in lr.items():
        for name in select(model, pattern):
            chosen[name] = (pattern, number(f"the rate of {pattern!r}", rate, above=0))
    missing = [name for name in training if name not in chosen]
    if missing:
        raise ArgumentError(
            f"lr has no rate for {len(missing)} trainable parameters, the first is {missing[0]!r}. Add a pattern for "
            f"them, freeze them, or start the mapping with a rate for everything else: {{'*': 1e-4, ...}}."
        )
    return {name: chosen[name] for name in training}


def _pair(lr: Any) -> tuple[float, float]:
    rates = list(lr) if isinstance(lr, (tuple, list)) or getattr(lr, "shape", ()) == (2,) else []
    if len(rates) != 2:
        raise ArgumentError(
            f"Expected lr to be a number, a pair (first stage, head), a LayerDecay, or a mapping of pattern to "
            f"number, but got {lr!r}. For more than two rates, use a mapping: lr={{'layer4': 1e-4, 'fc': 1e-3}}."
        )
    return number("the first stage's rate", rates[0], above=0), number("the head's rate", rates[1], above=0)
