"""The table a person reads: what is frozen, what trains, what it costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from finetune.model.costs import Costs, measure
from finetune.model.freezing import frozen_modules
from finetune.model.stages import Stage

Groups = Mapping[str, tuple[str, float]]

_WIDTH = 120


@dataclass(frozen=True)
class Row:
    """One stage, or one layer of a stage.

    Attributes:
        stage: the stage's name.
        layer: the layer's full name; empty for the stage as a whole.
        kind: what it is made of, as `"2 × BasicBlock"`.
        parameters: how many numbers it learns, those it shares with an earlier layer left out.
        trainable: how many of them train at the present freeze state.
        mode: `"train"`, `"eval"` or `"mixed"`: what it runs in during training; empty for a bare parameter.
        groups: the names and rates of the learning-rate groups that train it.
        shape: that of its output for one sample, None where it is not known.
        layers: the layers in it, as far as they were asked for.
    """

    stage: str
    layer: str
    kind: str
    parameters: int
    trainable: int
    mode: str
    groups: tuple[tuple[str, float], ...] = ()
    shape: tuple[int, ...] | None = None
    layers: tuple[Row, ...] = ()

    @property
    def state(self) -> str:
        """`"frozen"`, `"training"`, or `"partly frozen"`; empty for what has no parameters."""
        if not self.parameters:
            return ""
        return {0: "frozen", self.parameters: "training"}.get(self.trainable, "partly frozen")


@dataclass(frozen=True)
class Summary:
    """The stages of a model from the stem to the head, and its totals. `str()` gives the table.

    Attributes:
        title: the model's class.
        rows: a row for each stage.
        costs: what one sample costs; None where no input was known.
        statistics: how many norm layers keep running statistics.
        moving_statistics: how many of them move theirs in training; the others' stand.
        modes: what the model is in now: `"training"`, where that is what the table shows, `"eval"` or `"other"`.
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
        """Multiply-adds of one sample's forward pass; `finetune.model.costs.measure` says what counts."""
        return self.costs and self.costs.multiply_adds

    @property
    def activations(self) -> int | None:
        """Bytes a sample that a training step keeps for its backward pass at the present freeze state."""
        return self.costs and self.costs.activations

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
    view = _View(model, groups or {}, {} if costs is None else costs.shapes)
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None
    ]
    return Summary(
        title=type(model).__name__,
        rows=tuple(view.stage(stage, depth) for stage in stages),
        costs=costs,
        statistics=len(norms),
        moving_statistics=sum(norm not in view.frozen for norm in norms),
        modes=view.present_modes(),
    )


class _View:
    """A model, and what its rows say of it."""

    def __init__(self, model: nn.Module, groups: Groups, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.model = model
        self.groups = groups
        self.shapes = shapes
        self.parameters = dict(model.named_parameters())
        self.modules = dict(model.named_modules())
        self.frozen = set(frozen_modules(model))

    def stage(self, stage: Stage, depth: int) -> Row:
        """Return a stage's row, with those of its layers down to `depth` levels."""
        tops = _outermost(self.parameters, stage.parameters)
        if len(tops) == 1 and tops[0] in self.modules:
            kind, layers = _kind(self.modules[tops[0]]), self._inside(tops[0])
        else:
            kind, layers = _listed([self._kind(name) for name in tops]), tops
        shaped = [name for name in (stage.name, *reversed(tops)) if name in self.shapes]
        shape = self.shapes[shaped[0]] if shaped else None
        listed = self._layers(stage, layers, depth)
        return self._row(stage.name, "", kind, stage.parameters, tops, shape, listed)

    def present_modes(self) -> str:
        """Say what the model is in now."""
        if all(module.training is (module not in self.frozen) for module in self.modules.values()):
            return "training"
        return "other" if any(module.training for module in self.modules.values()) else "eval"

    def _layers(self, stage: Stage, names: Sequence[str], depth: int) -> tuple[Row, ...]:
        if depth < 1:
            return ()
        rows = []
        for name in names:
            within = [own for own in stage.parameters if own == name or own.startswith(f"{name}.") or not name]
            listed = self._layers(stage, self._inside(name), depth - 1)
            rows.append(self._row(stage.name, name, self._kind(name), within, [name], self.shapes.get(name), listed))
        return tuple(rows)

    def _inside(self, name: str) -> list[str]:
        """Return the full names of a module's bare parameters and of the modules right below it."""
        if name not in self.modules:
            return []
        module, before = self.modules[name], f"{name}." if name else ""
        children = [child for child, _ in module.named_children()]
        bare = [own for own, _ in module.named_parameters(recurse=False)] if children else []
        return [before + own for own in (*bare, *children) if before + own in {*self.parameters, *self.modules}]

    def _row(
        self,
        stage: str,
        layer: str,
        kind: str,
        names: Sequence[str],
        parts: Sequence[str],
        shape: tuple[int, ...] | None,
        layers: tuple[Row, ...],
    ) -> Row:
        own = [self.parameters[name] for name in names]
        training = [name for name in names if self.parameters[name].requires_grad and name in self.groups]
        modules = [module for part in parts if part in self.modules for module in self.modules[part].modules()]
        modes = {"eval" if module in self.frozen else "train" for module in modules}
        return Row(
            stage=stage,
            layer=layer,
            kind=kind,
            parameters=sum(parameter.numel() for parameter in own),
            trainable=sum(parameter.numel() for parameter in own if parameter.requires_grad),
            mode="mixed" if len(modes) > 1 else "".join(modes),
            groups=tuple(dict.fromkeys(self.groups[name] for name in training)),
            shape=shape,
            layers=layers,
        )

    def _kind(self, name: str) -> str:
        return _kind(self.modules[name]) if name in self.modules else "Parameter"


def _outermost(everything: Sequence[str] | Mapping[str, Any], chosen: Sequence[str]) -> list[str]:
    """Return the outermost modules of which all parameters are `chosen`, and the chosen parameters in none."""
    total = Counter(around for name in everything for around in _around(name))
    held = Counter(around for name in chosen for around in _around(name))
    return list(
        dict.fromkeys(next(part for part in (*_around(name), name) if held[part] == total[part]) for name in chosen)
    )


def _around(name: str) -> list[str]:
    """Return the full names of the modules around a parameter, the outermost, `""`, first."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts))]


def _kind(module: nn.Module) -> str:
    """Say what a module is: its class, or for a plain container what it contains."""
    if type(module) in (nn.Sequential, nn.ModuleList, nn.ModuleDict) and len(list(module.children())):
        return _listed([_kind(child) for child in module.children()])
    return type(module).__name__


def _listed(kinds: Sequence[str], most: int = 3) -> str:
    runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
    described = [kind if count == 1 else f"{count} × {kind}" for kind, count in runs]
    return ", ".join([*described[:most], "…"] if len(described) > most else described)


def _table(summary: Summary) -> Table:
    table = Table(title=summary.title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    shown = ["stage", "layer", "output", "parameters", "trainable", "state", "mode", "lr group"]
    if summary.costs is None:
        shown.remove("output")
    if not any(row.groups for row in summary.rows):
        shown.remove("lr group")
    for name in shown:
        table.add_column(
            name, justify="right" if name in ("parameters", "trainable") else "left", overflow="fold"
        )
    for row in summary.rows:
        for cells in _cells(row):
            table.add_row(*(cells[name] for name in shown))
    table.add_section()
    totals = {"stage": "all", "parameters": f"{summary.parameters:,}", "trainable": f"{summary.trainable:,}"}
    table.add_row(*(totals.get(name, "") for name in shown))
    return table


def _cells(row: Row, above: str = "", level: int = 0) -> Iterator[dict[str, str]]:
    """Yield the cells of a row by column, then those of its layers, which are set in below it."""
    name = row.layer.removeprefix(f"{above}.")
    yield {
        "stage": "" if row.layer else row.stage,
        "layer": f"{'  ' * level}{name} {row.kind}" if row.layer else row.kind,
        "output": "" if row.shape is None else str(list(row.shape)),
        "parameters": f"{row.parameters:,}",
        "trainable": f"{row.trainable:,}",
        "state": row.state,
        "mode": row.mode,
        "lr group": ", ".join(f"{rate:.2g}" if name == row.stage else f"{name}: {rate:.2g}" for name, rate in row.groups),
    }
    for layer in row.layers:
        yield from _cells(layer, row.layer or row.stage, level + 1)


def _notes(summary: Summary) -> Iterator[str]:
    """Yield what is said below the table, a line each."""
    if summary.costs is not None:
        sizes = ", ".join(str(list(size)) for size in summary.costs.sizes)
        kept = summary.activations
        memory = "" if kept is None else f", {kept / 1e6:,.2f} MB of activations kept for the backward pass"
        yield f"A sample of size {sizes}: {_counted(summary.costs.multiply_adds)} multiply-adds{memory}."
    now = {
        "training": "which it is in now",
        "eval": "now it is in eval mode",
        "other": "now it is in other modes",
    }[summary.modes]
    yield f"Mode: what each part of the model runs in during training; {now}."
    if summary.statistics:
        yield (
            f"Running statistics: {summary.moving_statistics} of {summary.statistics} norm layers move theirs in "
            f"training; those of frozen layers stand."
        )
    yield "Norm weights and biases take no weight decay."


def _counted(number: int) -> str:
    for size, unit in ((10**9, " G"), (10**6, " M")):
        if number >= size:
            return f"{number / size:,.2f}{unit}"
    return f"{number:,}"
