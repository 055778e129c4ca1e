"""What each stage and layer of a model is, as rows: its kind, its parameters, what trains and in which mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from finetune.model.freezing import frozen_modules
from finetune.model.patterns import names_above
from finetune.model.stages import Stage

Groups = Mapping[str, tuple[str, float]]


@dataclass(frozen=True)
class Row:
    """One stage, or one layer of a stage.

    Attributes:
        stage: the stage's name.
        layer: the layer's full name; empty for the stage as a whole.
        kind: what it is made of, as `"2 x BasicBlock"`.
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


class Rows:
    """Makes the rows of one model at its present freeze state.

    Args:
        groups: by parameter, the name and the rate of its learning-rate group.
        shapes: by module, that of its output.
    """

    def __init__(self, model: nn.Module, groups: Groups, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.model = model
        self.groups = groups
        self.shapes = shapes
        self.parameters = dict(model.named_parameters())
        self.modules = dict(model.named_modules())
        self.frozen = set(frozen_modules(model))

    def of_stage(self, stage: Stage, depth: int) -> Row:
        """Return a stage's row, with those of its layers down to `depth` levels."""
        tops = _outermost(self.parameters, stage)
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
        return _mode({module.training for module in self.modules.values()})

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
        layers: tuple[Row, ...],
    ) -> Row:
        own = [self.parameters[name] for name in names]
        training = [name for name in names if self.parameters[name].requires_grad and name in self.groups]
        modules = [module for part in parts if part in self.modules for module in self.modules[part].modules()]
        return Row(
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
    """Return the outermost modules of which all parameters are the stage's, and its parameters in none of them."""
    total = Counter(around for name in parameters for around in names_above(name))
    held = Counter(around for name in stage.parameters for around in names_above(name))
    whole = {around for around in held if held[around] == total[around]} - set(names_above(stage.name))
    parts = [[*(around for around in names_above(name) if around in whole), name][0] for name in stage.parameters]
    return list(dict.fromkeys(parts))


def _kind(module: nn.Module) -> str:
    """Say what a module is: its class, or for a plain container what it contains."""
    if type(module) in (nn.Sequential, nn.ModuleList, nn.ModuleDict) and any(True for _ in module.children()):
        return _listed([_kind(child) for child in module.children()])
    return type(module).__name__


def _listed(kinds: Sequence[str], most: int = 3) -> str:
    runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
    described = [kind if count == 1 else f"{count} x {kind}" for kind, count in runs]
    return ", ".join([*described[:most], "…"] if len(described) > most else described)
