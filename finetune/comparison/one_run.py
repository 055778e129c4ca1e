"""One run of a comparison: a candidate trained with a seed, and what was measured of that."""

from __future__ import annotations

import logging
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from finetune.comparison.data import Subject
from finetune.comparison.entries import Candidate, GivenStrategy
from finetune.comparison.finished_runs import Ledger
from finetune.comparison.peak_memory import PeakMemory
from finetune.comparison.recipe import Recipe
from finetune.comparison.results import Row
from finetune.errors import ArgumentError, HeadError, NonFiniteError
from finetune.model.freezing import trainable
from finetune.model.surgery.heads import num_outputs
from finetune.training.callbacks.base import Callback
from finetune.training.callbacks.monitor import check_monitor
from finetune.training.metrics import higher_is_better
from finetune.training.run import Run
from finetune.tuner import FineTuner

log = logging.getLogger("finetune")


def run_or_find(
    candidate: Candidate,
    seed: int,
    subject: Subject,
    recipe: Recipe,
    ledger: Ledger,
    cache: str | Path | bool,
    each_epoch: Callable[[], None],
) -> tuple[Row, bool]:
    """Return what came of a candidate with a seed, or why nothing did, and whether the run was finished before."""
    blank = Row(candidate.model_label, candidate.strategy_label, seed)
    try:
        model = candidate.made(seed)
        place = ledger.place(model, candidate.strategy, seed, subject.known)
        found = ledger.read(place)
        if found is not None:
            return replace(found, model=blank.model, strategy=blank.strategy), True
        row = _measured(blank, model, candidate.strategy, subject, recipe, cache, each_epoch)
        ledger.keep(place, row)
        return row, False
    except Exception as error:  # whatever one model or strategy raises, the others go on
        log.debug("%s, seed %d failed", candidate.label, seed, exc_info=True)
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # what an out-of-memory error has left
    return replace(blank, error=said), False


def _measured(
    blank: Row,
    model: nn.Module | str,
    strategy: GivenStrategy,
    subject: Subject,
    recipe: Recipe,
    cache: str | Path | bool,
    each_epoch: Callable[[], None],
) -> Row:
    """Train a model and return the row of it, with what was measured put into the blank one."""
    tuner = FineTuner(model, seed=blank.seed, **recipe.settings)
    if subject.num_outputs is not None and not _fits(tuner, subject):
        tuner.replace_head(subject.num_outputs)
    watch = _Watch(recipe, each_epoch)
    memory, begun = PeakMemory(tuner.device), time.perf_counter()
    tuner.fit(
        subject.train,
        subject.val,
        epochs=recipe.budget,
        strategy=strategy,
        cache=cache,
        callbacks=[watch],
        progress=False,
        **recipe.fitting,
    )
    seconds, peak = time.perf_counter() - begun, memory.bytes()
    value = tuner.history[-1][f"val_{watch.monitor}"]
    if not math.isfinite(value):
        raise NonFiniteError(f"The {watch.monitor} on the validation data is {value} after the last epoch.")
    return replace(
        blank,
        monitor=watch.monitor,
        value=value,
        higher_is_better=watch.higher_is_better,
        images_per_second=statistics.median(row["samples_per_second"] for row in tuner.history),
        seconds=seconds,
        peak_memory=peak,
        trained_parameters=sum(watch.trained.values()),
        checkpoint_size=_checkpoint_size(tuner),
        found=watch.there / watch.stored if watch.stored else None,
    )


class _Watch(Callback):
    """Check a run against the recipe before it begins, and see what trains and what it finds stored."""

    def __init__(self, recipe: Recipe, each_epoch: Callable[[], None]) -> None:
        self._budget, self._each_epoch = recipe.budget, each_epoch
        self.monitor = recipe.monitor or ""
        self.higher_is_better = False
        self.trained: dict[str, int] = {}  # how many numbers, by parameter
        self.there = self.stored = 0

    def on_fit_begin(self, run: Run) -> None:
        epochs = sum(phase.epochs for phase in run.phases)
        if epochs != self._budget:
            raise ArgumentError(f"The strategy takes {epochs} epochs, and the budget of every run is {self._budget}.")
        self.monitor = self.monitor or ("accuracy" if "accuracy" in run.metrics else "loss")
        check_monitor(f"val_{self.monitor}", run.monitored_names())
        self.higher_is_better = higher_is_better(self.monitor, run.metrics)

    def on_phase_begin(self, run: Run) -> None:
        self.trained |= {name: parameter.numel() for name, parameter in trainable(run.model).items()}
        if run.cache is not None:
            self.there += run.cache.found
            self.stored += run.cache.rows

    def on_epoch_end(self, run: Run) -> None:
        self._each_epoch()


def _fits(tuner: FineTuner, subject: Subject) -> bool:
    """Tell whether the model's head is for these classes, so far as names and numbers tell."""
    try:
        outputs = num_outputs(tuner.head)
    except HeadError:  # replacing it says what is wrong with it, if anything is
        return False
    others = tuner.classes is not None and subject.classes is not None and {*tuner.classes} != {*subject.classes}
    return outputs == subject.num_outputs and not others


def _checkpoint_size(tuner: FineTuner) -> int:
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        return tuner.save_checkpoint(Path(folder) / "checkpoint.safetensors").stat().st_size
