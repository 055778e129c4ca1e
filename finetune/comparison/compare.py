"""`compare`: the same data, the same budget and the same seeds for several models and strategies."""

from __future__ import annotations

import inspect
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.comparison.data import subjects
from finetune.comparison.entries import Models, Strategies, candidates
from finetune.comparison.finished_runs import Ledger
from finetune.comparison.one_run import run_or_find
from finetune.comparison.recipe import Recipe
from finetune.comparison.results import Comparison, Row
from finetune.errors import ArgumentError, nearest
from finetune.training.progress import SeriesProgress
from finetune.tuner import FineTuner

# What `compare` itself decides of each run.
_OWN = {"self", "model", "seed", "train", "val", "epochs", "strategy", "cache", "callbacks", "progress"}
_OWN |= {"checkpoint_dir", "resume_from"}


def compare(
    models: Models,
    data: Any,
    val: Any = None,
    *,
    strategies: Strategies = ("linear_probe", "last_stage", "full_finetune"),
    seeds: int | Iterable[int] = 3,
    budget: int = 10,
    monitor: str | None = None,
    cache: str | Path | bool | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Train every model with every strategy and seed, on the same data for as many epochs, and compare them.

    A seed decides the head's first weights, the order, the augmentation and, where a share of the data is set
    aside for validation, which; it is the same for all entries, which makes their differences a paired sample.
    What counts is the value of the last epoch on the validation data and not of the best, which would be chosen by the
    data it is judged on. The same goes, in small, for the best entry: its mean is a little too good, and what
    is to be published of it is measured on data of its own.

    The runs go seed by seed through all entries. One that fails becomes a row that says why, and the others go
    on. What comes before the first trainable parameter is computed once for all runs that share it: between
    strategies, and between seeds but for pictures that a seed augments at random.

    Args:
        models: a name, a module, of which each run trains a copy, or a function without arguments that makes
            one; a list of these, or a mapping of label to one. A head is replaced unless it fits the classes.
        data: training data as `fit` takes it; or a function of the seed that gives a pair (train, val), such as a
            fold or a draw of few samples.
        val: validation data, or a share such as 0.1. With None a fifth is set aside, or, of a folder that is
            divided into train and val, its own is taken.
        strategies: a name, a function or a list of `Phase`; a list of these, or a mapping of label to one.
        seeds: how many, or which.
        budget: epochs of each run.
        monitor: a value of `evaluate` to compare by; None for the accuracy where there is one, else the loss.
        cache: as `fit` takes it; a folder of yours is kept. With None a folder that lasts as long as the
            comparison.
        folder: where to keep each finished run. The same call, or one with more seeds or entries, takes from there
            what it finds, and tries again what failed. Known are runs by all that decides them: data, model,
            strategy, seed, budget, settings, versions. With None nothing is kept.
        progress: show how far it is where there is a terminal; the log says it in any case.
        settings: keyword arguments of `FineTuner` and of `fit`, the same for all, as `lr`, `batch_size`,
            `weights` or `augment`.

    Raises:
        ArgumentError, DataError: something given cannot work for any run; said before the first. Also if every entry
            fails with the first seed.
    """
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
        raise ArgumentError(f"Expected budget to be a number of epochs from 1 on, but got {budget!r}.")
    numbers, entries = _seeds(seeds), candidates(models, strategies, budget)
    for_tuner, for_fit = _divided(settings)
    recipe = Recipe(budget, monitor, for_tuner, for_fit)
    folder = None if folder is None else Path(folder).expanduser()
    ledger = Ledger(folder, {} if folder is None else recipe.decisive())
    by_seed = subjects(data, val, numbers, known=folder is not None)
    rows: list[Row] = []
    with (
        _cache(cache, folder) as where,
        SeriesProgress(len(entries) * len(numbers), budget, shown=progress) as shown,
    ):
        for seed in numbers:
            for entry in entries:
                shown.begin(f"{entry.label}, seed {seed}")
                row, found = run_or_find(entry, seed, by_seed[seed], recipe, ledger, where, shown.epoch)
                rows.append(row)
                shown.end(_line(row, found))
            if all(row.error is not None for row in rows):
                raise ArgumentError(_nothing_works(rows))
    return Comparison(rows, budget)


def _line(row: Row, found: bool) -> str:
    name = f"{row.model}, {row.strategy}, seed {row.seed}"
    if row.error is not None:
        return f"{name}: failed, {row.error}"
    return f"{name}: {row.monitor} {row.value:.4f}, {'found' if found else f'{row.seconds:.1f} s'}"


def _nothing_works(rows: list[Row]) -> str:
    reasons = dict.fromkeys(str(row.error) for row in rows)
    if len(reasons) == 1:
        return f"Every run failed: {next(iter(reasons))}"
    return "Every run failed: " + "; ".join(f"{row.model}, {row.strategy}: {row.error}" for row in rows)


def _seeds(seeds: int | Iterable[int]) -> tuple[int, ...]:
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        seeds = range(seeds)
    listed = tuple(seeds) if isinstance(seeds, Iterable) and not isinstance(seeds, str) else ()
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) for seed in listed)
    if not listed or not whole or len({*listed}) < len(listed):
        raise ArgumentError(f"Expected seeds to be a number from 1 on, or different whole numbers, but got {seeds!r}.")
    return listed


def _divided(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide keyword arguments into those of `FineTuner` and those of `fit`.

    Raises:
        ArgumentError: neither has such an argument, or `compare` itself decides it.
    """
    of_tuner, of_fit = (
        inspect.signature(function).parameters.keys() - _OWN for function in (FineTuner.__init__, FineTuner.fit)
    )
    for name in settings.keys() - of_tuner - of_fit:
        known = sorted({*of_tuner, *of_fit, *inspect.signature(compare).parameters} - {"settings"})
        raise ArgumentError(
            f"compare has no argument {name!r}.{nearest(name, known)} Beside its own it takes those of FineTuner and "
            f"fit but for what it decides itself: {', '.join(sorted(of_tuner | of_fit))}."
        )
    return {n: settings[n] for n in settings if n in of_tuner}, {n: settings[n] for n in settings if n in of_fit}


@contextmanager
def _cache(cache: str | Path | bool | None, folder: Path | None) -> Iterator[str | Path | bool]:
    """Give what `fit` takes; what is not the user's is gone at the end, in `folder` once all is done."""
    if cache is not None:
        yield cache
    elif folder is None:
        with tempfile.TemporaryDirectory(prefix="finetune-compare-") as made:
            yield made
    else:
        yield folder / "cache"  # that of a comparison that was ended is found when it goes on
        shutil.rmtree(folder / "cache", ignore_errors=True)
