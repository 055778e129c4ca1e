"""Summarize a model as a table: stages, parameters, freeze state and costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from finetune.display import html
from finetune.errors import whole_number
from finetune.model.inspection.costs import SampleCosts, measure_costs
from finetune.model.inspection.summary_rows import RateGroups, RowBuilder, SummaryRow
from finetune.model.stages import Stage

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 120


@dataclass(frozen=True)
class Summary:
    """The stages of a model from the stem to the head, and totals. `str()` returns the table.

    Attributes:
        title: Class name of the model.
        rows: One row per stage.
        costs: Costs of one sample, None without an example input.
        statistics: Number of norm layers with running statistics.
        moving_statistics: Number of norm layers whose running statistics are updated in training.
        modes: Current modes: `"training"` if every module is in the mode that its row shows, else `"train"`,
            `"eval"` or `"mixed"`.

    Example:
        >>> from finetune import FineTuner
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> summary = FineTuner(model).freeze().summary()
        >>> summary.parameters, summary.trainable
        (58, 18)
        >>> [row.stage for row in summary.rows]
        ['0', '2']
    """

    title: str
    rows: tuple[SummaryRow, ...]
    costs: SampleCosts | None
    statistics: int
    moving_statistics: int
    modes: str

    @property
    def parameters(self) -> int:
        """Number of parameters, shared ones counted once."""
        return sum(row.parameters for row in self.rows)

    @property
    def trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(row.trainable for row in self.rows)

    @property
    def multiply_adds(self) -> int | None:
        """Multiply-adds per sample in a forward pass; see `finetune.model.inspection.costs.measure_costs`."""
        return None if self.costs is None else self.costs.multiply_adds

    @property
    def activations(self) -> int | None:
        """Bytes per sample that a training step keeps for its backward pass."""
        return None if self.costs is None else self.costs.activations

    def __str__(self) -> str:
        from rich.console import Console

        page = StringIO()
        # Plain text in every environment, without markup because names may contain brackets.
        console = Console(
            file=page, width=_WIDTH, color_system=None, force_terminal=False, force_jupyter=False, markup=False
        )
        console.print(_table(self))
        lines = [line.rstrip() for line in page.getvalue().splitlines()]
        return "\n".join([*lines, *self.notes])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        names, lines = self.cells()
        return html.table(names, lines, text=3, caption=self.title) + html.paragraph(*self.notes)

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the cells of the table, the totals last.

        Example:
            >>> from finetune import FineTuner
            >>> names, lines = FineTuner(nn.Linear(4, 2), device="cpu").summary().cells()
            >>> dict(zip(names, lines[-1]))["parameters"]
            '10'
        """
        names = _shown(self)
        cells = [[each[name] for name in names] for row in self.rows for each in _cells(row)]
        return names, [*cells, _totals(self, names)]

    @property
    def notes(self) -> list[str]:
        """Lines below the table: costs, modes, running statistics, and weight decay."""
        return list(_notes(self))


def summarize(
    model: nn.Module, stages: Sequence[Stage], groups: RateGroups | None = None, inputs: Any = None, depth: int = 0
) -> Summary:
    """Summarize `model` by stages.

    Args:
        stages: The model's stages from the stem to the head.
        groups: Name and rate of the learning-rate group of each parameter, if training has been planned.
        inputs: A batch that the model accepts, to measure output shapes and costs. None to leave them out.
        depth: Levels of layers to list below each stage.

    Raises:
        ArgumentError: If the model does not accept the inputs.
    """
    depth = whole_number("depth", depth, at_least=0)
    costs = None if inputs is None else measure_costs(model, inputs)
    rows = RowBuilder(model, groups or {}, {} if costs is None else costs.shapes)
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None
    ]
    return Summary(
        title=type(model).__name__,
        rows=tuple(rows.of_stage(stage, depth) for stage in stages),
        costs=costs,
        statistics=len(norms),
        moving_statistics=sum(norm not in rows.frozen for norm in norms),
        modes=rows.current_modes(),
    )


def _table(summary: Summary) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=summary.title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    shown = _shown(summary)
    for name in shown:
        justify: Literal["left", "right"] = "right" if name in ("parameters", "trainable") else "left"
        # In a narrow table the layer column wraps first, and very long stage names too.
        wraps = name in ("layer", "lr group") or max((len(row.stage) for row in summary.rows), default=0) > _WIDTH // 3
        table.add_column(name, justify=justify, overflow="fold", no_wrap=not wraps)
    for row in summary.rows:
        for cells in _cells(row):
            table.add_row(*(cells[name] for name in shown))
    table.add_section()
    table.add_row(*_totals(summary, shown))
    return table


def _shown(summary: Summary) -> list[str]:
    """Return the names of the columns that have any content."""
    columns = ["stage", "layer", "output", "parameters", "trainable", "state", "mode", "lr group"]
    empty = {"output": summary.costs is None, "lr group": not any(row.groups for row in summary.rows)}
    return [name for name in columns if not empty.get(name)]


def _totals(summary: Summary, shown: Sequence[str]) -> list[str]:
    totals = {"stage": "all", "parameters": f"{summary.parameters:,}", "trainable": f"{summary.trainable:,}"}
    return [totals.get(name, "") for name in shown]


def _cells(row: SummaryRow, above: str = "", level: int = 0) -> Iterator[dict[str, str]]:
    """Yield the cells of a row by column, then those of its layers, indented."""
    name = row.layer.removeprefix(_shared(row.layer, above))
    rates = [f"{rate:.2g}" if group == row.stage else f"{group}: {rate:.2g}" for group, rate in row.groups]
    yield {
        "stage": "" if row.layer else row.stage,
        "layer": f"{'  ' * level}{name} {row.kind}" if row.layer else row.kind,
        "output": "" if row.shape is None else str(list(row.shape)),
        "parameters": f"{row.parameters:,}",
        "trainable": f"{row.trainable:,}",
        "state": row.state,
        "mode": row.mode,
        "lr group": ", ".join(rates),
    }
    for layer in row.layers:
        yield from _cells(layer, row.layer or row.stage, level + 1)


def _shared(name: str, above: str) -> str:
    """Return the prefix that a layer's name shares with the row `above` and that is not repeated."""
    parts = name.split(".")[:-1]
    same = takewhile(lambda pair: pair[0] == pair[1], zip(parts, above.split("."), strict=False))
    return "".join(f"{part}." for part, _ in same)


def _notes(summary: Summary) -> Iterator[str]:
    """Yield the lines below the table."""
    if summary.costs is not None:
        sizes = ", ".join(str(list(size)) for size in summary.costs.sizes)
        done = _scaled(summary.costs.multiply_adds, {"": 1, "M": 10**6, "G": 10**9})
        yield f"Per sample of size {sizes}: {done} multiply-adds{_kept(summary.costs.activations)}."
    now = {
        "training": "; the model is in these modes now",
        "train": "; the whole model is in train mode now",
        "eval": "; the whole model is in eval mode now",
        "mixed": "; the model is in different modes now",
    }[summary.modes]
    yield f"Modes are those during training{now}."
    if summary.statistics:
        moving = f"{summary.moving_statistics:,} of {summary.statistics:,}"
        yield f"Running statistics: training updates those of {moving} norm layers; frozen layers keep theirs."
    yield "Weight decay does not apply to norm weights and biases."


def _kept(activations: int | None) -> str:
    if activations is None:
        return ""
    return f", {_scaled(activations, {'B': 1, 'kB': 10**3, 'MB': 10**6})} of activations kept for the backward pass"


def _scaled(number: int, units: Mapping[str, int]) -> str:
    """Return a number in the largest unit that does not exceed it."""
    unit, size = max(((unit, size) for unit, size in units.items() if size <= max(1, number)), key=lambda pair: pair[1])
    return f"{number / size:,.{0 if size == 1 else 2}f} {unit}".rstrip()
