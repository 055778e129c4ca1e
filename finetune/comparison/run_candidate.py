"""`run_candidate`: train one candidate with one seed and measure it."""

from __future__ import annotations

import logging
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from finetune.comparison.candidates import Candidate, GivenStrategy
from finetune.comparison.comparison import RunResult
from finetune.comparison.fingerprint import fingerprint, versions
from finetune.comparison.finished_runs import FinishedRuns
from finetune.comparison.splits import Split
from finetune.data.loading.parts import release
from finetune.data.preprocessing.presets import preprocessing_of
from finetune.data.targets import REGRESSION
from finetune.devices.device import hardware_of, resolve_device
from finetune.devices.peak_memory import PeakMemory
from finetune.errors import ArgumentError, HeadError, NonFiniteError
from finetune.model.freezing import trainable
from finetune.model.surgery.heads import num_outputs
from finetune.training.callbacks.base import Callback
from finetune.training.callbacks.loggers.logger import Logger
from finetune.training.callbacks.monitor import check_monitor
from finetune.training.metrics import higher_is_better
from finetune.training.run import Run
from finetune.training.tasks import infer_task
from finetune.tuner import FineTuner

log = logging.getLogger("finetune")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The settings that all runs of a comparison share.

    Attributes:
        budget: Epochs per run.
        monitor: Metric to compare. None selects the accuracy if there is one, else the loss.
        mode: `"max"` if a higher value is better, `"min"` if a lower one is; None if the metric says so itself.
        for_tuner: Keyword arguments of `FineTuner`.
        for_fit: Further keyword arguments of `fit`.
        loggers: Loggers, of which each run gets one of its own.
        group: Name of the comparison in the loggers.
    """

    budget: int
    monitor: str | None
    mode: str | None = None
    for_tuner: Mapping[str, Any]
    for_fit: Mapping[str, Any]
    loggers: Sequence[Logger] = ()
    group: str = "compare"

    def loggers_of(self, run: RunResult) -> list[Logger]:
        """Return the loggers of a run, which name it by its model, strategy and seed."""
        name = f"{run.model}, {run.strategy}, seed {run.seed}"
        labels = {"candidate": {"model": run.model, "strategy": run.strategy, "seed": run.seed}}
        return [logger.for_run(name, group=self.group, **labels) for logger in self.loggers]

    def fingerprint(self) -> dict[str, Any]:
        """Return JSON values that identify the settings, the machine and the package versions."""
        for_tuner = dict(self.for_tuner)
        if "preprocessing" in for_tuner:  # a tokenizer is identified by its files
            for_tuner["preprocessing"] = preprocessing_of(for_tuner["preprocessing"])
        device = resolve_device(for_tuner.pop("device", "auto"))
        for_tuner.pop("distributed", None)  # the result is the same
        machine = hardware_of(device) or platform.machine()
        return {
            "budget": self.budget,
            "monitor": self.monitor,
            **({} if self.mode is None else {"mode": self.mode}),
            "settings": fingerprint(for_tuner),
            "fitting": fingerprint(self.for_fit),
            "device": [str(device), machine],
            "versions": versions(),
        }


def run_candidate(
    candidate: Candidate,
    seed: int,
    split: Split,
    settings: RunSettings,
    finished: FinishedRuns,
    *,
    cache: str | Path | bool,
    on_epoch: Callable[[], None],
) -> tuple[RunResult, bool]:
    """Return the result of a run, failed or not, and whether it was read from `finished`.

    Args:
        cache: Cache as in `fit`.
        on_epoch: Function to call after every epoch.
    """
    empty = RunResult(candidate.model_label, candidate.strategy_label, seed)
    try:
        model = candidate.build(seed)
        path = finished.path(model, candidate.strategy, seed, split.fingerprint)
        earlier = finished.read(path)
        if earlier is not None:
            return replace(earlier, model=empty.model, strategy=empty.strategy), True
        row = _train(empty, model, candidate.strategy, split, settings, cache=cache, on_epoch=on_epoch)
        finished.write(path, row)
        return row, False
    except Exception as error:  # the other candidates continue
        log.debug("%s, seed %d failed", candidate.label, seed, exc_info=True)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    release()  # the memory held after an out-of-memory error
    return replace(empty, error=reason), False


def _train(
    empty: RunResult,
    model: nn.Module | str,
    strategy: GivenStrategy,
    split: Split,
    settings: RunSettings,
    *,
    cache: str | Path | bool,
    on_epoch: Callable[[], None],
) -> RunResult:
    """Train a model, and return `empty` with the measurements filled in."""
    tuner = FineTuner(model, seed=empty.seed, **settings.for_tuner)
    if split.num_outputs is not None and not _head_fits(tuner, split):
        tuner.replace_head(split.num_outputs)
    observer = _Observer(settings, on_epoch)
    memory, begun = PeakMemory(tuner.device), time.perf_counter()
    tuner.fit(
        split.train,
        split.val,
        epochs=settings.budget,
        strategy=strategy,
        cache=cache,
        callbacks=[observer, *settings.loggers_of(empty)],
        progress=False,
        **settings.for_fit,
    )
    seconds, peak = time.perf_counter() - begun, memory.bytes()
    value = tuner.history[-1][f"val_{observer.monitor}"]
    if not math.isfinite(value):
        raise NonFiniteError(f"The validation {observer.monitor} is {value} after the last epoch.")
    return replace(
        empty,
        monitor=observer.monitor,
        value=value,
        higher_is_better=observer.higher_is_better,
        images_per_second=statistics.median(row["samples_per_second"] for row in tuner.history),
        seconds=seconds,
        peak_memory=peak,
        trained_parameters=sum(observer.trained.values()),
        checkpoint_size=_checkpoint_size(tuner),
        found=observer.found / observer.cached if observer.cached else None,
    )


class _Observer(Callback):
    """Callback that checks a run against the settings and counts its trained parameters and cache hits."""

    def __init__(self, settings: RunSettings, on_epoch: Callable[[], None]) -> None:
        self._budget, self._mode, self._on_epoch = settings.budget, settings.mode, on_epoch
        self.monitor = settings.monitor or ""
        self.higher_is_better = False
        self.trained: dict[str, int] = {}  # number of values by parameter name
        self.found = self.cached = 0

    def on_fit_begin(self, run: Run) -> None:
        epochs = sum(phase.epochs for phase in run.phases)
        if epochs != self._budget:
            raise ArgumentError(f"The strategy takes {epochs} epochs, but the budget of each run is {self._budget}.")
        self.monitor = self.monitor or ("accuracy" if "accuracy" in run.metrics else "loss")
        check_monitor(run, f"val_{self.monitor}", self._mode)

    def on_phase_begin(self, run: Run) -> None:
        self.trained |= {name: parameter.numel() for name, parameter in trainable(run.model).items()}
        if run.cache is not None:
            self.found += run.cache.found
            self.cached += run.cache.rows

    def on_epoch_end(self, run: Run) -> None:
        self.higher_is_better = higher_is_better(self.monitor, run.metrics, self._mode)
        self._on_epoch()


def _head_fits(tuner: FineTuner, split: Split) -> bool:
    """Return whether the head matches the classes by their names and number, or `fit` judges it by other targets."""
    loss = tuner.settings.loss
    try:
        outputs = num_outputs(tuner.head)
    except HeadError:  # nothing to replace; fit checks the outputs themselves
        return True
    if infer_task(loss, None, outputs).kind == REGRESSION or (outputs == 1 and callable(loss)):
        return True  # numbers are targets
    if outputs == 1 and split.num_outputs == 2:
        return True  # binary classification
    renamed = tuner.classes is not None and split.classes is not None and {*tuner.classes} != {*split.classes}
    return outputs == split.num_outputs and not renamed


def _checkpoint_size(tuner: FineTuner) -> int:
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        return tuner.save_checkpoint(Path(folder) / "checkpoint.safetensors").stat().st_size
