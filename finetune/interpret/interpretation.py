"""`Interpretation`: what a model has learned, and where it goes wrong, as numbers and plots."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from torch import Tensor

from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.errors import ArgumentError, whole_number
from finetune.interpret import measures, page
from finetune.interpret.heatmaps import Heatmaps
from finetune.interpret.judged import Judged
from finetune.interpret.predictions import Predictions
from finetune.interpret.rows import (
    ClassScores,
    ConfusedPair,
    Histogram,
    JudgedSample,
    OutputErrors,
    PrecisionRecallCurve,
    ReliabilityBin,
    RocCurve,
    Rows,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ONE_CLASS = (CLASSIFICATION, BINARY)
_ALL_CLASSES = (CLASSIFICATION, BINARY, MULTILABEL)

_EXPLAINED = 20  # mistakes with heatmaps

# Numbers and plots that a task has, named in the place of those that it has not.
_NUMBERS = {
    CLASSIFICATION: "per_class or accuracy",
    BINARY: "per_class or accuracy",
    MULTILABEL: "per_class or accuracy",
    REGRESSION: "per_output, residuals or mistakes",
}
_PLOTS = {
    CLASSIFICATION: "plot_confusion",
    BINARY: "plot_confusion",
    MULTILABEL: "plot_curves",
    REGRESSION: "plot_residuals",
}


class Interpretation:
    """Answers of a model beside the truth, from one forward pass. `print` shows a page of text.

    Every number is computed when it is first asked for. A number that is undefined is NaN, such as the recall of a
    class without samples. Probabilities and answers are those of `predict_proba` and `classify`, at the temperature and
    the thresholds of `calibrate`.

    Args:
        predictions: Predictions with targets.
        explain: Function from numbers of samples, and the label to explain of each, to heatmaps; None for none.

    Attributes:
        predictions: Outputs, targets and the data, in the order of the data.
        heatmaps: Evidence for the answers to the worst mistakes, up to 20 of them; None if there is none to show.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> X, y = torch.eye(3).repeat(4, 1), torch.arange(12) % 3
        >>> tuner = FineTuner(torch.nn.Linear(3, 3), device="cpu")
        >>> tuner.classes = "cat", "dog", "hare"
        >>> found = tuner.interpret((X, y))
        >>> found.confusion.sum(1)
        tensor([4, 4, 4])
        >>> [row.support for row in found.per_class]
        [4, 4, 4]
    """

    def __init__(
        self,
        predictions: Predictions,
        explain: Callable[[list[int], list[str | None]], Heatmaps] | None = None,
    ) -> None:
        self.predictions = predictions
        self._judged = Judged(predictions)
        worst = [row.index for row in self.mistakes(_EXPLAINED)] if explain and predictions.source.indexed else []
        self.heatmaps = explain(worst, list(map(self._judged.doubtful, worst))) if explain and worst else None

    def __len__(self) -> int:
        return len(self._judged)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({page.samples(len(self))}, {page.KINDS[self.task]})"

    def __str__(self) -> str:
        return page.to_text(self)

    def _repr_html_(self) -> str:
        return page.to_html(self)

    # ------------------------------------------------------------------ all tasks

    @property
    def task(self) -> str:
        """Kind of task: `"classification"`, `"binary"`, `"multilabel"` or `"regression"`."""
        return self._judged.kind

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each class, label or output."""
        return self._judged.labels

    def mistakes(self, n: int = 20) -> Rows[JudgedSample]:
        """Return the wrong answers of the highest loss, the worst first. Of a regression, the largest errors.

        Errors of several outputs count relative to the standard deviation of the true values of each, so that no output
        decides by its unit.

        Args:
            n: Number of samples at most.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> tuner = FineTuner(torch.nn.Linear(4, 2), device="cpu")
            >>> found = tuner.interpret((torch.randn(8, 4), torch.arange(8) % 2)).mistakes()
            >>> all(row.answer != row.true for row in found)
            True
        """
        return self._judged.mistakes(whole_number("n", n))

    def surest(self, n: int = 20) -> Rows[JudgedSample]:
        """Return the right answers of the highest probability, the surest first.

        Args:
            n: Number of samples at most.

        Raises:
            ArgumentError: If the task is a regression.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> tuner = FineTuner(torch.nn.Linear(4, 2), device="cpu")
            >>> found = tuner.interpret((torch.randn(8, 4), torch.arange(8) % 2)).surest()
            >>> all(row.answer == row.true for row in found)
            True
        """
        self._needs("surest", _ALL_CLASSES)
        return self._judged.surest(whole_number("n", n))

    # ------------------------------------------------------------------ classes

    @cached_property
    def confusion(self) -> Tensor:
        """Number of samples, int64 [C, C], by true class (rows) and answer (columns)."""
        self._needs("confusion", _ONE_CLASS)
        return measures.confusion_matrix(self._judged)

    def most_confused(self, n: int = 10) -> Rows[ConfusedPair]:
        """Return the pairs of classes that are confused most often, the most frequent first.

        Args:
            n: Number of pairs at most.

        Raises:
            ArgumentError: If the task is a regression or multi-label.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> tuner = FineTuner(torch.nn.Linear(4, 2), device="cpu")
            >>> len(tuner.interpret((torch.randn(8, 4), torch.arange(8) % 2)).most_confused()) <= 2
            True
        """
        self._needs("most_confused", _ONE_CLASS)
        return measures.confused_pairs(self.confusion, self.labels, whole_number("n", n))

    @cached_property
    def per_class(self) -> Rows[ClassScores]:
        """Precision, recall, F1 and support of each class or label."""
        self._needs("per_class", _ALL_CLASSES)
        return measures.class_scores(self._judged)

    @cached_property
    def accuracy(self) -> float:
        """Fraction of right answers; of right labels for a multi-label task."""
        self._needs("accuracy", _ALL_CLASSES)
        return measures.accuracy(self._judged)

    @property
    def top1(self) -> float:
        """Fraction of samples whose answer is the true class."""
        self._needs("top1", _ONE_CLASS)
        return self.accuracy

    @cached_property
    def top5(self) -> float:
        """Fraction of samples whose true class is among the five likeliest. 1 with five classes or fewer."""
        self._needs("top5", _ONE_CLASS)
        return measures.top_accuracy(self._judged, 5)

    # ------------------------------------------------------------------ probabilities

    def reliability(self, bins: int = measures.BINS) -> Rows[ReliabilityBin]:
        """Return confidence and accuracy of the answers by confidence. They are equal for calibrated probabilities.

        Confidence is the probability of the answer. For a binary task it is that of the second class, and for a
        multi-label task that of each label; accuracy is then the fraction of samples with the class or label.

        Args:
            bins: Number of bins of equal width.

        Raises:
            ArgumentError: If the task is a regression.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> tuner = FineTuner(torch.nn.Linear(4, 2), device="cpu")
            >>> found = tuner.interpret((torch.randn(8, 4), torch.arange(8) % 2)).reliability(bins=10)
            >>> sum(each.count for each in found)
            8
        """
        self._needs("reliability", _ALL_CLASSES)
        return measures.reliability(self._judged, whole_number("bins", bins))

    @cached_property
    def calibration_error(self) -> float:
        """Expected calibration error (arXiv 1706.04599): mean gap between confidence and accuracy over 15 bins."""
        self._needs("calibration_error", _ALL_CLASSES)
        return measures.calibration_error(self._judged)

    def score_histogram(self, bins: int = 20) -> Histogram:
        """Return the number of samples by confidence, in two groups.

        The groups are right and wrong answers; the two classes of a binary task; and labels of samples that have
        them or not, for a multi-label task.

        Args:
            bins: Number of bins of equal width.

        Raises:
            ArgumentError: If the task is a regression.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> tuner = FineTuner(torch.nn.Linear(4, 2), device="cpu")
            >>> list(tuner.interpret((torch.randn(8, 4), torch.arange(8) % 2)).score_histogram().counts)
            ['right', 'wrong']
        """
        self._needs("score_histogram", _ALL_CLASSES)
        return measures.score_histogram(self._judged, whole_number("bins", bins))

    @cached_property
    def roc_curves(self) -> Rows[RocCurve]:
        """Receiver operating characteristic of each label against all others. Of two classes, that of the second."""
        self._needs("roc_curves", _ALL_CLASSES)
        return measures.roc_curves(self._judged)

    @cached_property
    def precision_recall_curves(self) -> Rows[PrecisionRecallCurve]:
        """Precision and recall by threshold of each label. Of two classes, those of the second."""
        self._needs("precision_recall_curves", _ALL_CLASSES)
        return measures.precision_recall_curves(self._judged)

    # ------------------------------------------------------------------ values

    @property
    def residuals(self) -> Tensor:
        """True minus predicted values, float32 [N, K]."""
        self._needs("residuals", (REGRESSION,))
        return self._judged.targets - self._judged.scores

    @cached_property
    def per_output(self) -> Rows[OutputErrors]:
        """Errors of each output."""
        self._needs("per_output", (REGRESSION,))
        return measures.output_errors(self._judged)

    @property
    def mae(self) -> float:
        """Mean absolute error, a mean over the outputs."""
        self._needs("mae", (REGRESSION,))
        return fmean(row.mae for row in self.per_output)

    @property
    def rmse(self) -> float:
        """Root of the mean squared error, a mean over the outputs."""
        self._needs("rmse", (REGRESSION,))
        return fmean(row.rmse for row in self.per_output)

    @property
    def r2(self) -> float:
        """Coefficient of determination, a mean over the outputs. NaN if the targets of one are all equal."""
        self._needs("r2", (REGRESSION,))
        return fmean(row.r2 for row in self.per_output)

    # ------------------------------------------------------------------ plots

    def plot_confusion(self, path: str | Path | None = None, *, theme: str | None = None) -> Figure:
        """Plot the confusion matrix, each row as shares of a true class.

        Of more than 150 classes, it shows those that are confused most often, and says so.

        Args:
            path: Path to also save the figure to; the suffix sets the format.
            theme: `"light"`, `"dark"`, or None for dark if matplotlib's style is dark.

        Returns:
            The matplotlib figure.

        Raises:
            ArgumentError: If the task is a regression or multi-label.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> tuner = FineTuner(torch.nn.Linear(4, 2), device="cpu")
            >>> figure = tuner.interpret((torch.randn(8, 4), torch.arange(8) % 2)).plot_confusion("confusion.png")
        """
        self._needs("plot_confusion", _ONE_CLASS)
        from finetune.interpret.plots.confusion import draw_confusion

        return draw_confusion(self.confusion, self.labels, path, theme)

    def plot_reliability(self, path: str | Path | None = None, *, theme: str | None = None) -> Figure:
        """Plot accuracy by confidence, and the number of answers by confidence below.

        Args:
            path: Path to also save the figure to; the suffix sets the format.
            theme: `"light"`, `"dark"`, or None for dark if matplotlib's style is dark.

        Returns:
            The matplotlib figure.

        Raises:
            ArgumentError: If the task is a regression.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> tuner = FineTuner(torch.nn.Linear(4, 2), device="cpu")
            >>> figure = tuner.interpret((torch.randn(8, 4), torch.arange(8) % 2)).plot_reliability()
        """
        self._needs("plot_reliability", _ALL_CLASSES)
        from finetune.interpret.plots.probabilities import draw_reliability

        return draw_reliability(self.reliability(), self.calibration_error, page.confidence(self), path, theme)

    def plot_scores(self, path: str | Path | None = None, *, theme: str | None = None) -> Figure:
        """Plot the histograms of `score_histogram`.

        Args:
            path: Path to also save the figure to; the suffix sets the format.
            theme: `"light"`, `"dark"`, or None for dark if matplotlib's style is dark.

        Returns:
            The matplotlib figure.

        Raises:
            ArgumentError: If the task is a regression.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> tuner = FineTuner(torch.nn.Linear(4, 2), device="cpu")
            >>> figure = tuner.interpret((torch.randn(8, 4), torch.arange(8) % 2)).plot_scores()
        """
        self._needs("plot_scores", _ALL_CLASSES)
        from finetune.interpret.plots.probabilities import draw_scores

        threshold = self._judged.thresholds[0] if self.task == BINARY else None
        return draw_scores(self.score_histogram(), page.confidence(self), threshold, path, theme)

    def plot_curves(self, path: str | Path | None = None, *, theme: str | None = None) -> Figure:
        """Plot the ROC and the precision-recall curve of each label; of more than six, those of the smallest area.

        Args:
            path: Path to also save the figure to; the suffix sets the format.
            theme: `"light"`, `"dark"`, or None for dark if matplotlib's style is dark.

        Returns:
            The matplotlib figure.

        Raises:
            ArgumentError: If the task is a regression.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> tuner = FineTuner(torch.nn.Linear(4, 2), device="cpu")
            >>> figure = tuner.interpret((torch.randn(8, 4), torch.arange(8) % 2)).plot_curves()
        """
        self._needs("plot_curves", _ALL_CLASSES)
        from finetune.interpret.plots.curves import draw_curves

        return draw_curves(self.roc_curves, self.precision_recall_curves, len(self), path, theme)

    def plot_residuals(self, path: str | Path | None = None, *, theme: str | None = None) -> Figure:
        """Plot predicted by true values and the distribution of the residuals, for each of the first outputs.

        Args:
            path: Path to also save the figure to; the suffix sets the format.
            theme: `"light"`, `"dark"`, or None for dark if matplotlib's style is dark.

        Returns:
            The matplotlib figure.

        Raises:
            ArgumentError: If the task is no regression.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> tuner = FineTuner(torch.nn.Linear(4, 1), device="cpu")
            >>> figure = tuner.interpret((torch.randn(8, 4), torch.randn(8))).plot_residuals()
        """
        self._needs("plot_residuals", (REGRESSION,))
        from finetune.interpret.plots.residuals import draw_residuals

        return draw_residuals(self._judged.targets, self._judged.scores, self.per_output, path, theme)

    def plot_mistakes(self, n: int = 12, path: str | Path | None = None, *, theme: str | None = None) -> Figure:
        """Plot the worst mistakes as a sheet of images or texts; others by their names.

        Images show the evidence for the answer if `interpret` found it, as by `interpret(data, heatmaps=True)`.

        Args:
            n: Number of samples at most.
            path: Path to also save the figure to; the suffix sets the format.
            theme: `"light"`, `"dark"`, or None for dark if matplotlib's style is dark.

        Returns:
            The matplotlib figure.

        Example:
            >>> import torch
            >>> from finetune import FineTuner
            >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
            >>> found = FineTuner(model, device="cpu").interpret((torch.rand(8, 3, 4, 4), torch.arange(8) % 2))
            >>> figure = found.plot_mistakes(4)
        """
        from finetune.interpret.plots.mistakes import draw_mistakes

        wrong = int((~self._judged.right).sum())
        rows, regression = self.mistakes(n), self.task == REGRESSION
        return draw_mistakes(rows, self.predictions.source, wrong, regression, path, theme, heatmaps=self.heatmaps)

    def _needs(self, name: str, kinds: tuple[str, ...]) -> None:
        """Check that the task has a quantity.

        Raises:
            ArgumentError: If it has none, with the quantities to use instead.
        """
        if self.task not in kinds:
            *others, last = (page.KINDS[kind] for kind in kinds)
            listed = f"{', '.join(others)} and {last}" if others else last
            instead = (_PLOTS if name.startswith("plot_") else _NUMBERS)[self.task]
            raise ArgumentError(f"{name} is for {listed}, but this is a {page.KINDS[self.task]}. Use {instead}.")
