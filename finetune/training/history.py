"""The history of training, one row per epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from finetune.display import html
from finetune.display.curves import draw_curves
from finetune.display.numbers import Values, fixed
from finetune.errors import is_number

if TYPE_CHECKING:
    import torchmetrics
    from matplotlib.figure import Figure

HistoryRow = dict[str, Any]

# Keys of a row that are neither losses nor metrics.
BOOKKEEPING = ("epoch", "phase", "lr", "lr_start", "seconds", "samples_per_second", "restored_epoch")


_FIRST, _LAST = 5, 20  # rows of a long table that a notebook shows


def row_of_weights(rows: Sequence[HistoryRow]) -> HistoryRow:
    """Return the row of the epoch whose weights the model has: the last, or the one whose weights were put back.

    Example:
        >>> row_of_weights([{"epoch": 1, "val_loss": 0.2}, {"epoch": 2, "val_loss": 0.9, "restored_epoch": 1}])
        {'epoch': 1, 'val_loss': 0.2}
        >>> row_of_weights([])
        {}
    """
    if not rows:
        return {}
    number = rows[-1].get("restored_epoch", rows[-1]["epoch"])
    return next((row for row in rows if row["epoch"] == number), rows[-1])


class History(Sequence[HistoryRow]):
    """Sequence of rows, one per epoch. `print` shows a table.

    The keys of a row are `epoch` (from 1), `phase`, `loss` and the training metrics, `val_loss` and the validation
    metrics if there is validation data, `lr` and `lr_start` (learning rate by parameter group at the epoch's last
    update and at its first), and `seconds` and `samples_per_second` of training. The last row of a phase after
    which `EarlyStopping` put back earlier weights has the number of their epoch as `restored_epoch`.

    Args:
        rows: Rows to start with.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> tuner = FineTuner(torch.nn.Linear(4, 2), device="cpu")
        >>> history = tuner.fit((torch.randn(20, 4), torch.arange(20) % 2), val=0.2, epochs=3)
        >>> history
        History(3 epochs)
        >>> best = min(history, key=lambda row: row["val_loss"])
        >>> best["epoch"] in (1, 2, 3)
        True
    """

    def __init__(self, rows: Iterable[HistoryRow] = ()) -> None:
        self._rows: list[HistoryRow] = [row if isinstance(row, Values) else Values(row) for row in rows]
        self._scales: dict[str, tuple[bool | None, float | None, float | None]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> HistoryRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[HistoryRow]: ...
    def __getitem__(self, index: int | slice) -> HistoryRow | list[HistoryRow]:
        return self._rows[index]

    def __repr__(self) -> str:
        return f"History({len(self)} epochs)"

    def __str__(self) -> str:
        names, lines = self.cells()
        widths = [max(map(len, column)) for column in zip(names, *lines, strict=True)]
        return "\n".join("  ".join(map(str.rjust, line, widths)) for line in (names, *lines))

    def _repr_html_(self) -> str:
        names, lines = self.cells()
        if len(lines) > _FIRST + _LAST:
            lines = [*lines[:_FIRST], ["..."] * len(names), *lines[-_LAST:]]
        return html.table(names, lines, text=0)

    def append(self, row: HistoryRow) -> None:
        """Add the row of an epoch.

        Example:
            >>> history = History()
            >>> history.append({"epoch": 1, "loss": 0.5})
            >>> history[-1]["loss"]
            0.5
        """
        for name, value in row.items():
            if is_number(value) and type(value) not in (int, float):  # of NumPy or torch, as callbacks measure them
                row[name] = value.item() if hasattr(value, "item") else float(value)
        self._rows.append(row if isinstance(row, Values) else Values(row))

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the cells of the table, without rates, times and speeds.

        Example:
            >>> History([{"epoch": 1, "loss": 0.5}]).cells()
            (['epoch', 'loss'], [['1', '0.5000']])
        """
        phases = ["phase"] if len({row.get("phase") for row in self._rows}) > 1 else []
        values = dict.fromkeys(key for row in self._rows for key in row if key not in BOOKKEEPING)
        names = ["epoch", *phases, *values]
        return names, [[fixed(row.get(name, "")) for name in names] for row in self._rows]

    def learn(self, metrics: Mapping[str, torchmetrics.Metric]) -> None:
        """Remember which way the metrics of a run are better, and the values that they cannot exceed.

        Args:
            metrics: Metrics by name.

        Example:
            >>> from torchmetrics.classification import MulticlassCohenKappa
            >>> history = History()
            >>> history.learn({"kappa": MulticlassCohenKappa(3)})
            >>> history.rises("kappa"), history.rises("own")
            (True, None)
        """
        for name, metric in metrics.items():
            self._scales[name] = metric.higher_is_better, metric.plot_lower_bound, metric.plot_upper_bound

    def rises(self, name: str) -> bool | None:
        """Return whether a higher value of a metric, or of `"loss"`, is better; None if the metric does not say.

        A function says so by an attribute `higher_is_better`.

        Example:
            >>> History().rises("accuracy"), History().rises("loss"), History().rises("own")
            (True, False, None)
        """
        from finetune.training.metrics.named import rises  # the metrics know the names of this module

        return self._scales[name][0] if name in self._scales else rises(name)

    def plot(self, path: str | Path | None = None, *, theme: str | None = None) -> Figure:
        """Plot losses and metrics by epoch, each in its own axes, and the learning rates below.

        Training and validation share the axes. The phases are shaded and named, and the best epoch is marked: by the
        validation value if there is one, where the metric says which way is better. See `rises`.

        Args:
            path: Path to also save the figure to; the suffix sets the format.
            theme: `"light"`, `"dark"`, or None for dark if matplotlib's style is dark.

        Returns:
            The matplotlib figure.

        Example:
            >>> history = History([{"epoch": 1, "loss": 0.7}, {"epoch": 2, "loss": 0.5}])
            >>> figure = history.plot("history.png")
        """
        return draw_curves(self._rows, self._plotted(), path, theme, rises=self.rises, bounds=self._bounds)

    def _bounds(self, name: str) -> tuple[float, float]:
        """Return the lowest and the highest value of a metric, or of `"loss"`."""
        from finetune.training.metrics.named import bounds

        low, high = bounds(name)
        _, lowest, highest = self._scales.get(name, (None, None, None))
        return low if lowest is None else lowest, high if highest is None else highest

    def _plotted(self) -> list[str]:
        numbers = (key for row in self._rows for key, value in row.items() if is_number(value))
        return list(dict.fromkeys(key.removeprefix("val_") for key in numbers if key not in BOOKKEEPING))
