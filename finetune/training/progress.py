"""The progress display: the plan, a progress bar, and a line per epoch.

On a terminal, rich draws the display. Without a terminal, nothing is printed. In both cases the lines go to the logger
`finetune` at level INFO. rich redraws in a thread a few times per second, so a training step costs one comparison.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from finetune.model.freezing import frozen_modules
from finetune.model.stages import is_norm
from finetune.training.callbacks.base import Callback
from finetune.training.history import BOOKKEEPING
from finetune.training.optim.phases import Phase
from finetune.training.run import Run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

log = logging.getLogger("finetune")

_MAX_LISTED_RATES = 8  # with more parameter groups, only the first and the last rate are shown


class ProgressBar(Callback):
    """Show the plan, the progress within each epoch, and the values of each epoch.

    Args:
        console: Console to draw on; None for standard error.
        interval: Seconds between two updates of the bar.
    """

    def __init__(self, console: Console | None = None, interval: float = 0.2) -> None:
        self._console = console or _stderr()
        self._interval = interval
        self._shown = self._console.is_terminal
        self._bar: Progress | None = None
        self._due = 0.0

    def on_fit_begin(self, run: Run) -> None:
        for note in run.notes:
            self._say(note)
        if len(run.plan) > 1:
            self._say(f"Plan: {len(run.plan)} phases, {sum(phase.epochs for phase in run.phases)} epochs")
        for line in run.plan:
            self._say(line)

    def on_phase_begin(self, run: Run) -> None:
        if len(run.phases) > 1:
            self._say(f"Phase {run.position.phase + 1} of {len(run.phases)}: {run.phase.name}")
        if self._shown:
            for line in () if run.cache is None else run.cache.messages:  # already logged
                self._print(line)
            self._bar = _progress(self._console)
            self._bar.start()

    def on_epoch_begin(self, run: Run) -> None:
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            name = f"epoch {run.position.epoch + 1}/{run.phase.epochs}"
            self._bar.add_task(name, total=run.steps_per_epoch, completed=run.position.window)
        self._due = time.monotonic() + self._interval

    def on_step_end(self, run: Run) -> None:
        if self._bar is not None and time.monotonic() >= self._due:
            self._bar.update(self._bar.task_ids[-1], completed=run.position.window)
            self._due = time.monotonic() + self._interval

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


class SeriesProgress:
    """Progress display for a series of runs: a bar over all epochs, and a line per run, which is also logged.

    Args:
        runs: Number of runs.
        epochs: Number of epochs per run.
        shown: Whether to draw on the terminal; False only logs.
        console: Console to draw on; None for standard error.
    """

    def __init__(self, runs: int, epochs: int, *, shown: bool = True, console: Console | None = None) -> None:
        console = console or _stderr()
        self._bar = _progress(console, disable=not (shown and console.is_terminal))
        self._task = self._bar.add_task("", total=runs * epochs)
        self._runs, self._epochs, self._done = runs, epochs, 0

    def __enter__(self) -> SeriesProgress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def begin(self, name: str) -> None:
        """Announce the next run."""
        self._bar.update(self._task, description=f"{self._done + 1} of {self._runs}: {name}")

    def epoch(self) -> None:
        """Count a finished epoch of the current run."""
        self._bar.advance(self._task)

    def end(self, line: str) -> None:
        """Show and log the result of the current run."""
        self._done += 1
        line = f"{self._done} of {self._runs}: {line}"
        log.info(line)
        if not self._bar.disable:
            self._bar.console.print(line, highlight=False, markup=False)
        self._bar.update(self._task, completed=self._done * self._epochs)


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
    values = [f"{name} {value:.4f}" for name, value in row.items() if name not in BOOKKEEPING]
    speed = f"{row['samples_per_second']:,.0f} samples/s"
    return f"epoch {run.position.epoch}/{run.phase.epochs}  {'  '.join(values)}  {row['seconds']:.1f} s, {speed}"


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


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _progress(console: Console, *, disable: bool = False) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, refresh_per_second=4, disable=disable)
