"""Find the inputs and targets in a batch or sample, which is a pair or a dict with a label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from finetune.display.left_out import left_out
from finetune.errors import DataError
from finetune.nested import as_plain, described, is_group, map_tensors, tensors_of

LABEL_KEYS = (
    "label", "labels", "class", "classes", "class_name", "class_id", "target", "targets",
    "category", "y", "fine_label", "coarse_label",
)  # fmt: skip


def target_of(batch: Any) -> Any:
    """Return the targets of a batch, or the target of a sample: the second of a pair, or the label in a dict.

    Return None if there are none.
    """
    if is_group(batch):
        return batch[1] if len(batch) > 1 else None
    key = label_key_of(batch) if hasattr(batch, "keys") else None
    return None if key is None else batch[key]


def label_key_of(keys: Iterable[str]) -> str | None:
    """Return the key among `keys` that usually names the label, or None."""
    names = list(keys)
    return next((key for key in LABEL_KEYS if key in names), None)


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Split a batch into inputs and targets: a pair into its two, or a dict into the rest and its label.

    Targets are None if there are none. Tensors of a subclass of `Tensor` become plain, because two subclasses may
    refuse to be combined.

    Example:
        >>> split_batch({"input_ids": [[5, 2]], "label": [1]})
        ({'input_ids': [[5, 2]]}, [1])
    """
    if is_group(batch) and batch:
        return as_plain(batch[0]), as_plain(target_of(batch))
    key = label_key_of(batch) if hasattr(batch, "keys") else None
    if key is None:
        return as_plain(batch), None
    return as_plain({name: value for name, value in batch.items() if name != key}), as_plain(batch[key])


def with_target(item: Any, target: Any) -> Any:
    """Return a sample of the same structure with a new target."""
    if isinstance(item, (tuple, list)):
        return (item[0], target, *item[2:])
    return {**item, label_key_of(item): target}


def join_batch(batch: Any, inputs: Any, targets: Any) -> Any:
    """Return a batch of the same structure with new inputs and targets, the inverse of `split_batch`."""
    if is_group(batch):
        return (inputs, targets, *batch[2:])
    key = label_key_of(batch) if hasattr(batch, "keys") else None
    return inputs if key is None else {**inputs, key: targets}


def num_samples_of(batch: Any) -> int:
    """Return the number of samples in a batch: that of its targets, or without any, of its inputs.

    Targets are one per sample. Inputs may be of any form, such as time-major [T, N, F], a graph, or a list of images.

    Raises:
        DataError: If neither has a tensor with a leading dimension.
    """
    inputs, targets = split_batch(batch)
    per_sample = isinstance(targets, (list, tuple)) and (
        not isinstance(next(iter(targets), None), Tensor) or (is_group(inputs) and len(inputs) == len(targets) > 2)
    )
    if per_sample and len(targets):
        return len(targets)
    for part in (targets, inputs):
        if isinstance(part, np.ndarray) and part.ndim:
            return len(part)
        if isinstance(part, PackedSequence):
            return int(part.batch_sizes[0])
        size = next((len(tensor) for tensor in tensors_of(part) if tensor.dim() > 0), None)
        if size is not None:
            return size
    raise DataError(
        f"A batch of type {type(batch).__name__} has no tensor with a leading dimension, so its size is unknown. "
        f"Expected a tensor, or a tuple, list or dict of tensors [N, ...]."
    )


def first_samples(inputs: Any, samples: int, count: int) -> Any:
    """Return the first `count` of `samples` samples, or all if the inputs do not show one sample per row."""
    rows = all(tensor.dim() > 0 and len(tensor) == samples for tensor in tensors_of(inputs))
    if not rows or (is_group(inputs) and len(inputs) == samples):  # rather a list of samples
        return inputs
    return map_tensors(lambda tensor: tensor[:count], inputs, None)


def check_pair(batch: Any, *, say: bool = False) -> bool:
    """Check that the second of more than two parts may be a target, and return whether there are more than two.

    Args:
        batch: Batch of a loader or dataset.
        say: Whether to log the parts that are not used.

    Raises:
        DataError: If the second part is rather a mask or a second input.
    """
    if not is_group(batch) or len(batch) < 3:
        return False
    inputs, second, *others = batch
    if _is_no_label(inputs, second, others[0]):
        raise DataError(
            f"The second of the {len(batch)} parts of a sample is taken as its target, but {described(second)} looks "
            f"like a mask or a second input. Expected (input, target). Return ((input, second), target) for a model "
            f"of two inputs, a dict such as {{'x': ..., 'mask': ..., 'label': ...}} with the names of forward()'s "
            f"parameters, or (input, target) without the rest."
        )
    if say:
        shown = " and ".join(map(described, others)) + (" is" if len(others) == 1 else " are")
        left_out(
            "part 3 of each sample" if len(others) == 1 else f"parts 3 to {len(batch)} of each sample",
            f"Samples have {len(batch)} parts: the first is the input, the second ({described(second)}) the target; "
            f"{shown} left aside. To use it, for example as a weight, override training_step, which gets the whole "
            f"batch.",
        )
    return True


def _is_no_label(inputs: Any, second: Any, third: Any) -> bool:
    """Return whether the second of three parts has the shape of the inputs, or is a mask."""
    first = next(iter(tensors_of(inputs)), None)
    if first is None or not isinstance(second, Tensor) or second.dim() < 2 or second.shape[1:].numel() < 2:
        return False
    if second.shape == first.shape:
        return True
    flags = bool(((second == 0) | (second == 1)).all())
    padded = flags and bool((second.long().diff(dim=-1) <= 0).all()) and bool((second.select(-1, 0) == 1).all())
    indices = isinstance(third, Tensor) and third.dim() == 1 and not third.is_floating_point()
    return padded and (indices or bool((second == 1).all()))
