"""What a person sees while a run goes on: the plan, a bar, a line an epoch.

On a terminal it is drawn with rich; in a pipe nothing is printed, and the same lines go to the
logger `finetune` at level INFO. Drawing happens in rich's own thread a few times a second; a step
costs one comparison.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.optim import Optimizer

from finetune.model.freezing import frozen_modules
from finetune.model.stages import is_norm
from finetune.training.callbacks.base import Callback
from finetune.training.optim.phases import Phase
from finetune.training.run import Run

log = logging.getLogger("finetune")

_INTERVAL = 0.2  # seconds between two updates of the bar
_MOST_RATES = 8  # groups of which each is listed with its rate


class ProgressBar(Callback):
    """Show the plan, the progress of each epoch and its values.

    Args:
        console: where to draw; None for the standard error stream.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._shown = self._console.is_terminal
        self._bar: Progress | None = None
        self._due = 0.0

    def on_fit_begin(self, run: Run) -> None:
        for note in run.notes:
            self._say(note)
        if len(run.plan) > 1:
            self._say(f"plan: {len(run.plan)} phases, {sum(phase.epochs for phase in run.phases)} epochs")
        for line in run.plan:
            self._say(line)

    def on_phase_begin(self, run: Run) -> None:
        if len(run.phases) > 1:
            self._say(f"phase {run.position.phase + 1} of {len(run.phases)}: {run.phase.name}")
        if self._shown:
            for line in () if run.cache is None else run.cache.said:  # which are in the log already
                self._print(line)
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True, refresh_per_second=4)
            self._bar.start()

    def on_epoch_begin(self, run: Run) -> None:
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            name = f"epoch {run.position.epoch + 1}/{run.phase.epochs}"
            self._bar.add_task(name, total=run.steps_per_epoch, completed=run.position.window)
        self._due = time.monotonic() + _INTERVAL

    def on_step_end(self, run: Run) -> None:
        if self._bar is not None and time.monotonic() >= self._due:
            self._bar.update(self._bar.task_ids[-1], completed=run.position.window)
            self._due = time.monotonic() + _INTERVAL

    def on_epoch_end(self, run: Run) -> None:
        self._say(describe_epoch(run))

    def on_phase_end(self, run: Run) -> None:
        self._stop()

    def on_fit_end(self, run: Run) -> None:
        self._stop()

    def _say(self, line: str) -> None:
        log.info(line)
        if self._shown:
            self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe_phase(model: nn.Module, phase: Phase, optimizer: Optimizer) -> str:
    """Say in one line what a phase trains, at which rates and for how long, with the model set to train it."""
    groups = optimizer.param_groups
    names = list(dict.fromkeys(group.get("name", "all") for group in groups))
    count = sum(parameter.numel() for group in groups for parameter in group["params"])
    total = sum(parameter.numel() for parameter in model.parameters())
    epochs = f"{phase.epochs} epoch" + "s" * (phase.epochs > 1)
    start = "" if phase.start_from is None else f" from {phase.start_from}"
    what = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    return (
        f"{phase.name}: {epochs}{start}, training {what} ({count:,} of {total:,} parameters), lr {_rates(groups)}"
        f"{_norms(model)}"
    )


def _rates(groups: Sequence[Mapping[str, Any]]) -> str:
    rates = {group.get("name", "all"): f"{group['initial_lr']:.2g}" for group in groups}
    first, last = next(iter(rates)), list(rates)[-1]
    if len(set(rates.values())) == 1:
        return rates[first]
    if len(rates) > _MOST_RATES:
        return f"{rates[first]} ({first}) to {rates[last]} ({last}) in {len(rates)} groups"
    return " ".join(f"{rate} ({name})" for name, rate in rates.items())


def _norms(model: nn.Module) -> str:
    frozen = set(frozen_modules(model))
    norms = [module for module in model.modules() if is_norm(module)]
    return f", {sum(norm in frozen for norm in norms)} of {len(norms)} norms in eval mode" if norms else ""


def describe_epoch(run: Run) -> str:
    """Say in one line what came of an epoch."""
    row = run.row
    values = [f"{name} {value:.4f}" for name, value in row.items() if name not in _NOT_VALUES]
    speed = f"{row['samples_per_second']:,.0f} samples/s"
    return f"epoch {run.position.epoch}/{run.phase.epochs}  {'  '.join(values)}  {row['seconds']:.1f} s, {speed}"


_NOT_VALUES = ("epoch", "phase", "lr", "seconds", "samples_per_second")


class SeriesProgress:
    """Show how far a series of runs is: on a terminal a bar of their epochs, and a line for each run, also logged.

    Args:
        runs: how many there are.
        epochs: of each.
        shown: False for the log alone.
        console: where to draw; None for the standard error stream.
    """

    def __init__(self, runs: int, epochs: int, *, shown: bool = True, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
        self._task = self._bar.add_task("", total=runs * epochs)
        self._runs, self._epochs, self._done = runs, epochs, 0

    def __enter__(self) -> SeriesProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, name: str) -> None:
        """Say which run begins."""
        self._bar.update(self._task, description=f"{self._done + 1} of {self._runs}: {name}")

    def epoch(self) -> None:
        """Count an epoch of the run."""
        self._bar.advance(self._task)

    def end(self, line: str) -> None:
        """Say what came of the run."""
        self._done += 1
        line = f"{self._done} of {self._runs}: {line}"
        log.info(line)
        if not self._bar.disable:
            self._bar.console.print(line, highlight=False, markup=False)
        self._bar.update(self._task, completed=self._done * self._epochs)
