"""`Task`: a kind of task with its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from finetune.data.targets import BINARY, CLASSIFICATION, IGNORED_IN_MAPS, MULTILABEL, TargetRule
from finetune.errors import ArgumentError
from finetune.training.tasks.losses import Loss

LOGITS, SCORES, PROBABILITIES, LOG_PROBABILITIES = "logits", "scores", "probabilities", "log-probabilities"


@dataclass(frozen=True)
class Task:
    """A kind of task with its loss.

    Attributes:
        kind: `"classification"`, `"binary"`, `"multilabel"` or `"regression"`; None for an unknown custom loss.
        loss: Function of outputs and targets that returns a scalar.
        why: Sentence for the user: the task, the reason for it, and how to choose another.
        inferred: Whether the kind was inferred from targets, so that later targets may contradict it.
        outputs: Outputs that the loss takes: `"logits"`, any `"scores"`, `"probabilities"` or `"log-probabilities"`.
        ignored: Target that the loss leaves out, or None.

    Example:
        >>> import torch
        >>> from finetune.training.tasks import infer_task
        >>> task = infer_task(None, torch.tensor([0, 2, 1]), num_outputs=3)
        >>> task.kind, task.loss.__name__
        ('classification', 'cross_entropy')
    """

    kind: str | None
    loss: Loss
    why: str = ""
    inferred: bool = False
    outputs: str = LOGITS
    ignored: int | None = None

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Convert outputs [N, C] to the input of metrics: probabilities, or the values themselves for regression.

        Example:
            >>> import torch
            >>> Task("binary", torch.nn.BCEWithLogitsLoss()).probabilities(torch.zeros(2, 1))
            tensor([[0.5000], [0.5000]])
        """
        if self.outputs == PROBABILITIES:
            return outputs
        if self.kind == CLASSIFICATION:
            return outputs.softmax(1)  # of log-probabilities, these are the probabilities
        return outputs.sigmoid() if self.kind in (BINARY, MULTILABEL) else outputs

    def counted(self, targets: Any) -> Tensor | None:
        """Return which class indices the loss counts, bool of the shape of `targets`; None for all.

        The loss leaves out the targets that equal its `ignore_index`. The default loss does so in maps of labels
        only: a single label to ignore is an error before training, and a look at the device here would wait for it.

        Example:
            >>> import torch
            >>> from finetune.training.tasks import infer_task
            >>> task = infer_task(torch.nn.CrossEntropyLoss(ignore_index=9), None, num_outputs=3)
            >>> task.counted(torch.tensor([0, 9, 1]))
            tensor([ True, False,  True])
        """
        if self.kind != CLASSIFICATION or not isinstance(targets, Tensor) or targets.is_floating_point():
            return None
        index = IGNORED_IN_MAPS if self.ignored is None and targets.dim() > 1 else self.ignored
        return None if index is None else targets != index

    def rule(self, num_outputs: int | None) -> TargetRule:
        """Return the targets that the task accepts, for a model with `num_outputs` outputs; None if unknown.

        Example:
            >>> from finetune.training.tasks import infer_task
            >>> infer_task("cross_entropy", None, num_outputs=3).rule(3).kind
            'classification'
        """
        return TargetRule(self.kind, num_outputs, ignored=self.ignored, soft=not self.inferred)


def number_of_classes(task: Task, num_outputs: int | None, callback: str) -> int:
    """Return the number of classes, for a callback that requires classification.

    Raises:
        ArgumentError: If the task is not classification, or the number of outputs is unknown.
    """
    if task.kind != CLASSIFICATION or num_outputs is None:
        raise ArgumentError(
            f"{callback} needs a classification task with one output per class, but this is "
            f"{task.kind or 'a custom loss'}. Remove the callback."
        )
    return num_outputs
