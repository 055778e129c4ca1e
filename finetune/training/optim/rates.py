"""The learning rate of every parameter: one number, spread over the depth, or by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from finetune.errors import ArgumentError
from finetune.model.freezing import trainable
from finetune.model.patterns import select
from finetune.model.stages import Stage, trainable_stages

# With Adam, whose updates have the size of the rate whatever the gradient's, the head's rate where the user names
# none is one over the features that it reads, within these bounds: one update then moves a logit by about one, be the
# features 64 or 768. What is pretrained has this share of it in its last stage and in its first, and falls between:
# by 0.75 a block in a transformer of 12, as published, and to a hundredth, as fastai does.
# benchmarks/results/accuracy.md compares this with other libraries' defaults.
_HEAD_RATES = (1e-3, 1e-2)
_LAST_STAGE, _FIRST_STAGE = 10**-0.5, 0.01

# With SGD, the rates of the first stage that trains and of the head.
_SGD_RATES = (1e-3, 1e-2)

# The decays that papers publish, 0.65 to 0.75, are for the 12 blocks of a ViT-B or BERT and their embedding. Over
# the 60 layers of a deep net the same factor would freeze the stem in effect: 0.75 ** 59 is 4e-8.
_PUBLISHED_DEPTH = 13


@dataclass(frozen=True)
class LayerDecay:
    """A learning rate that falls by a factor from stage to stage, from the head down to the stem.

    In a model with more than 14 stages the factor is taken to a power, so that the stem's rate is
    `lr * decay ** 13` however deep the model is.

    Attributes:
        lr: of the head, before its multiple; the stage before it has `lr * decay`.
        decay: the factor from a stage to the one before it, in (0, 1].
        head: the head's rate as a multiple of `lr`.

    Raises:
        ArgumentError: a value out of its range.
    """

    lr: float
    decay: float = 0.75
    head: float = 1.0

    def __post_init__(self) -> None:
        _checked(self.lr)
        if not 0 < self.decay <= 1:
            raise ArgumentError(f"Expected decay to be above 0 and at most 1, but got {self.decay!r}.")
        if not self.head > 0:
            raise ArgumentError(f"Expected head to be a multiple above 0, but got {self.head!r}.")

    def rate(self, depth: int, stages: int) -> float:
        """Return the rate of the stage at `depth`, 0 being the stem, of `stages` in all."""
        if depth == stages - 1:
            return self.lr * self.head
        below = stages - 1 - depth
        return float(self.lr * self.decay ** (below * min(1.0, _PUBLISHED_DEPTH / (stages - 1))))


Rate = float | tuple[float, float] | Mapping[str, float] | LayerDecay


def default_rate(optimizer: object, model: nn.Module, stages: Sequence[Stage]) -> Rate:
    """Return the rates used where the user gives none.

    Args:
        optimizer: a name, or a factory, which is taken for one like Adam.
        stages: all of the model's, from the stem to the head.
    """
    if optimizer == "sgd":
        return _SGD_RATES
    falls = min(_PUBLISHED_DEPTH - 1, max(1, len(stages) - 2))
    decay = (_FIRST_STAGE / _LAST_STAGE) ** (1 / falls)
    step = decay / _LAST_STAGE  # from the stage before the head to the head, where others step by the decay
    return LayerDecay(head_rate(model, stages) / step, decay, head=step)


def head_rate(model: nn.Module, stages: Sequence[Stage]) -> float:
    """Return the head's rate where the user gives none, with an optimizer like Adam."""
    parameters = dict(model.named_parameters())
    weights = [parameters[name] for stage in stages[-1:] for name in stage.parameters if parameters[name].dim() > 1]
    lowest, highest = _HEAD_RATES
    return min(highest, max(lowest, 1 / weights[0].shape[1:].numel())) if weights else lowest


def scaled(lr: Rate, factor: float) -> Rate:
    """Return the same rates times a factor, in the same form."""
    if isinstance(lr, Mapping):
        return {pattern: rate * factor for pattern, rate in lr.items()}
    if isinstance(lr, LayerDecay):
        return replace(lr, lr=lr.lr * factor)
    return lr * factor if isinstance(lr, (int, float)) else (lr[0] * factor, lr[1] * factor)


def rates(model: nn.Module, stages: Sequence[Stage], lr: Rate) -> dict[str, tuple[str, float]]:
    """Return the group's name and the learning rate of every trainable parameter, by full name.

    Args:
        stages: all of the model's, from the stem to the head.
        lr: one rate; a pair `(first, last)` spread geometrically over the stages that train; a
            `LayerDecay` over all stages; or a mapping of pattern to rate, the last that matches wins.

    Raises:
        ArgumentError: a rate makes no sense, or a trainable parameter has none.
        PatternError: a pattern matches nothing.
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
    if isinstance(lr, (int, float)):
        return {stage.name: _checked(float(lr)) for stage in training}
    if not isinstance(lr, (tuple, list)) or len(lr) != 2:
        raise ArgumentError(
            f"Expected lr to be a number, a pair (first stage, head), a LayerDecay, or a mapping of pattern to "
            f"number, but got {lr!r}. To set more than two rates, name them: lr={{'layer4': 1e-4, 'fc': 1e-3}}."
        )
    first, last = (_checked(rate) for rate in lr)
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
            chosen[name] = (pattern, _checked(rate))
    missing = [name for name in training if name not in chosen]
    if missing:
        raise ArgumentError(
            f"lr gives no rate to {len(missing)} trainable parameters, the first {missing[0]!r}. Name them, freeze "
            f"them, or begin the mapping with a rate for all the rest: {{'*': 1e-4, ...}}."
        )
    return {name: chosen[name] for name in training}


def _checked(rate: float) -> float:
    if not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
        raise ArgumentError(f"Expected a learning rate above 0, but got {rate!r}.")
    return float(rate)
