"""The table a person reads: what is frozen, what trains, what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import takewhile
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from finetune.model.inspection.costs import Costs, measure
from finetune.model.inspection.summary_rows import Groups, Row, Rows
from finetune.model.stages import Stage

_WIDTH = 120


@dataclass(frozen=True)
class Summary:
    """The stages of a model from the stem to the head, and its totals. `str()` gives the table.

    Attributes:
        title: the model's class.
        rows: a row for each stage.
        costs: what one sample costs; None where no input was known.
        statistics: how many norm layers keep running statistics.
        moving_statistics: how many of them move theirs in training; the others' stand.
        modes: what the model is in now: `"training"` where that is what the rows say, else `"train"`, `"eval"` or
            `"mixed"`.
    """

    title: str
    rows: tuple[Row, ...]
    costs: Costs | None
    statistics: int
    moving_statistics: int
    modes: str

    @property
    def parameters(self) -> int:
        """How many numbers the model learns in all, shared ones once."""
        return sum(row.parameters for row in self.rows)

    @property
    def trainable(self) -> int:
        """How many of them train at the present freeze state."""
        return sum(row.trainable for row in self.rows)

    @property
    def multiply_adds(self) -> int | None:
        """Multiply-adds of one sample's forward pass; `finetune.model.inspection.costs.measure` says what counts."""
        return None if self.costs is None else self.costs.multiply_adds

    @property
    def activations(self) -> int | None:
        """Bytes a sample that a training step keeps for its backward pass at the present freeze state."""
        return None if self.costs is None else self.costs.activations

    def __str__(self) -> str:
        page = StringIO()
        # plain text wherever it runs, and names in brackets are no markup
        console = Console(
            file=page, width=_WIDTH, color_system=None, force_terminal=False, force_jupyter=False, markup=False
        )
        console.print(_table(self))
        lines = [line.rstrip() for line in page.getvalue().splitlines()]
        return "\n".join([*lines, *_notes(self)])

    __repr__ = __str__


def summarize(
    model: nn.Module, stages: Sequence[Stage], groups: Groups | None = None, inputs: Any = None, depth: int = 0
) -> Summary:
    """Summarise `model` by stages.

    Args:
        stages: the model's, from the stem to the head.
        groups: by parameter, the name and the rate of its learning-rate group, where training is planned.
        inputs: a batch that the model accepts; with it come output shapes and costs.
        depth: how many levels of layers to list below each stage.

    Raises:
        ArgumentError: the model does not accept the inputs.
    """
    costs = None if inputs is None else measure(model, inputs)
    rows = Rows(model, groups or {}, {} if costs is None else costs.shapes)
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
        modes=rows.present_modes(),
    )


def _table(summary: Summary) -> Table:
    table = Table(title=summary.title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    shown = ["stage", "layer", "output", "parameters", "trainable", "state", "mode", "lr group"]
    if summary.costs is None:
        shown.remove("output")
    if not any(row.groups for row in summary.rows):
        shown.remove("lr group")
    for name in shown:
        justify: Literal["left", "right"] = "right" if name in ("parameters", "trainable") else "left"
        # where it gets narrow, what a layer is made of breaks into lines, and what is longer still
        wraps = name in ("layer", "lr group") or max((len(row.stage) for row in summary.rows), default=0) > _WIDTH // 3
        table.add_column(name, justify=justify, overflow="fold", no_wrap=not wraps)
    for row in summary.rows:
        for cells in _cells(row):
            table.add_row(*(cells[name] for name in shown))
    table.add_section()
    totals = {"stage": "all", "parameters": f"{summary.parameters:,}", "trainable": f"{summary.trainable:,}"}
    table.add_row(*(totals.get(name, "") for name in shown))
    return table


def _cells(row: Row, above: str = "", level: int = 0) -> Iterator[dict[str, str]]:
    """Yield the cells of a row by column, then those of its layers, which are set in below it."""
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
    """Return how a layer's name begins that needs no saying below `above`."""
    parts = name.split(".")[:-1]
    same = takewhile(lambda pair: pair[0] == pair[1], zip(parts, above.split("."), strict=False))
    return "".join(f"{part}." for part, _ in same)


def _notes(summary: Summary) -> Iterator[str]:
    """Yield what is said below the table, a line each."""
    if summary.costs is not None:
        sizes = ", ".join(str(list(size)) for size in summary.costs.sizes)
        done = _scaled(summary.costs.multiply_adds, {"": 1, "M": 10**6, "G": 10**9})
        yield f"A sample of size {sizes}: {done} multiply-adds{_kept(summary.costs.activations)}."
    now = {
        "training": "the model is in it now",
        "train": "now all of the model is in train mode",
        "eval": "now all of the model is in eval mode",
        "mixed": "now the model is in others",
    }[summary.modes]
    yield f"The mode is the one in training; {now}."
    if summary.statistics:
        moving = f"{summary.moving_statistics:,} of {summary.statistics:,}"
        yield f"Running statistics: {moving} norm layers move theirs in training; a frozen layer's stand still."
    yield "Norm weights and biases take no weight decay."


def _kept(activations: int | None) -> str:
    if activations is None:
        return ""
    return f", {_scaled(activations, {'B': 1, 'kB': 10**3, 'MB': 10**6})} of activations kept for the backward pass"


def _scaled(number: int, units: Mapping[str, int]) -> str:
    """Return a number in the largest unit of which it has one or more."""
    unit, size = max(((unit, size) for unit, size in units.items() if size <= max(1, number)), key=lambda pair: pair[1])
    return f"{number / size:,.{0 if size == 1 else 2}f} {unit}".rstrip()
