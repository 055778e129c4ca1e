"""`Predictions`: the outputs of a model on some data, with everything that gives them a meaning."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from finetune.data.sources.base import Source
from finetune.data.targets import BINARY, REGRESSION
from finetune.errors import ArgumentError, NonFiniteError
from finetune.interpret.calibration import Calibration
from finetune.training.tasks import Task


@dataclass(frozen=True, eq=False)
class Predictions:
    """Outputs of a model on some data.

    Attributes:
        outputs: float [N, ...], on the CPU.
        task: Task that the model was trained for.
        source: The data, which names the samples.
        classes: Class names by output, or None.
        targets: Targets [N, ...] on the CPU, or None for data without.
        calibration: Temperature and thresholds.
    """

    outputs: Tensor
    task: Task
    source: Source
    classes: tuple[str, ...] | None = None
    targets: Tensor | None = None
    calibration: Calibration = field(default_factory=Calibration)

    def __len__(self) -> int:
        return len(self.outputs)

    @cached_property
    def probabilities(self) -> Tensor:
        """Calibrated probabilities [N, ...].

        Raises:
            ArgumentError: If the outputs of the task have no probabilities.
            NonFiniteError: If one is NaN.
        """
        return self._defined(self.calibration.probabilities(self.task, self.outputs))

    @cached_property
    def scores(self) -> Tensor:
        """Number [N, K] of each label: its probability, two for a binary task, or the value for a regression.

        Raises:
            ArgumentError: If the outputs are maps or sequences, which have no one answer per sample.
            NonFiniteError: If one is NaN.
        """
        values = self._defined(self.outputs) if self.task.kind == REGRESSION else self.probabilities
        values = values.reshape(-1, 1) if values.dim() == 1 else values
        if values.dim() != 2:
            raise ArgumentError(
                f"The model has outputs of the shape {tuple(values.shape[1:])} per sample. Expected one number per "
                f"class. Call predict or predict_proba for maps and sequences."
            )
        if self.task.kind == BINARY:
            return values.new_tensor([1.0, 0.0]) + values * values.new_tensor([-1.0, 1.0])
        return values

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Name of each score."""
        count = self.scores.shape[1]
        if self.classes is not None and len(self.classes) == count:
            return self.classes
        if self.task.kind == BINARY and self.classes is not None and len(self.classes) == 1:
            return f"not {self.classes[0]}", self.classes[0]
        if self.task.kind == REGRESSION and count == 1:
            return ("value",)
        return tuple(map(str, range(count)))

    def name(self, index: int) -> str:
        """Return the name of a sample."""
        return self.source.name(index)

    def fitted(self) -> Calibration:
        """Return a calibration that is fitted to the targets.

        Raises:
            ArgumentError: If the outputs of the task have no probabilities.
            NonFiniteError: If one is NaN.
        """
        assert self.targets is not None
        self._defined(self.calibration.probabilities(self.task, self.outputs))
        return Calibration.fit(self.task, self.outputs, self.targets)

    def _defined(self, values: Tensor) -> Tensor:
        """Return probabilities or values [N, ...] if none is NaN, which is no answer and would calibrate nothing."""
        undefined = values.isnan().reshape(len(values), -1).any(1)
        if undefined.any():
            raise NonFiniteError(
                f"The outputs of the model are NaN for {int(undefined.sum())} of {len(undefined)} samples; the first "
                f"is {self.name(int(undefined.nonzero()[0]))}. Expected numbers. Check the sample and the weights of "
                f"the model."
            )
        return values
