"""The bounds that functions behind a head set to a model's outputs."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import HeadError
from finetune.model.freezing import eval_mode
from finetune.model.inspection.forward_graph import (
    Operation,
    Recording,
    before,
    operations_behind,
    output_given,
    record,
)
from finetune.model.inspection.probing import undisturbed, without_autocast
from finetune.model.outputs import logits_of

# Functions behind a head after which its outputs are no logits. A log-softmax changes no probability.
_BOUNDS = {
    "softmax", "sigmoid", "hardsigmoid", "relu", "hardtanh", "clamp", "clamp_min", "clamp_max", "threshold", "softplus",
}  # fmt: skip
# Those of them that a sample of outputs need not show.
_WIDE = {"hardtanh", "clamp", "clamp_max"}
# Those that return values within bounds unchanged, which may be wide.
_CLAMPS = {"hardtanh", "clamp", "clamp_min", "clamp_max"}
# The cross-entropy of two logits of this size and opposite signs is below 1e-8, so wider bounds hold no loss up.
_LARGE_LOGIT = 10.0
# Those that only arrange values. A tanh before any other function is scaled, which caps logits and leaves them logits.
_SHAPING = {
    "view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "flatten", "permute", "transpose", "clone", "alias",
    "to_copy", "select", "slice",
}  # fmt: skip
# Those that never fall or never rise with their input, so that the ends of their range are found from its ends.
_MONOTONE = {"tanh", "exp", "elu", "log_softmax", "leaky_relu", "add", "sub", "rsub", "mul", "div", "neg"}

_LOSSES = {
    "softmax": "lambda outputs, targets: torch.nn.functional.nll_loss(outputs.log(), targets)",
    "sigmoid": "torch.nn.BCELoss()",
}

_TOLERANCE = 0.01  # share of the spread of the targets, for numbers that were rounded or measured


@dataclass(frozen=True)
class Bounds:
    """What stands behind the head of a model.

    Attributes:
        functions: Names of the functions that compute the outputs from the head's result alone, the last first.
        low: Least output that they can give, minus infinity if unknown.
        high: Greatest output that they can give, infinity if unknown.
        values: Function that gives such outputs as these, by a sample: `"softmax"`, `"sigmoid"`, `"relu"`, `"tanh"`, or
            `""` for values without these bounds; None if unknown.

    Example:
        >>> Bounds.of(nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), torch.zeros(2, 4))
        Bounds(functions=('sigmoid',), low=0.0, high=1.0, values='sigmoid')
    """

    functions: tuple[str, ...] = ()
    low: float = -torch.inf
    high: float = torch.inf
    values: str | None = None

    @classmethod
    def of(cls, model: nn.Module, example: Any) -> Bounds:
        """Return the bounds of a model, from passes over an example that leave no trace."""
        with without_autocast(), undisturbed(model):
            eval_mode(model)
            recording = record(model, example)
            behind = operations_behind(recording)
            functions = tuple(operation.function.strip("_") for operation in behind)
            if {*functions} <= _SHAPING and len(recording.main) == 1 and recording.main[0].parameters:
                return cls(functions)
            low, high, values = -torch.inf, torch.inf, None
            with suppress(RuntimeError):  # a result that cannot be written to
                values = _values(_sampled(model, example, recording), logits_of(recording.output))
                if behind:
                    low, high = _range(model, example, recording, behind)
            return cls(functions, low, high, values)

    @property
    def clamping(self) -> str | None:
        """Function that holds the outputs within bounds, so that they are no logits, or None."""
        applied = [function for function in self.functions if function not in _SHAPING]
        if self.values in ("relu", "tanh"):
            return next((f for f in applied if f in _BOUNDS), applied[0] if applied else self.values)
        if self.values:
            return self.values
        named = _BOUNDS if self.values is None else _WIDE
        named = named - _CLAMPS if self._holds_large_logits else named
        return next((f for f in applied if f in named or (f == "tanh" and f in applied[:1])), None)

    @property
    def are_probabilities(self) -> bool:
        """Whether the outputs are probabilities."""
        return self.values in _LOSSES or (self.values is None and self.clamping in _LOSSES)

    @property
    def _holds_large_logits(self) -> bool:
        known = math.isfinite(self.low) or math.isfinite(self.high)
        return known and self.low <= -_LARGE_LOGIT and self.high >= _LARGE_LOGIT

    def check_logits(self, model: str) -> None:
        """Check that nothing behind the head bounds the outputs, which the losses of classification take as logits.

        Raises:
            HeadError: If there is a softmax, sigmoid, ReLU or the like.
        """
        function = self.clamping
        if function is None:
            return
        other = f", or pass a loss that expects them: loss={_LOSSES[function]}" if function in _LOSSES else ""
        raise HeadError(
            f"Expected the outputs of {model} to be logits, but its forward applies {function} to them, which holds "
            f"them within bounds that the loss does not expect. Return the outputs without {function}{other}."
        )

    def check_reach(self, targets: Tensor, model: str) -> None:
        """Check that the outputs can reach the targets of a regression.

        Raises:
            HeadError: If targets are beyond the bounds.
        """
        finite = targets[targets.isfinite()].double()  # others are an error of their own, which names the sample
        if not len(finite):
            return
        low, high = (float(end) for end in finite.aminmax())
        slack = _TOLERANCE * (high - low)
        if low + slack >= self.low and high - slack <= self.high:
            return
        function = next(function for function in self.functions if function not in _SHAPING)
        function = self.clamping or function
        raise HeadError(
            f"The outputs of {model} reach from {self.low:g} to {self.high:g}, because its forward applies {function} "
            f"to them, but the targets reach from {low:g} to {high:g}, which it can never learn. Return the outputs "
            f"without {function}, or scale the targets to these bounds."
        )


def _sampled(model: nn.Module, example: Any, recording: Recording) -> Tensor | None:
    """Return finite outputs [N, ...] for various results of the head, or None if other results count too."""
    used = before(recording.main) | {*recording.main}
    operations = recording.operations
    head = max((k for k, one in enumerate(operations) if one in used and one.parameters), default=None)
    if head is None:
        return None
    known = {operations[head]}
    for one in operations[head + 1 :]:
        if one in used and (not one.inputs or not {*one.inputs} <= known):
            return None
        known.add(one)

    def outputs(shift: float, scale: float) -> Any:
        def filled(result: Tensor) -> Tensor:
            steps = torch.arange(result.numel(), dtype=torch.float32, device=result.device)
            return (scale * torch.cos(steps + shift)).reshape(result.shape).to(result.dtype)

        return logits_of(output_given(model, example, head, filled))

    # Great ones show that a constant was added, and may overflow in a hand-made softmax.
    drawn = [outputs(1.7 * k + 0.5, scale) for k in range(8) for scale in (4.0, -4.0, 1e4, -1e4)]
    finite = [one for one in drawn if one.isfinite().all()]
    return torch.cat(finite) if finite else drawn[0]


def _values(sampled: Tensor | None, own: Tensor) -> str | None:
    """Return the function that gives such outputs as those sampled, or those of the example if there are none."""
    outputs = (own if sampled is None else sampled).double()
    if not outputs.isfinite().all():
        return None
    low, high = float(outputs.min()), float(outputs.max())
    rows = outputs.dim() > 1 and outputs.shape[1] > 1
    if low >= 0 and rows and torch.allclose(outputs.sum(1), outputs.new_ones(()), atol=1e-4):
        return "softmax"
    if sampled is None:
        return None
    slack = 1e-6
    if low >= 0:
        return "sigmoid" if high <= 1 + slack else "relu"
    return "tanh" if max(-low, high) <= 1 + slack else ""


def _range(model: nn.Module, example: Any, recording: Recording, behind: list[Operation]) -> tuple[float, float]:
    """Return the least and the greatest output for any result of the head, infinite where unknown."""
    unknown = -torch.inf, torch.inf
    known = _SHAPING | _BOUNDS | _MONOTONE
    if any(one.function.strip("_") not in known or len(one.inputs) != 1 for one in behind):
        return unknown
    position = recording.operations.index(behind[-1].inputs[0])

    def outputs(fill: float, *, rising: bool = False) -> Any:
        def filled(result: Tensor) -> Tensor:
            most = torch.finfo(result.dtype).max / 4
            steps = torch.linspace(0, 1, result.numel(), device=result.device).reshape(result.shape)
            return steps.to(result.dtype) * most if rising else torch.full_like(result, fill).clamp(-most, most)

        return logits_of(output_given(model, example, position, filled))

    even = [outputs(fill) for fill in (-torch.inf, -1.0, 0.0, 1.0, torch.inf)]
    every = torch.stack([*even, outputs(0.0, rising=True)]).float()  # a softmax reaches its ends for uneven results
    rises, falls = every[1:5] >= every[:4], every[1:5] <= every[:4]
    if every.isnan().any() or not (rises.all(0) | falls.all(0)).all():  # as in x * x, whose two inputs are one
        return unknown
    low, high = float(every.min()), float(every.max())
    endless = torch.finfo(even[0].dtype).max / 1000
    return low if low > -endless else -torch.inf, high if high < endless else torch.inf
