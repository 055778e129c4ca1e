"""What a person sees while a run goes on: the plan, a bar, a line an epoch.

On a terminal it is drawn with rich; in a pipe nothing is printed, and the same lines go to the
logger `finetune` at level INFO. Drawing happens in rich's own thread a few times a second; a step
costs one comparison.
"""

from __future__ import annotations

import logging
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from finetune.training.callbacks.base import Callback
from finetune.training.state import Run

log = logging.getLogger("finetune")

_INTERVAL = 0.2  # seconds between two updates of the bar


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

    def on_phase_begin(self, run: Run) -> None:
        self._say(describe_phase(run))
        if self._shown:
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
            self._console.print(line, highlight=False, markup=False)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe_phase(run: Run) -> str:
    """Say in one line what a phase trains, at which rates and for how long."""
    groups = run.optimizer.param_groups
    count = sum(parameter.numel() for group in groups for parameter in group["params"])
    total = sum(parameter.numel() for parameter in run.model.parameters())
    rates = {group.get("name", "all"): group["initial_lr"] for group in groups}
    first, last = next(iter(rates)), list(rates)[-1]
    lr = f"{rates[last]:.2g}" if len(set(rates.values())) == 1 else f"{rates[first]:.2g} to {rates[last]:.2g}"
    what = last if len(rates) == 1 else f"{first} to {last}"
    epochs = f"{run.phase.epochs} epoch" + "s" * (run.phase.epochs > 1)
    return (
        f"{run.phase.name}: {epochs}, training {what} ({count:,} of {total:,} parameters), lr {lr}, "
        f"{run.precision.name} on {run.train.device}"
    )


def describe_epoch(run: Run) -> str:
    """Say in one line what came of an epoch."""
    row = run.row
    values = [f"{name} {value:.4f}" for name, value in row.items() if name not in _NOT_VALUES]
    speed = f"{row['samples_per_second']:,.0f} samples/s"
    return f"epoch {run.position.epoch}/{run.phase.epochs}  {'  '.join(values)}  {row['seconds']:.1f} s, {speed}"


_NOT_VALUES = ("epoch", "phase", "lr", "seconds", "samples_per_second")
