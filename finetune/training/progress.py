"""The progress display: an overview, a bar and a line per epoch.

Lines are logged at level INFO, and shown as `finetune.display.lines` tells. If standard error is a terminal, rich also
draws a bar there, in a thread, a few times per second, so a training step costs one comparison.
"""

from __future__ import annotations

import logging
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from finetune.data.loading.batches import Batches
from finetune.display.lines import lines_shown, log, print_line
from finetune.display.numbers import fixed
from finetune.display.waits import INTERVAL, new_bar, terminal, waits_shown
from finetune.model.freezing import frozen_modules
from finetune.model.network import Network
from finetune.model.stages import is_norm
from finetune.model.surgery.changes import HeadReplacement
from finetune.model.surgery.heads import describe_layer
from finetune.training.callbacks.base import Callback
from finetune.training.history import BOOKKEEPING
from finetune.training.optim.phases import Phase
from finetune.training.run import Run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

series_log = logging.getLogger("finetune.series")  # apart, so that a series shows no lines of its runs

_MAX_LISTED_RATES = 8  # with more parameter groups, only the first and the last rate are shown
_MAX_LISTED_CLASSES = 10
_WIDTH = 110  # columns of the overview
_INDENT = 10  # columns of the names in the overview


class ProgressBar(Callback):
    """Show the overview of a run, the progress within each epoch, and the values of each epoch.

    Args:
        console: Console to draw on; None for the bar on standard error and the lines on standard output.
        interval: Seconds between two updates of the bar.
    """

    only_watches = True

    def __init__(self, console: Console | None = None, interval: float = INTERVAL) -> None:
        self._console = console or terminal()
        self._show = print_line if console is None else partial(console.print, highlight=False, markup=False)
        self._interval = interval
        self._shown = ExitStack()
        self._bar: Progress | None = None
        self._due = 0.0

    def on_fit_begin(self, run: Run) -> None:
        self._shown.enter_context(lines_shown(self._show))
        for line in describe_run(run):
            log.info(line)

    def on_phase_begin(self, run: Run) -> None:
        if len(run.phases) > 1:
            log.info(f"Phase {run.position.phase + 1} of {len(run.phases)}: {run.phase.name}")
        if self._console.is_terminal:
            self._bar = new_bar(self._console)
            self._bar.start()

    def on_epoch_begin(self, run: Run) -> None:
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(_epoch(run), total=run.steps_per_epoch, completed=run.position.window)
        self._due = time.monotonic() + self._interval

    def on_step_end(self, run: Run) -> None:
        if self._bar is not None and time.monotonic() >= self._due:
            self._bar.update(self._bar.task_ids[-1], completed=run.position.window)
            self._due = time.monotonic() + self._interval

    def on_evaluate_begin(self, run: Run) -> None:
        if self._bar is not None:
            task = self._bar.task_ids[-1]
            self._bar.update(task, description=f"{_epoch(run)}, validation", completed=run.position.window)

    def on_epoch_end(self, run: Run) -> None:
        log.info(describe_epoch(run))

    def on_phase_end(self, run: Run) -> None:
        self._stop()

    def on_fit_end(self, run: Run) -> None:
        self._stop()
        self._shown.close()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class SeriesProgress:
    """Progress display for a series of runs: a bar over all epochs, and a line per run.

    Args:
        runs: Number of runs.
        epochs: Number of epochs per run.
        shown: Whether to show anything; False only logs.
        console: Console to draw on; None for the bar on standard error and the lines on standard output.
    """

    def __init__(self, runs: int, epochs: int, *, shown: bool = True, console: Console | None = None) -> None:
        show = print_line if console is None else partial(console.print, highlight=False, markup=False)
        console = console or terminal()
        self._bar = new_bar(console, disable=not (shown and console.is_terminal))
        self._task = self._bar.add_task("", total=runs * epochs)
        self._runs, self._epochs, self._done = runs, epochs, 0
        self._show, self._shown = show if shown else None, ExitStack()

    def __enter__(self) -> SeriesProgress:
        self._shown.enter_context(waits_shown(False))
        if self._show is not None:
            self._shown.enter_context(lines_shown(self._show, series_log))
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        self._shown.close()

    def begin(self, name: str) -> None:
        """Announce the next run."""
        self._bar.update(self._task, description=f"{self._done + 1} of {self._runs}: {name}")

    def epoch(self) -> None:
        """Count a finished epoch of the current run."""
        self._bar.advance(self._task)

    def end(self, line: str) -> None:
        """Show and log the result of the current run."""
        self._done += 1
        series_log.info(f"{self._done} of {self._runs}: {line}")
        self._bar.update(self._task, completed=self._done * self._epochs)


def describe_run(run: Run) -> Iterator[str]:
    """Yield the lines of the overview: model, head, task, classes, data, parts left out, and phases."""
    rows = {
        "Model": [describe_model(run.network), f"{run.precision.name} on {run.precision.device}"],
        "Head": [describe_head(run.network)] if run.heads else [],
        "Task": [run.task.why or f"{run.task.kind or 'custom'}, {_loss(run)}"],
        "Classes": listed(run.train.source.classes or ()),
        "Data": [_samples(run.train, run.val)],
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


def describe_epoch(run: Run) -> str:
    """Describe the epoch that just ended in one line: loss, metrics and speed."""
    row = run.row
    values = [f"{name} {fixed(value)}" for name, value in row.items() if name not in BOOKKEEPING]
    speed = f"{row['samples_per_second']:,.0f} samples/s"
    return f"epoch {run.position.epoch}/{run.phase.epochs}  {'  '.join(values)}  {row['seconds']:.1f} s, {speed}"


def _row(name: str, text: str) -> list[str]:
    """Return the lines of a row of the overview, with the text in a column of its own."""
    first, others = name.ljust(_INDENT), " " * _INDENT
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=others, break_long_words=False)


def _epoch(run: Run) -> str:
    return f"epoch {run.position.epoch + 1}/{run.phase.epochs}"


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
