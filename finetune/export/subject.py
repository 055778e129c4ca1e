"""`Subject`: a trained model with everything that gives its outputs a meaning."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.display.silence import quiet
from finetune.errors import ArgumentError, ExportError
from finetune.interpret.calibration import Calibration
from finetune.interpret.predictions import Predictions
from finetune.model.freezing import eval_mode
from finetune.model.surgery import adapters
from finetune.training.tasks import Task

_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained model with everything that gives its outputs a meaning.

    Attributes:
        module: The model, which is only copied.
        task: Task that it was trained for.
        preprocessing: Preprocessing of raw items, or None for inputs that are ready for the model.
        classes: Class names by output, or None.
        calibration: Temperature and thresholds.

    Example:
        >>> from finetune.training.tasks import infer_task
        >>> subject = Subject(nn.Linear(4, 3), infer_task("cross_entropy", None, 3))
        >>> subject.answers(torch.zeros(1, 3))
        tensor([[0.3333, 0.3333, 0.3333]])
    """

    module: nn.Module
    task: Task
    preprocessing: InputPreprocessing | None = None
    classes: tuple[str, ...] | None = None
    calibration: Calibration = field(default_factory=Calibration)

    @property
    def name(self) -> str:
        """Class name of the model."""
        return type(adapters.base(self.module)).__name__

    @property
    def answer(self) -> str:
        """Name of the answers: `"probabilities"`, `"values"` of a regression, or `"outputs"` of an unknown task."""
        return {None: "outputs", REGRESSION: "values"}.get(self.task.kind, "probabilities")

    def answers(self, outputs: Tensor) -> Tensor:
        """Return the answers [N, ...] for outputs of the model, of the same shape."""
        return self.calibration.probabilities(self.task, outputs) if self.answer == "probabilities" else outputs

    def decisions(self, answers: Tensor) -> Tensor | None:
        """Return what `classify` decides by answers: class indices, or bool of each label; None without classes."""
        if self.task.kind == CLASSIFICATION:
            return answers.argmax(1)
        if self.task.kind not in (BINARY, MULTILABEL):
            return None
        labels = 1 if answers.dim() == 1 else answers.shape[1]
        return answers >= answers.new_tensor(self.calibration.thresholds_for(labels)).squeeze()

    def labels(self, outputs: Tensor) -> tuple[str, ...] | None:
        """Return the name of each score as in `classify`, or None if there is no one answer per sample."""
        if self.task.kind is None:
            return self.classes
        source: Any = None  # names no samples here
        try:
            return Predictions(outputs, self.task, source, self.classes, None, self.calibration).labels
        except ArgumentError:
            return self.classes

    @cached_property
    def copied(self) -> nn.Module:
        """A copy of the model on the CPU, in eval mode, with adapters merged and weights of at least 32 bits.

        Raises:
            ExportError: If it cannot be copied, or its adapters cannot be merged.
        """
        try:
            with quiet():  # of PEFT, which reads what transformers renames
                model = adapters.merged(copy.deepcopy(self.module).cpu())
        except ArgumentError as error:
            raise ExportError(f"{self.name} cannot be exported: {error}") from error
        except Exception as error:  # a user's module may refuse to be copied in any way
            raise ExportError(f"{self.name} cannot be copied for the export: {error}") from error
        eval_mode(model)
        if any(parameter.dtype in _HALVES for parameter in model.parameters()):
            model.float()
        return model

    def on(self, module: nn.Module) -> Subject:
        """Return the subject with another module in the place of the model."""
        return replace(self, module=module)
