"""`compare`: several models and strategies on the same data, with the same budget and the same seeds."""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from finetune.comparison.candidates import Models, Strategies, candidates
from finetune.comparison.comparison import Comparison, RunResult
from finetune.comparison.finished_runs import FinishedRuns
from finetune.comparison.run_candidate import RunSettings, run_candidate
from finetune.comparison.splits import splits_by_seed
from finetune.devices.device import resolve_device
from finetune.display.progress.waits import waits_shown
from finetune.distributed.errors import errors_shared, wait_for_all
from finetune.distributed.world import join
from finetune.errors import ArgumentError, is_number, whole_number
from finetune.naming.arguments import instead_of, whole_numbers
from finetune.naming.paths import local_path
from finetune.signals.stops import signals_heeded
from finetune.training.callbacks.base import as_callbacks
from finetune.training.callbacks.loggers.logger import Logger
from finetune.training.progress.series_progress import SeriesProgress
from finetune.tuner import FineTuner

# Arguments of FineTuner and fit that compare sets for each run.
_RESERVED = {"self", "model", "seed", "train", "val", "epochs", "strategy", "cache", "callbacks", "progress"}
_RESERVED |= {"checkpoint_dir", "resume_from"}


@signals_heeded()
def compare(
    models: Models,
    data: Any,
    val: Any = None,
    *,
    strategies: Strategies = ("linear_probe", "last_stage", "full_finetune"),
    seeds: int | Iterable[int] = 3,
    budget: int = 10,
    monitor: str | None = None,
    mode: str | None = None,
    cache: str | Path | bool | None = None,
    folder: str | Path | None = None,
    loggers: Logger | Sequence[Logger] = (),
    progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Train every model with every strategy and seed on the same data, and compare the results.

    A seed sets the initial weights of the head, the sample order, the augmentation, and the validation split if
    one is drawn. All entries share the seeds, so their differences form a paired sample. The compared value is that
    of the last epoch, because the best epoch would be selected on the data that judges it. A smaller bias of the
    same kind affects the best entry, so confirm its score on separate test data before you publish it.

    Runs are ordered by seed. A run that fails becomes a row with the error, and the others continue. In several
    processes, as torchrun starts them, each run trains in one of them, the next free one, and all return all results.
    Activations
    of frozen layers are computed once and shared between strategies, and between seeds except for images that
    each seed augments at random.

    Args:
        models: A model name, a module (each run trains a copy), or a function that takes no arguments and returns
            a module; a list of these, or a mapping from labels to them. A head that does not fit the classes is
            replaced.
        data: Training data as accepted by `fit`, or a function that maps a seed to a pair (train, val), such as a
            cross-validation fold.
        val: Validation data, or the fraction to hold out, such as 0.1. None uses the validation folder if `data` is a
            folder with a training and a validation folder, or else holds out a fifth of the data.
        strategies: A strategy name, a strategy function, or a list of `Phase`; a list of these, or a mapping from
            labels to them.
        seeds: Number of seeds, or the seeds themselves.
        budget: Epochs per run.
        monitor: Metric to compare, as named by `evaluate`. None selects the accuracy if there is one, else the loss.
        mode: `"max"` if a higher value is better, `"min"` if a lower one is; None if the metric says so itself.
        cache: Cache as in `fit`. A folder that you name is kept. None shares a temporary folder between the runs.
        folder: Folder for the results of finished runs. The same call, or one with more seeds, models or
            strategies, reuses them and retries failed runs. A run is recognized by everything that determines its
            result: data, model, strategy, seed, budget, settings and package versions. None keeps no results.
        loggers: Loggers from `finetune.callbacks`. Each candidate and seed is a run of its own, in one group; finished
            runs that are reused are not logged again.
        progress: Whether to show the progress: a bar on a terminal, and a line per run. It is logged in any case.
        settings: Keyword arguments of `FineTuner` and `fit` for all runs, such as `lr`, `batch_size`, `weights` or
            `augment`.

    Returns:
        The results of all runs, which print as a table.

    Raises:
        ArgumentError: If an argument is invalid, before the first run, or if every entry fails with the first seed.
        DataError: If the data cannot be used, before the first run.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> X = torch.randn(60, 4)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> strategies = ["linear_probe", "full_finetune"]
        >>> comparison = compare(model, (X, (X[:, 0] > 0).long()), strategies=strategies, seeds=2, budget=1)
        >>> len(comparison.rows), comparison.monitor
        (4, 'accuracy')
    """
    budget = whole_number("budget", budget)
    numbers, entries = _seeds(seeds), candidates(models, strategies, budget)
    for_tuner, for_fit = _divided(settings)
    device = resolve_device(for_tuner.get("device", "auto"))
    world = join(for_tuner.get("distributed", "auto"), device)
    if world.size > 1:
        for_tuner |= {"device": world.own_device(device), "distributed": False}
    run_settings = RunSettings(
        budget=budget,
        monitor=monitor,
        mode=mode,
        for_tuner=for_tuner,
        for_fit=for_fit,
        loggers=_as_loggers(loggers),
        group=f"compare {datetime.now().isoformat(' ', 'seconds')}",
    )
    folder = None if folder is None else local_path(folder)
    finished = FinishedRuns(folder, {} if folder is None else run_settings.fingerprint())
    with waits_shown(progress):
        splits = splits_by_seed(data, val, numbers, fingerprinted=folder is not None)
    runs = [(seed, entry) for seed in numbers for entry in entries]
    rows: dict[int, RunResult] = {}
    with (
        errors_shared(),
        _cache(cache, folder) as shared_cache,
        SeriesProgress(len(runs), budget, shown=progress) as shown,
    ):
        for number in world.shared_out(len(runs)):
            seed, entry = runs[number]
            shown.begin(f"{entry.label}, seed {seed}", number)
            rows[number], reused = run_candidate(
                entry, seed, splits[seed], run_settings, finished, cache=shared_cache, on_epoch=shown.epoch
            )
            shown.end(_progress_line(rows[number], reused))
            if len(rows) == len(entries):
                _check_any_succeeded(rows.values())
        wait_for_all()
        rows = {number: row for part in world.gathered(rows) for number, row in part.items()}
    _check_any_succeeded(rows.values())
    return Comparison([rows[number] for number in range(len(runs))], budget)


def _progress_line(row: RunResult, reused: bool) -> str:
    name = f"{row.model}, {row.strategy}, seed {row.seed}"
    if row.error is not None:
        return f"{name}: failed, {row.error}"
    return f"{name}: {row.monitor} {row.value:.4f}, {'already finished' if reused else f'{row.seconds:.1f} s'}"


def _check_any_succeeded(rows: Collection[RunResult]) -> None:
    if any(row.error is None for row in rows):
        return
    reasons = dict.fromkeys(str(row.error) for row in rows)
    each = "; ".join(f"{row.model}, {row.strategy}: {row.error}" for row in rows)
    raise ArgumentError(f"Every run failed: {next(iter(reasons)) if len(reasons) == 1 else each}")


def _seeds(seeds: int | Iterable[int]) -> tuple[int, ...]:
    given: Any = range(whole_number("seeds", seeds)) if is_number(seeds) else seeds
    several = isinstance(given, Iterable) and not isinstance(given, str)
    listed = tuple(whole_number("each of seeds", seed, at_least=None) for seed in given) if several else ()
    if not listed or len({*listed}) < len(listed):
        raise ArgumentError(f"Expected seeds to be a positive number or distinct integers, but got {seeds!r}.")
    return listed


def _divided(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split keyword arguments into those of `FineTuner` and those of `fit`.

    Raises:
        ArgumentError: If an argument belongs to neither, or `compare` sets it itself.
    """
    of_tuner, of_fit = (
        inspect.signature(function).parameters.keys() - _RESERVED for function in (FineTuner.__init__, FineTuner.fit)
    )
    for name in settings.keys() - of_tuner - of_fit:
        known = sorted({*of_tuner, *of_fit, *inspect.signature(compare).parameters} - {"settings"})
        raise ArgumentError(
            f"compare has no argument {name!r}. {instead_of(name, known)} Besides its own arguments, it accepts these "
            f"arguments of FineTuner and fit: {', '.join(sorted(of_tuner | of_fit))}."
        )
    settings = whole_numbers(settings)
    return {n: settings[n] for n in settings if n in of_tuner}, {n: settings[n] for n in settings if n in of_fit}


def _as_loggers(loggers: Any) -> list[Logger]:
    listed = as_callbacks(loggers)
    for callback in listed:
        if not isinstance(callback, Logger):
            raise ArgumentError(
                f"Expected loggers to be loggers, such as finetune.callbacks.CSVLogger('log.csv'), but got a "
                f"{type(callback).__name__}, which would be shared by all runs."
            )
    return cast("list[Logger]", listed)


@contextmanager
def _cache(cache: str | Path | bool | None, folder: Path | None) -> Iterator[str | Path | bool]:
    """Yield the `cache` argument for `fit`, and delete the folder afterwards unless the user named it."""
    if cache is not None:
        yield cache
    elif folder is None:
        with tempfile.TemporaryDirectory(prefix="finetune-compare-") as temporary:
            yield temporary
    else:
        yield folder / "cache"  # survives an interrupt, so that the next call continues with it
        shutil.rmtree(folder / "cache", ignore_errors=True)
