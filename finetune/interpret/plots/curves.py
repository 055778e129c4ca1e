"""The plot of ROC and precision-recall curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.display import figures
from finetune.interpret.plots.names import shown
from finetune.interpret.rows import PrecisionRecallCurve, RocCurve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 6  # labels, as many as a look has colors


def draw_curves(
    roc: Sequence[RocCurve],
    precision_recall: Sequence[PrecisionRecallCurve],
    samples: int,
    path: str | Path | None = None,
    theme: str | None = None,
) -> Figure:
    """Draw the ROC curve and the precision-recall curve of each label, or of those of the smallest areas.

    Args:
        roc: ROC curves.
        precision_recall: Precision-recall curves, of the same labels in the same order.
        samples: Number of samples.
        path: Path to also save the figure to; the suffix sets the format.
        theme: As in `figures.drawing`.
    """
    both = [pair for pair in zip(roc, precision_recall, strict=True) if not math.isnan(pair[0].area)]
    kept = sorted(both, key=lambda pair: pair[1].area)[:_MOST]
    with figures.drawing(12.5 if len(kept) > 1 else 10, 4.8, path, theme) as (figure, look):
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=look.faint)
        lines = []
        for first, second in kept:
            areas = f"{first.area:.2f}, {second.area:.2f}"
            lines += left.plot(
                first.false_positive_rate, first.true_positive_rate, label=f"{shown(first.label)} ({areas})"
            )
            right.plot(second.recall, second.precision, drawstyle="steps-post")
        if len(kept) == 1:
            right.axhline(kept[0][1].positives / samples, linestyle="--", linewidth=1, color=look.faint)
            left.set_title(f"{shown(kept[0][0].label)}: area {kept[0][0].area:.3f}")
            right.set_title(f"average precision {kept[0][1].area:.3f}")
        else:
            left.set_title("ROC")
            right.set_title("Precision and recall")
            figure.legend(handles=lines, loc="outside right upper", title="areas: ROC, precision", fontsize=9)
        left.set(xlabel="false positive rate", ylabel="true positive rate")
        right.set(xlabel="recall", ylabel="precision")
        for axes in (left, right):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            axes.grid(True, alpha=0.3)
        undefined = len(roc) - len(both)
        said = [f"The {len(kept)} weakest of {len(both):,} labels"] if len(kept) < len(both) else []
        said += (
            [f"{undefined:,} of {len(roc):,} labels have no curve, as all or no samples have them"] if undefined else []
        )
        if said:
            figure.suptitle("; ".join(said), fontsize=9)
    return figure
