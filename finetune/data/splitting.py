"""Setting part of the training data aside for validation."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune.data.randomness import seed_of
from finetune.data.sources.base import Source
from finetune.errors import ArgumentError, DataError


def split(source: Source, fraction: float = 0.2, seed: int = 0) -> tuple[Source, Source]:
    """Divide a source into a training and a validation part, at random, the same for the same seed.

    With class targets each class gives its share, and keeps at least one sample for training;
    otherwise the samples are drawn from all.

    Args:
        source: with a length.
        fraction: of the samples, for validation; in (0, 1).
        seed: of the draw.

    Returns:
        The training part and the validation part, both in the source's order.

    Raises:
        ArgumentError: `fraction` not in (0, 1).
        DataError: a source without a length, or too small to leave a sample for each part.
    """
    if not 0 < fraction < 1:
        raise ArgumentError(f"fraction is {fraction}; expected a number between 0 and 1, as 0.2.")
    try:
        total = len(source)
    except TypeError as error:
        raise DataError(f"{error} Give the validation data explicitly.") from error
    targets = source.targets
    by_class = targets is not None and targets.dim() == 1 and not targets.is_floating_point()
    strata = targets.cpu() if targets is not None and by_class else torch.zeros(total, dtype=torch.int64)
    chosen = _choose(strata, round(fraction * total), seed)
    if not chosen.any():
        raise DataError(
            f"{total} samples are too few to set {fraction:.0%} of them aside, with one of each class left "
            "to train on. Give the validation data explicitly, or more data."
        )
    return source.subset((~chosen).nonzero().flatten()), source.subset(chosen.nonzero().flatten())


def few_shot(source: Source, shots: int, seed: int = 0) -> tuple[Source, Source]:
    """Draw `shots` samples of every class, the same for the same seed, and return them and all others.

    Raises:
        ArgumentError: `shots` below 1.
        DataError: no class targets, or a class with no more samples than `shots`.
    """
    if shots < 1:
        raise ArgumentError(f"shots is {shots}; expected 1 or more.")
    targets = source.targets
    if targets is None or targets.dim() != 1 or targets.is_floating_point():
        raise DataError("Drawing samples by class needs class targets that are known beforehand.")
    generator = torch.Generator().manual_seed(seed_of(seed, "few shot"))
    order = torch.randperm(len(targets), generator=generator)
    chosen = torch.zeros(len(targets), dtype=torch.bool)
    for target in targets.unique():
        of_class = order[targets.cpu()[order] == target.cpu()]
        if len(of_class) <= shots:
            raise DataError(f"Class {int(target)} has {len(of_class)} samples; {shots} would leave none of them.")
        chosen[of_class[:shots]] = True
    return source.subset(chosen.nonzero().flatten()), source.subset((~chosen).nonzero().flatten())


def _choose(strata: Tensor, wanted: int, seed: int) -> Tensor:
    """Return bool [N], about `wanted` of them True, in proportion in each stratum, never all of one."""
    generator = torch.Generator().manual_seed(seed_of(seed, "split"))
    order = torch.randperm(len(strata), generator=generator)
    _, group, sizes = strata.unique(return_inverse=True, return_counts=True)
    share = max(wanted, 1) * sizes / max(len(strata), 1)
    quota = share.floor().long()
    # The places lost to rounding down go to the largest remainders, so that many small classes still
    # give the wanted number together.
    remainder = torch.where(quota < sizes - 1, share - quota, -1.0)
    lots = torch.randperm(len(sizes), generator=generator)  # for those that tie
    ranked = lots[remainder[lots].argsort(descending=True, stable=True)]
    extra = ranked[: max(wanted, 1) - int(quota.sum())]
    quota[extra[remainder[extra] >= 0]] += 1
    quota = quota.minimum(sizes - 1)
    by_stratum = order[group[order].argsort(stable=True)]
    rank = torch.arange(len(strata)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    chosen = torch.zeros(len(strata), dtype=torch.bool)
    chosen[by_stratum[rank < quota.repeat_interleave(sizes)]] = True
    return chosen
