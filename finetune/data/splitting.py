"""Random splits of a source, stratified by class."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune.data.groups import firsts
from finetune.data.randomness import seed_of
from finetune.data.sources.base import Source
from finetune.errors import DataError, number, whole_number


def split(source: Source, fraction: float = 0.2, seed: int = 0) -> tuple[Source, Source]:
    """Split a source into a training and a validation part at random.

    With class targets the split is stratified, and every class keeps at least one sample for training. Samples of one
    group stay together.

    Args:
        source: Indexed source.
        fraction: Fraction of the samples for validation, in (0, 1).
        seed: Seed of the draw.

    Returns:
        The training part and the validation part, both in the order of the source.

    Raises:
        ArgumentError: If `fraction` is not in (0, 1).
        DataError: If the source is a stream, or too small to leave a sample for each part.

    Example:
        >>> from finetune.data.sources.open_source import open_source
        >>> train, val = split(open_source((torch.zeros(10, 3), torch.arange(10) % 2)))
        >>> len(train), val.targets.sort().values
        (8, tensor([0, 1]))
    """
    fraction = number("the fraction", fraction, above=0, below=1)
    try:
        total = len(source)
    except TypeError as error:
        raise DataError(f"{error} Pass the validation data explicitly.") from error
    targets = source.targets
    stratified = targets is not None and targets.dim() == 1 and not targets.is_floating_point()
    strata = targets.cpu() if targets is not None and stratified else torch.zeros(total, dtype=torch.int64)
    groups = source.groups()
    chosen = _choose_whole(strata, groups, fraction, seed)
    if not chosen.any():
        within = "" if groups is None else f" in {len(groups.unique())} files or folders that stay whole"
        raise DataError(
            f"{total} samples{within} are too few to hold out {fraction:.0%} of them and keep one of each class for "
            "training. Pass the validation data explicitly, or more data."
        )
    return source.subset((~chosen).nonzero().flatten()), source.subset(chosen.nonzero().flatten())


def drawn(source: Source, count: int | None, seed: int = 0) -> Source:
    """Return at most about `count` samples of an indexed source at random, stratified by class; all for None.

    A stream is returned as it is.
    """
    if count is None or not source.indexed or len(source) <= count:
        return source
    return split(source, count / len(source), seed)[1]


def few_shot(source: Source, shots: int, seed: int = 0) -> tuple[Source, Source]:
    """Draw `shots` samples per class at random, and return them and the remaining samples.

    Args:
        source: Indexed source with class targets.
        shots: Samples per class.
        seed: Seed of the draw.

    Raises:
        ArgumentError: If `shots` is below 1.
        DataError: If there are no class targets, or a class has no more samples than `shots`.
    """
    shots = whole_number("shots", shots)
    targets = source.targets
    if targets is None or targets.dim() != 1 or targets.is_floating_point():
        raise DataError("Drawing samples per class needs class targets that are known beforehand.")
    generator = torch.Generator().manual_seed(seed_of(seed, "few shot"))
    order = torch.randperm(len(targets), generator=generator)
    chosen = torch.zeros(len(targets), dtype=torch.bool)
    for target in targets.unique():
        of_class = order[targets.cpu()[order] == target.cpu()]
        if len(of_class) <= shots:
            raise DataError(f"Class {int(target)} has {len(of_class)} samples, so drawing {shots} would leave none.")
        chosen[of_class[:shots]] = True
    return source.subset(chosen.nonzero().flatten()), source.subset((~chosen).nonzero().flatten())


def marked(source: Source) -> tuple[Source, Source | None, str]:
    """Divide a source by its own marks, and return the training and the validation part and a sentence on them."""
    assert source.marks is not None
    parts = [(source.marks == mark).nonzero().flatten() for mark in range(3)]
    train, val, test = (len(part) for part in parts)
    if not train:
        raise DataError(f"All {val + test} rows are marked for validation or test. Mark some for training.")
    note = f"The data marks {val} of {train + val + test} samples for validation; they are not trained on."
    note += f" The {test} samples for test are left out." if test else ""
    return source.subset(parts[0]), source.subset(parts[1]) if val else None, note


def mixed(source: Source) -> str | None:
    """Return a sentence on a source that is read as a whole, although it marks parts of it, or None."""
    if source.marks is None or len(source.marks.unique()) < 2:
        return None
    parts = zip(("training", "validation", "test"), source.marks.bincount(minlength=3).tolist(), strict=True)
    shown = ", ".join(f"{count} for {part}" for part, count in parts if count)
    return f"All {len(source)} samples are read, although the data marks {shown}."


def _choose_whole(strata: Tensor, groups: Tensor | None, fraction: float, seed: int) -> Tensor:
    """Return bool [N] as `_choose` does, but alike for all samples of one group."""
    if groups is None:
        return _choose(strata, round(fraction * len(strata)), seed)
    first, groups = firsts(groups).unique(return_inverse=True)
    return _choose(strata[first], round(fraction * len(first)), seed)[groups]


def _choose(strata: Tensor, count: int, seed: int) -> Tensor:
    """Return bool [N], True for about `count` samples in proportion to each stratum, but never for a whole one."""
    generator = torch.Generator().manual_seed(seed_of(seed, "split"))
    order = torch.randperm(len(strata), generator=generator)
    _, group, sizes = strata.unique(return_inverse=True, return_counts=True)
    share = max(count, 1) * sizes / max(len(strata), 1)
    quota = share.floor().long()
    # Places lost to rounding down go to the largest remainders, so that many small classes still add up to `count`.
    remainder = torch.where(quota < sizes - 1, share - quota, -1.0)
    lots = torch.randperm(len(sizes), generator=generator)  # breaks ties
    ranked = lots[remainder[lots].argsort(descending=True, stable=True)]
    extra = ranked[: max(count, 1) - int(quota.sum())]
    quota[extra[remainder[extra] >= 0]] += 1
    quota = quota.minimum(sizes - 1)
    by_stratum = order[group[order].argsort(stable=True)]
    rank = torch.arange(len(strata)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    chosen = torch.zeros(len(strata), dtype=torch.bool)
    chosen[by_stratum[rank < quota.repeat_interleave(sizes)]] = True
    return chosen
