"""Weight averaging over the updates or the epochs of a phase.

The average is kept beside the training weights. It is swapped in at the end of each epoch's training and out at the
beginning of the next, so that evaluation, checkpoints and the final model all see the average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune.data.batch import num_samples_of
from finetune.display.progress.waits import announced
from finetune.distributed.divided import local, placed
from finetune.errors import CheckpointError, number
from finetune.model.freezing import moving_statistics, single_sample, trainable
from finetune.training.callbacks.base import Callback
from finetune.training.run import Run


class _Average(Callback):
    """Base class that holds the averaged tensors and swaps them with those of the model."""

    _state_form: ClassVar = {"average": {...: Tensor}, "set_aside": {...: Tensor}, "count": int}

    def __init__(self) -> None:
        self._own: dict[str, Tensor] = {}  # the tensors of the model itself
        self._average: dict[str, Tensor] = {}
        self._set_aside: dict[str, Tensor] = {}  # the training weights while the average is swapped in
        self._count = 0

    def on_phase_begin(self, run: Run) -> None:
        self._own = _averaged(run.model)
        if run.position.epoch == run.position.window == 0:
            self._average, self._set_aside, self._count = {}, {}, 0
        else:  # a resumed phase continues
            self._check_kept(run.model, {"average": self._average, "set_aside": self._set_aside})
            self._average = {name: placed(value, self._own[name]) for name, value in self._average.items()}

    def on_epoch_begin(self, run: Run) -> None:
        _copy(self._set_aside, self._own)
        self._set_aside = {}

    def on_phase_end(self, run: Run) -> None:
        self._own, self._average, self._set_aside, self._count = {}, {}, {}, 0

    def state_dict(self) -> dict[str, Any]:
        return {"average": self._average, "set_aside": self._set_aside, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self._average, self._set_aside, self._count = state["average"], state["set_aside"], state["count"]

    def _check_kept(self, model: nn.Module, kept: Mapping[str, Mapping[str, Tensor]]) -> None:
        own = _averaged(model).keys()
        if any(tensors and tensors.keys() != own for tensors in kept.values()):
            raise CheckpointError(
                f"The {type(self).__name__} of the run to resume averaged other weights than this run trains. Pass "
                f"fit and FineTuner the same arguments as in that run."
            )

    def _swap_in(self) -> None:
        """Put the average into the model and keep the training weights."""
        self._set_aside = _copies(self._own)
        _copy(self._average, self._own)

    def _update(self, fraction: float) -> None:
        """Move the average toward the current weights by a fraction of the distance."""
        if not self._average:
            self._average = _copies(self._own)
        average = [local(self._average[name]) for name in self._own]
        torch._foreach_lerp_(average, [local(own) for own in self._own.values()], fraction)
        self._count += 1


class EMA(_Average):
    """Train with an exponential moving average of the weights, and evaluate, save and return the average.

    Averages the trainable weights and the batch-norm statistics. The decay after update n is
    `min(decay, (1 + n) / (10 + n))`, so that a short run does not stay near its initial weights.

    Args:
        decay: Fraction of the running average kept at each update, in (0, 1).

    Raises:
        ArgumentError: If `decay` is out of range.

    Example:
        >>> from finetune import FineTuner
        >>> tuner, data = FineTuner(nn.Linear(4, 2), device="cpu"), (torch.randn(8, 4), torch.arange(8) % 2)
        >>> history = tuner.fit(data, epochs=2, callbacks=[EMA(decay=0.99)])
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = number("decay", decay, above=0, below=1)

    def on_phase_begin(self, run: Run) -> None:
        super().on_phase_begin(run)
        if not self._average:
            self._average = _copies(self._own)

    @torch.no_grad()
    def on_step_end(self, run: Run) -> None:
        self._update(1 - min(self.decay, (1 + self._count) / (10 + self._count)))

    def on_evaluate_begin(self, run: Run) -> None:
        self._swap_in()


class SWA(_Average):
    """Average the weights over the last epochs of a phase, and evaluate, save and return the average (SWA).

    Stochastic weight averaging (arXiv 1803.05407). The batch-norm statistics of the average are recomputed in a pass
    over the training data. Use a learning rate that does not decay to zero, as with `schedule="constant"`; otherwise
    the weights of the last epochs hardly differ.

    Args:
        start: Fraction of the phase's epochs after which averaging starts, in [0, 1).

    Raises:
        ArgumentError: If `start` is out of range.

    Example:
        >>> from finetune import FineTuner
        >>> tuner, data = FineTuner(nn.Linear(4, 2), device="cpu"), (torch.randn(8, 4), torch.arange(8) % 2)
        >>> history = tuner.fit(data, epochs=4, schedule="constant", callbacks=[SWA(start=0.5)])
    """

    def __init__(self, start: float = 0.75) -> None:
        super().__init__()
        self.start = number("start", start, at_least=0, below=1)
        self._epoch = -1  # the last epoch in the average

    @torch.no_grad()
    def on_evaluate_begin(self, run: Run) -> None:
        if (run.position.epoch + 1) / run.phase.epochs <= self.start:
            return
        if self._epoch != run.epoch:  # else the run resumes in the evaluation of this epoch
            self._update(1 / (self._count + 1))
            self._epoch = run.epoch
        self._swap_in()
        if self._count > 1 and run.moves_statistics:
            _recompute_statistics(run)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "epoch": self._epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._epoch = state.get("epoch", -1)


def _averaged(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors to average by name: the trainable parameters and the floating-point statistics."""
    moving = {id(buffer) for buffer in moving_statistics(model)}
    statistics = {n: b for n, b in model.named_buffers() if id(b) in moving and b.is_floating_point()}
    return {**{name: parameter.detach() for name, parameter in trainable(model).items()}, **statistics}


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    if source:
        values = [local(placed(value, target[name])) for name, value in source.items()]
        torch._foreach_copy_([local(target[name]) for name in source], values)


def _recompute_statistics(run: Run) -> None:
    """Recompute the batch-norm statistics of the current weights over the training data, with equal batch weights."""
    norms = [module for module in run.model.modules() if isinstance(module, _BatchNorm) and module.training]
    norms = [norm for norm in norms if norm.running_mean is not None]
    momenta: Sequence[float | None] = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    step, together = run.replicas.around(run.tuner.training_step), run.replicas.together or run.replicas.joint_norms
    try:
        for batch in announced(run.train.epoch(run.epoch), "Averaging batch statistics", run.train.steps):
            own = run.train.stand_in() if batch is None and together else batch
            if own is None or (num_samples_of(own) == 1 and not together):
                continue  # a single sample has no statistics
            single = num_samples_of(own) == 1 and not run.replicas.joint_norms
            alone = single_sample(run.model) if single else nullcontext()
            with alone, run.precision.autocast(), run.train.serving(own):
                step(own)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
