"""What a run looked like, epoch by epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]

# What a row holds beside its losses and metrics.
_OTHER = ("epoch", "phase", "lr", "seconds", "samples_per_second")


class History(Sequence[Row]):
    """A sequence of one row an epoch.

    A row holds `epoch` (from 1), `phase`, `loss`, the training metrics, `val_loss` and the validation
    metrics where there is validation data, `lr` (a mapping of group to rate at the last update),
    `seconds` and `samples_per_second` of training.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return self._rows[index]

    def __repr__(self) -> str:
        return f"History({len(self)} epochs)"

    def append(self, row: Row) -> None:
        """Add the row of an epoch."""
        self._rows.append(row)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw losses and metrics by epoch, training and validation together.

        Args:
            path: where to write the picture as well; the format follows the suffix.

        Returns:
            The matplotlib figure.
        """
        from matplotlib.figure import Figure

        names = self._drawn()
        figure = Figure(figsize=(4.5 * max(1, len(names)), 3.5), layout="constrained")
        for axes, name in zip(figure.subplots(1, max(1, len(names)), squeeze=False)[0], names, strict=False):
            for key, label in ((name, "training"), (f"val_{name}", "validation")):
                drawn = [(row["epoch"], row[key]) for row in self._rows if key in row]
                if drawn:
                    axes.plot(*zip(*drawn, strict=True), marker="o", markersize=3, label=label)
            axes.set(xlabel="epoch", title=name)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend()
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure

    def _drawn(self) -> list[str]:
        names = (key.removeprefix("val_") for row in self._rows for key in row if key not in _OTHER)
        return list(dict.fromkeys(names))
