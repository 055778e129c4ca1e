"""`SeriesProgress`: the progress of a series of runs."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from finetune.display.progress.bar import Bar
from finetune.display.progress.display import Display
from finetune.display.progress.waits import displayed, waits_shown

series_log = logging.getLogger("finetune.series")  # apart, so that a series shows no lines of its runs


class SeriesProgress:
    """Progress display for a series of runs: a bar over all epochs, and a line per run.

    Args:
        runs: Number of runs.
        epochs: Number of epochs per run.
        shown: Whether to show anything; False only logs.
        display: Display to use; None for the one that suits the place.
    """

    def __init__(self, runs: int, epochs: int, *, shown: bool = True, display: Display | None = None) -> None:
        self._bar = Bar("", total=runs * epochs, patience=0.0)
        self._runs, self._epochs, self._finished, self._trained = runs, epochs, 0, 0
        self._waits = waits_shown(shown, logger=series_log, display=display)
        self._shown = ExitStack()

    def __enter__(self) -> SeriesProgress:
        self._shown.enter_context(self._waits)
        self._shown.enter_context(displayed(self._bar))
        return self

    def __exit__(self, *error: object) -> None:
        self._shown.close()

    def begin(self, name: str, number: int) -> None:
        """Announce a run by its index in the series. Other processes may have trained those before it."""
        self._finished, self._trained = number, 0
        self._bar.label = f"{self._finished + 1} of {self._runs}: {name}"
        self._note()

    def epoch(self) -> None:
        """Count a finished epoch of the current run."""
        self._trained += 1
        self._note()

    def end(self, line: str) -> None:
        """Show and log the result of the current run."""
        self._finished += 1
        self._trained = 0
        series_log.info(f"{self._finished} of {self._runs}: {line}")
        self._note()

    def _note(self) -> None:
        self._bar.done = self._finished * self._epochs + self._trained
        self._bar.doing = f"Epoch {min(self._trained + 1, self._epochs)}/{self._epochs}"
