"""`ProgressBar`: the progress of one call of `fit`."""

from __future__ import annotations

import time
from contextlib import ExitStack

from finetune.display.lines import log
from finetune.display.numbers import fixed
from finetune.display.progress.bar import Bar
from finetune.display.progress.waits import displayed
from finetune.training.callbacks.base import Callback
from finetune.training.progress.overview import describe_epoch, describe_run
from finetune.training.progress.pace import Pace
from finetune.training.run import Run


class ProgressBar(Callback):
    """Show the overview of a run, its progress, and a line per epoch.

    The bar counts the updates of the epoch. The time left is that of the whole run. Values are read from the device
    only as often as they are drawn, so an update costs one comparison.
    """

    only_watches = True

    def __init__(self) -> None:
        self._bar, self._pace = Bar("", patience=0.0), Pace()
        self._shown = ExitStack()
        self._interval = self._due = float("inf")
        self._best: tuple[str, float] | None = None

    def on_fit_begin(self, run: Run) -> None:
        for line in describe_run(run):
            log.info(line)
        self._best = None
        self._bar = Bar(_place(run), patience=0.0, by_items=False, doing="Preparing")
        self._interval = self._shown.enter_context(displayed(self._bar))

    def on_phase_begin(self, run: Run) -> None:
        if len(run.phases) > 1:
            log.info(f"Phase {run.position.phase + 1} of {len(run.phases)}: {run.phase.name}")
        self._pace = Pace()

    def on_epoch_begin(self, run: Run) -> None:
        now, position = time.monotonic(), run.position
        self._pace.begin_epoch(now, position.window)
        self._bar.label, self._bar.doing = _place(run), "Training"
        self._bar.done, self._bar.total = position.window, run.steps_per_epoch
        self._due = now + self._interval

    def on_step_end(self, run: Run) -> None:
        if time.monotonic() >= self._due:
            self._note(run)

    def on_evaluate_begin(self, run: Run) -> None:
        self._pace.end_training(time.monotonic())
        if self._interval < float("inf"):
            self._note(run)
        self._bar.doing = "Evaluating"

    def on_epoch_end(self, run: Run) -> None:
        line, cells = describe_epoch(run)
        log.info(line, extra={"cells": cells})
        self._best = _better(self._best, run)
        self._bar.doing = "Finishing the epoch"

    def on_fit_end(self, run: Run) -> None:
        self._shown.close()
        self._interval = self._due = float("inf")

    def _note(self, run: Run) -> None:
        """Note on the bar how far the run is. This waits for the device."""
        now, bar, later = time.monotonic(), self._bar, run.phases[run.position.phase + 1 :]
        epochs = run.phase.epochs - run.position.epoch - 1 + sum(phase.epochs for phase in later)
        left = self._pace.seconds_left(now, run.position.window, run.steps_per_epoch, epochs)
        bar.done, bar.doing = run.position.window, _training(run)
        bar.end, bar.at_least = None if left is None else now + left, bool(later)
        best = [] if self._best is None else [f"best {self._best[0]} {fixed(self._best[1])}"]
        bar.values = [f"loss {fixed(run.meter.mean_loss())}", f"lr {max(run.rates().values()):.2g}", *best]
        self._due = now + self._interval


def _place(run: Run) -> str:
    epoch = f"epoch {run.position.epoch + 1}/{run.phase.epochs}"
    if len(run.phases) == 1:
        return epoch
    return f"{epoch}, {run.phase.name} {run.position.phase + 1}/{len(run.phases)}"


def _training(run: Run) -> str:
    return "Training, filling the cache" if getattr(run.train, "filling", False) else "Training"


def _better(best: tuple[str, float] | None, run: Run) -> tuple[str, float] | None:
    """Return the best validation value so far: of the first metric that says which way is better, or of the loss."""
    rises = {name: run.history.rises(name.removeprefix("val_")) for name in run.row if name.startswith("val_")}
    names = [name for name, higher in rises.items() if higher is not None]
    if not names:
        return best
    name = names[min(1, len(names) - 1)]  # the loss comes first
    value, higher = run.row[name], rises[name]
    if best is None or (value > best[1] if higher else value < best[1]):
        return name, value
    return best
