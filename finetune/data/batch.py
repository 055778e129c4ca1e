"""Find the inputs and targets in a batch or sample, which is a pair or a dict with a label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

LABEL_KEYS = (
    "label", "labels", "class", "classes", "class_name", "class_id", "target", "targets",
    "category", "y", "fine_label", "coarse_label",
)  # fmt: skip


def target_of(batch: Any) -> Any:
    """Return the targets of a batch, or the target of a sample: the second of a pair, or the label in a dict.

    Return None if there are none.
    """
    if isinstance(batch, (tuple, list)):
        return batch[1] if len(batch) > 1 else None
    key = label_key_of(batch) if hasattr(batch, "keys") else None
    return None if key is None else batch[key]


def label_key_of(keys: Iterable[str]) -> str | None:
    """Return the key among `keys` that usually names the label, or None."""
    names = list(keys)
    return next((key for key in LABEL_KEYS if key in names), None)


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Split a batch into inputs and targets: a pair into its two, or a dict into the rest and its label.

    Targets are None if there are none.

    Example:
        >>> split_batch({"input_ids": [[5, 2]], "label": [1]})
        ({'input_ids': [[5, 2]]}, [1])
    """
    if isinstance(batch, (tuple, list)) and batch:
        return batch[0], target_of(batch)
    key = label_key_of(batch) if hasattr(batch, "keys") else None
    if key is None:
        return batch, None
    return {name: value for name, value in batch.items() if name != key}, batch[key]


def with_target(item: Any, target: Any) -> Any:
    """Return a sample of the same structure with a new target."""
    if isinstance(item, (tuple, list)):
        return (item[0], target, *item[2:])
    return {**item, label_key_of(item): target}


def join_batch(batch: Any, inputs: Any, targets: Any) -> Any:
    """Return a batch of the same structure with new inputs and targets, the inverse of `split_batch`."""
    if isinstance(batch, (tuple, list)):
        return (inputs, targets, *batch[2:])
    key = label_key_of(batch) if hasattr(batch, "keys") else None
    return inputs if key is None else {**inputs, key: targets}
