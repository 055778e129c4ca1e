"""Describe the stages and layers of a model as rows: kind, parameters, freeze state and mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from finetune.model.freezing import frozen_modules
from finetune.model.patterns import names_above
from finetune.model.stages import Stage

RateGroups = Mapping[str, tuple[str, float]]


@dataclass(frozen=True)
class SummaryRow:
    """One stage, or one layer of a stage.

    Attributes:
        stage: Name of the stage.
        layer: Full name of the layer, empty for a whole stage.
        kind: Classes of its modules, such as `"2 x BasicBlock"`.
        parameters: Number of parameters, without those shared with an earlier layer.
        trainable: Number of trainable parameters.
        mode: Mode during training: `"train"`, `"eval"` or `"mixed"`; empty for a bare parameter.
        groups: Names and rates of the learning-rate groups that train it.
        shape: Output shape for one sample, None if unknown.
        layers: Rows of its layers, down to the requested depth.

    Example:
        >>> from finetune import FineTuner
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> row = FineTuner(model).freeze().summary().rows[-1]
        >>> row.stage, row.kind, row.state, row.trainable
        ('2', 'Linear', 'training', 18)
    """

    stage: str
    layer: str
    kind: str
    parameters: int
    trainable: int
    mode: str
    groups: tuple[tuple[str, float], ...] = ()
    shape: tuple[int, ...] | None = None
    layers: tuple[SummaryRow, ...] = ()

    @property
    def state(self) -> str:
        """Freeze state: `"frozen"`, `"training"` or `"partly frozen"`; empty without parameters."""
        if not self.parameters:
            return ""
        return {0: "frozen", self.parameters: "training"}.get(self.trainable, "partly frozen")


class RowBuilder:
    """Builder of the rows of a model in its current freeze state.

    Args:
        groups: Name and rate of the learning-rate group of each parameter.
        shapes: Output shape of each module for one sample.
    """

    def __init__(self, model: nn.Module, groups: RateGroups, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.model = model
        self.groups = groups
        self.shapes = shapes
        self.parameters = dict(model.named_parameters())
        self.modules = dict(model.named_modules())
        self.frozen = set(frozen_modules(model))

    def of_stage(self, stage: Stage, depth: int) -> SummaryRow:
        """Return the row of a stage, with rows of its layers down to `depth` levels."""
        tops = _outermost(self.parameters, stage)
        if len(tops) == 1 and tops[0] in self.modules:
            kind, layers = _kind(self.modules[tops[0]]), self._inside(tops[0])
        else:
            kind, layers = _listed([self._kind(name) for name in tops]), tops
        shaped = [name for name in (stage.name, *reversed(tops)) if name in self.shapes]
        shape = self.shapes[shaped[0]] if shaped else None
        listed = self._layers(stage, layers, depth)
        return self._row(stage.name, "", kind, stage.parameters, tops, shape, listed)

    def current_modes(self) -> str:
        """Return the current modes, `"training"` if they are those of the rows; see `Summary.modes`."""
        if all(module.training is (module not in self.frozen) for module in self.modules.values()):
            return "training"
        return _mode({module.training for module in self.modules.values()})

    def _layers(self, stage: Stage, names: Sequence[str], depth: int) -> tuple[SummaryRow, ...]:
        if depth < 1:
            return ()
        rows = []
        for name in names:
            within = [own for own in stage.parameters if own == name or own.startswith(f"{name}.") or not name]
            listed = self._layers(stage, self._inside(name), depth - 1)
            rows.append(self._row(stage.name, name, self._kind(name), within, [name], self.shapes.get(name), listed))
        return tuple(rows)

    def _inside(self, name: str) -> list[str]:
        """Return the full names of a module's own parameters and of its direct submodules."""
        if name not in self.modules:
            return []
        module, before = self.modules[name], f"{name}." if name else ""
        children = [child for child, _ in module.named_children()]
        bare = [own for own, _ in module.named_parameters(recurse=False)] if children else []
        names = [before + own for own in (*bare, *children)]
        return [own for own in names if own in self.parameters or own in self.modules]

    def _row(
        self,
        stage: str,
        layer: str,
        kind: str,
        names: Sequence[str],
        parts: Sequence[str],
        shape: tuple[int, ...] | None,
        layers: tuple[SummaryRow, ...],
    ) -> SummaryRow:
        own = [self.parameters[name] for name in names]
        training = [name for name in names if self.parameters[name].requires_grad and name in self.groups]
        modules = [module for part in parts if part in self.modules for module in self.modules[part].modules()]
        return SummaryRow(
            stage=stage,
            layer=layer,
            kind=kind,
            parameters=sum(parameter.numel() for parameter in own),
            trainable=sum(parameter.numel() for parameter in own if parameter.requires_grad),
            mode=_mode({module not in self.frozen for module in modules}),
            groups=tuple(dict.fromkeys(self.groups[name] for name in training)),
            shape=shape,
            layers=layers,
        )

    def _kind(self, name: str) -> str:
        return _kind(self.modules[name]) if name in self.modules else name.rpartition(".")[2]


def _mode(training: set[bool]) -> str:
    return "mixed" if len(training) > 1 else "".join("train" if value else "eval" for value in training)


def _outermost(parameters: Iterable[str], stage: Stage) -> list[str]:
    """Return the outermost modules whose parameters all belong to the stage, and the stage's remaining parameters."""
    total = Counter(around for name in parameters for around in names_above(name))
    held = Counter(around for name in stage.parameters for around in names_above(name))
    whole = {around for around in held if held[around] == total[around]} - set(names_above(stage.name))
    parts = [[*(around for around in names_above(name) if around in whole), name][0] for name in stage.parameters]
    return list(dict.fromkeys(parts))


def _kind(module: nn.Module) -> str:
    """Return a module's class name, or for a plain container those of its parts."""
    if type(module) in (nn.Sequential, nn.ModuleList, nn.ModuleDict) and any(True for _ in module.children()):
        return _listed([_kind(child) for child in module.children()])
    return type(module).__name__


def _listed(kinds: Sequence[str], most: int = 3) -> str:
    runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
    described = [kind if count == 1 else f"{count} x {kind}" for kind, count in runs]
    return ", ".join([*described[:most], "…"] if len(described) > most else described)
