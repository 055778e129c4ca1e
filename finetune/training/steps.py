"""The doors for a loop of one's own: what is done with a batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from finetune.data.sources.base import split_batch
from finetune.errors import ArgumentError
from finetune.model.families import family_of
from finetune.model.outputs import auxiliary_of, call, logits_of
from finetune.model.wrapping import unwrapped
from finetune.training.history import History
from finetune.training.metrics import StepOutput
from finetune.training.settings import Settings
from finetune.training.tasks import Loss, Task, infer_task


class Steps:
    """The steps that the loop calls and that a subclass overrides."""

    model: nn.Module
    history: History
    settings: Settings
    _task: Task | None = None

    @property
    def inner(self) -> nn.Module:
        """The model without what `torch.compile` or DataParallel put around it; names are those in here."""
        return unwrapped(self.model)

    @property
    def loss(self) -> Loss:
        """The loss, a function of outputs and targets.

        Raises:
            ArgumentError: it follows the targets, and none have been seen yet.
        """
        if self._task is None and self.settings.loss is None:
            raise ArgumentError(
                "The loss follows the targets, and none have been seen yet. Name it with loss=..., or call fit."
            )
        return (self._task or infer_task(self.settings.loss, None, self._num_outputs())).loss

    def training_step(self, batch: Any) -> Tensor | StepOutput:
        """Return the loss of a batch; override it for a loss of your own.

        Precision, accumulation, clipping, schedule and history are not its business. Return a scalar
        loss, or a `StepOutput` with outputs and targets for the training metrics. `batch` is
        `(inputs, targets)`, or what your own data set or loader gives, on the device.
        """
        return self._step(batch, *family_of(self.inner).loss_weights(self.inner))

    def validation_step(self, batch: Any) -> Tensor | StepOutput:
        """Return the loss of a batch of validation data, like `training_step`; gradients are off."""
        return self._step(batch, 1.0, 0.0)

    def predict_step(self, batch: Any) -> Tensor:
        """Return the outputs [N, ...] for a batch, labels in it being left aside."""
        inputs, _ = split_batch(batch)
        outputs: Tensor = logits_of(call(self.model, inputs))
        return outputs

    def _step(self, batch: Any, weight: float, beside: float) -> StepOutput:
        """Compute the loss, with that of auxiliary heads where it counts."""
        inputs, targets = split_batch(batch)
        if self._task is None:
            self._task = infer_task(self.settings.loss, targets, self._num_outputs())
        output = call(self.model, inputs)
        logits = logits_of(output)
        loss = self.loss(logits, targets)
        others = auxiliary_of(output, self._num_heads()) if beside else []
        if others:
            loss = weight * loss + beside * sum(self.loss(other, targets) for other in others)
        return StepOutput(loss, logits, targets)

    def _num_outputs(self) -> int | None:
        """Return how many outputs the model gives, None if that is not known."""
        return None

    def _num_heads(self) -> int:
        """Return how many heads the model has, auxiliary and distilled ones included."""
        return 1
