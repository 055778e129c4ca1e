"""The lines about a run: an overview before the first epoch, and the values of each epoch."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from finetune.data.loading.batches import Batches
from finetune.display.lines import line_width
from finetune.display.numbers import fixed
from finetune.distributed.norms import can_join_norms
from finetune.model.freezing import frozen_modules
from finetune.model.network import Network
from finetune.model.stages import is_norm
from finetune.model.surgery.changes import HeadReplacement
from finetune.model.surgery.heads import describe_layer
from finetune.training.history import BOOKKEEPING
from finetune.training.optim.phases import Phase
from finetune.training.run import Run

_MAX_LISTED_RATES = 8  # with more parameter groups, only the first and the last rate are shown
_MAX_LISTED_CLASSES = 10
_INDENT = 10  # columns of the names in the overview


def describe_run(run: Run) -> Iterator[str]:
    """Yield the lines of the overview: model, head, task, classes, data, parts left out, and phases."""
    rows = {
        "Model": [describe_model(run.network), f"{run.precision.name} on {run.precision.device}"],
        "Head": [describe_head(run.network)] if run.heads else [],
        "Task": [run.task.why or f"{run.task.kind or 'custom'}, {_loss(run)}"],
        "Classes": listed(run.train.source.classes or ()),
        "Data": [_samples(run.train, run.val)],
        "Processes": _processes(run),
    }
    for name, parts in rows.items():
        if parts:
            yield from _row(name, ", ".join(parts))
    for note in run.notes:
        yield from _row("", note)
    if run.left_out:
        yield from _row("Left out", ", ".join(run.left_out))
    for number, line in enumerate(run.plan):
        yield from _row(("Phases" if len(run.plan) > 1 else "Training") if number == 0 else "", line)


def describe_model(network: Network) -> str:
    """Return the name of a model and its number of parameters."""
    name = (network.origin or {}).get("name") or type(network.module).__name__
    parameters = list(network.module.parameters())
    if any(map(is_lazy, parameters)):
        return f"{name}, with lazy layers that have seen no data"
    count = sum(parameter.numel() for parameter in parameters)
    return f"{name}, {_amount(count)} parameters"


def describe_head(network: Network) -> str:
    """Return the main head of a model, which has been found: its name, its sizes, and whether it is new."""
    name = network.found_heads[0]
    shown = describe_layer(network.module.get_submodule(name))
    new = any(isinstance(change, HeadReplacement) and name in change.names for change in network.changes)
    return f"{name or 'the model itself'}: {shown}{', replaced' if new else ''}"


def describe_phase(model: nn.Module, phase: Phase, optimizer: Optimizer) -> str:
    """Describe a phase in one line: length, trainable parameters and learning rates.

    Args:
        model: Model with the freeze state of the phase.
        phase: Phase to describe.
        optimizer: Optimizer of the phase.
    """
    groups = optimizer.param_groups
    names = list(dict.fromkeys(group.get("name", "all") for group in groups))
    count = sum(parameter.numel() for group in groups for parameter in group["params"])
    total = sum(parameter.numel() for parameter in model.parameters())
    epochs = f"{phase.epochs} epoch" + "s" * (phase.epochs > 1)
    start = "" if phase.start_from is None else f" from {phase.start_from}"
    trained = f"{count:,} of {total:,} parameters" if count < total else f"all {total:,} parameters"
    if names != ["all"]:
        trained = f"{names[0] if len(names) == 1 else f'{names[0]} to {names[-1]}'} ({trained})"
    return f"{phase.name}: {epochs}{start}, training {trained}, lr {_rates(groups)}{_norms(model)}"


def describe_epoch(run: Run) -> tuple[str, dict[str, str]]:
    """Describe the epoch that just ended: loss, metrics and speed, as a line and as cells of a table by name."""
    row = run.row
    number, speed = f"{run.position.epoch}/{run.phase.epochs}", f"{row['samples_per_second']:,.0f}"
    values = {name: fixed(value) for name, value in row.items() if name not in BOOKKEEPING}
    shown = "  ".join(f"{name} {value}" for name, value in values.items())
    line = f"epoch {number}  {shown}  {row['seconds']:.1f} s, {speed} samples/s"
    return line, {"epoch": number, **values, "seconds": f"{row['seconds']:.1f}", "samples/s": speed}


def _row(name: str, text: str) -> list[str]:
    """Return the lines of a row of the overview, with the text in a column of its own."""
    first, others = name.ljust(_INDENT), " " * _INDENT
    return textwrap.wrap(text, line_width(), initial_indent=first, subsequent_indent=others, break_long_words=False)


def _amount(count: int) -> str:
    return f"{count:,}" if count < 10**6 else f"{count / 10**6:,.1f} million"


def _loss(run: Run) -> str:
    return getattr(run.task.loss, "__name__", type(run.task.loss).__name__).replace("_", " ")


def listed(classes: Sequence[str]) -> list[str]:
    """Return the class names in their order; of many, the first ones, the number and the last one."""
    shown = list(classes[:_MAX_LISTED_CLASSES])
    if len(classes) > len(shown):
        shown = [*shown[:-1], f"... ({len(classes)} in all), {classes[-1]}"]
    return shown


def _samples(train: Batches, val: Batches | None) -> str:
    validation = "no validation" if val is None else f"{_number(val)} for validation"
    return f"{_number(train)} for training, {validation}"


def _processes(run: Run) -> list[str]:
    """Describe how several processes divide a batch, and whether its batch statistics are those of all of it."""
    size, batch = run.world.size, run.train.batch_size
    if size == 1:
        return []
    weights = "each holds a part of the weights" if run.world.shards else ""
    seen = "all of a batch" if can_join_norms(run.train.device) else "each process's own batch"
    norms = any(isinstance(module, _BatchNorm) for module in run.model.modules())
    norms_see = f"batch norms that train see {seen}" if norms else ""
    batches = f"{size}, batch size {batch} in each and {size * batch} in all"
    return [part for part in (batches, weights, norms_see) if part]


def _number(batches: Batches) -> str:
    samples = batches.source.num_samples
    return "a stream of samples" if samples is None else f"{samples:,} sample{'s' * (samples != 1)}"


def _rates(groups: Sequence[Mapping[str, Any]]) -> str:
    rates = {group.get("name", "all"): f"{group['initial_lr']:.2g}" for group in groups}
    first, last = next(iter(rates)), list(rates)[-1]
    if len(set(rates.values())) == 1:
        return rates[first]
    if len(rates) > _MAX_LISTED_RATES:
        return f"{rates[first]} ({first}) to {rates[last]} ({last}) in {len(rates)} groups"
    return ", ".join(f"{rate} ({name})" for name, rate in rates.items())


def _norms(model: nn.Module) -> str:
    frozen = set(frozen_modules(model))
    norms = [module for module in model.modules() if is_norm(module)]
    return f", {sum(norm in frozen for norm in norms)} of {len(norms)} norm layers frozen" if norms else ""
