"""How the processes of a run divide data that is read from its start, so that each sample is read once.

Either all processes read the same and each takes every n-th batch, or each reads a part of its own: the split of a
Hugging Face stream, the shards of a `WebDataset`, or the part of a dataset that divides itself. A wrong guess would
repeat samples or leave them out, so before the first pass the processes compare what they are about to read.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from finetune.data.randomness import seed_of
from finetune.digests import sha256
from finetune.distributed.world import World
from finetune.errors import DataError

if TYPE_CHECKING:
    from finetune.data.sources.streams.iterated import Iterated

log = logging.getLogger("finetune")

_NUM_COMPARED = 8  # samples at the start of a stream


# ---------------------------------------------------------------------- datasets


def is_divided(dataset: Any, world: World) -> bool:
    """Return whether an iterable dataset gives each process a part of its own.

    That is so for a `WebDataset` that splits its shards by node, for a split Hugging Face stream, and for a dataset
    whose attribute `split_by_rank` says so.

    Raises:
        DataError: If a Hugging Face stream was split for another process.
    """
    if world.size == 1:
        return False
    split = getattr(dataset, "_distributed", None)  # of Hugging Face
    if split is None:
        return bool(getattr(dataset, "split_by_rank", False)) or "split_by_node" in map(_name_of, stages_of(dataset))
    if (split.rank, split.world_size) != (world.rank, world.size):
        raise DataError(
            f"The Hugging Face stream was split for process {split.rank} of {split.world_size}, but this is process "
            f"{world.rank} of {world.size}. Pass the stream without split_dataset_by_node: it is split here."
        )
    return True


def can_split(dataset: Any) -> bool:
    """Return whether `split_for` can divide an iterable dataset: a Hugging Face stream."""
    return hasattr(dataset, "_distributed")


def split_for(world: World, dataset: Any) -> Any:
    """Return a process's part of a Hugging Face stream: its shards if their number allows, else every n-th sample."""
    split = import_module("datasets.distributed").split_dataset_by_node

    return split(dataset, world.rank, world.size)


def with_shards_split(dataset: Any, world: World, *, ordered: bool) -> Any:
    """Return a `WebDataset` that each process may read. Other datasets, and those with a `nodesplitter`, are unchanged.

    By default, a `WebDataset` refuses to be read by several processes. In the copy, each process reads shards of its
    own, or if `ordered`, all of them.
    """
    stages = stages_of(dataset)
    refusing = next((stage for stage in stages if _name_of(stage) == "single_node_only"), None)
    if world.size == 1 or refusing is None:
        return dataset
    instead = [] if ordered else [refusing.__globals__["split_by_node"]]
    place, copied = stages.index(refusing), copy.copy(dataset)
    copied.pipeline = [*stages[:place], *instead, *stages[place + 1 :]]
    return copied


def stages_of(dataset: Any) -> list[Any]:
    """Return the stages of a `WebDataset`; those of another dataset are none."""
    stages = getattr(dataset, "pipeline", None)
    return stages if isinstance(stages, list) else []


def _name_of(stage: Any) -> str:
    return getattr(stage, "__name__", "")


# ---------------------------------------------------------------------- DataLoaders


def replaced(loader: DataLoader[Any], **attributes: Any) -> DataLoader[Any]:
    """Return a copy of a DataLoader with other attributes, among them those that DataLoader itself keeps."""
    copied = copy.copy(loader)
    vars(copied).update(attributes, _iterator=None)
    return copied


def undivided(loader: DataLoader[Any], world: World) -> DataLoader[Any]:
    """Return a DataLoader in which a `DistributedSampler` gives each sample once, in its order for all processes.

    The sampler itself would repeat samples, so that each process has as many.

    Raises:
        DataError: If another sampler divides the samples by rank.
    """
    batches: Any = loader.batch_sampler
    inner = getattr(batches, "sampler", loader.sampler)
    dividing = [each for each in (loader.sampler, batches, inner) if _divides(each)]
    if world.size == 1 or not dividing:
        return loader
    if type(inner) is not DistributedSampler or type(batches) not in (BatchSampler, type(None)):
        raise DataError(
            f"The {type(dividing[0]).__name__} of the DataLoader divides its samples by rank, and may repeat some. "
            f"Pass its dataset, or a DataLoader without it: each process takes its part of the batches anyway."
        )
    whole: Any = DistributedSampler(inner.dataset, 1, 0, shuffle=inner.shuffle, seed=inner.seed)
    if batches is not None:
        batches = BatchSampler(whole, batches.batch_size, batches.drop_last)
    return replaced(loader, sampler=whole, batch_sampler=batches)


def _divides(sampler: Any) -> bool:
    return hasattr(sampler, "rank") and getattr(sampler, "num_replicas", 1) > 1


# ---------------------------------------------------------------------- checks


def own_seed(seed: int, world: World) -> int:
    """Return the seed of the draws for samples that only this process reads."""
    return seed if world.leads else seed_of(seed, "process", world.rank)


def say_read_whole(data: Any, world: World) -> None:
    """Tell the user that each process reads all of the data."""
    log.info("Each of the %d processes reads all of the %s, and keeps its batches.", world.size, type(data).__name__)


def unordered(noun: str) -> DataError:
    """Return the error for data that is to be predicted in its order, but is divided by rank."""
    return DataError(
        f"Predictions are one row per sample, in the order of the data, but the {noun} is divided by rank, which "
        f"leaves no order of the whole. Pass it undivided: each process takes its part of the batches anyway."
    )


def check_division(source: Iterated, world: World) -> None:
    """Compare the start of a source among processes, which read the same, or if it is divided, each something else.

    Raises:
        DataError: If they read something else, or of divided data the same.
    """
    name = type(source.iterable).__name__
    seen = world.gathered(digest_of(source.first(1 if source.batched else _NUM_COMPARED)))
    if source.divided:
        known = [digest for digest in seen if digest]
        if len({*known}) < len(known):
            raise DataError(
                f"Several processes read the same samples from the {name}, which is said to be divided by rank. Divide "
                f"it by torch.distributed.get_rank(), or remove its attribute split_by_rank: then each process takes "
                f"its part."
            )
    elif len({*seen}) > 1:
        raise _unlike(name)


def check_same(name: str, read: list[Any], world: World) -> None:
    """Compare what identifies the samples that processes divide, such as the order of a DataLoader.

    Raises:
        DataError: If it differs.
    """
    if len({*world.gathered(digest_of(read))}) > 1:
        raise _unlike(name)


def _unlike(name: str) -> DataError:
    return DataError(
        f"The processes read different samples from the {name}, or in another order. Expected the same in all, of "
        f"which each takes its part. Pass a seed to whatever draws or shuffles in it; or, if it divides its samples by "
        f"rank, set dataset.split_by_rank = True."
    )


def digest_of(values: list[Any]) -> str:
    """Return a hash of samples or batches; empty without any."""
    return sha256(*(part for value in values for part in _content(value))) if values else ""


def _content(value: Any) -> Iterator[str | bytes | Tensor | np.ndarray]:
    """Yield what identifies a value, as far as it is known."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _content(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _content(inner)
    elif isinstance(value, Image.Image):
        yield f"{value.mode} {value.size}"
        yield value.tobytes()
    elif (isinstance(value, np.ndarray) and value.dtype != object) or (
        isinstance(value, Tensor) and value.layout == torch.strided
    ):
        yield value
    elif isinstance(value, (str, bytes, int, float, bool, np.generic, type(None))):
        yield f"{value!r},"
    else:
        yield type(value).__name__
