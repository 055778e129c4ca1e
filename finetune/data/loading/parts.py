"""Parts of a batch: how many samples run through the model at once if memory does not hold them all."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.batch import num_samples_of
from finetune.nested import is_group, tensors_of

log = logging.getLogger("finetune")

_INDIVISIBLE = (
    "The batch cannot be divided, because its inputs are not tensors or lists with one entry per sample. A smaller "
    "batch_size needs less memory; gradient_accumulation_steps keeps the samples per update."
)
_TOGETHER = (
    "Several processes train together, so the batch is not divided. A smaller batch_size needs less memory; "
    "gradient_accumulation_steps keeps the samples per update."
)
_ONE_SAMPLE = (
    "Even one sample at a time does not fit. Smaller inputs, fewer trainable layers, precision='bf16' or a smaller "
    "model need less memory."
)

_FAILED: Any = object()


class Parts:
    """The number of samples that run through the model at once, halved whenever memory runs out.

    Args:
        note: Sentence for the user about the results of divided batches.
        warn: Function that is called with a message for the user.
        divides: Whether a batch may be divided; not among several processes, which would wait for each other.

    Attributes:
        limit: The number of samples; None for whole batches.

    Example:
        >>> parts = Parts()
        >>> while True:
        ...     with parts.halved(torch.zeros(10)):
        ...         print([rows.stop - rows.start for rows in parts.of(10)])
        ...         if parts.limit is None or parts.limit > 4:
        ...             raise torch.OutOfMemoryError
        ...         break
        [10]
        [5, 5]
        [2, 3, 2, 3]
    """

    def __init__(self, note: str = "", warn: Callable[[str], object] = log.warning, *, divides: bool = True) -> None:
        self.limit: int | None = None
        self._note, self._warn, self._divides = note, warn, divides

    def of(self, size: int) -> list[slice]:
        """Return the rows of each part of a batch: one part, or several that differ by one sample at most."""
        count = 1 if self.limit is None else -(-size // self.limit)
        bounds = [size * k // count for k in range(count + 1)]
        return [slice(start, stop) for start, stop in pairwise(bounds)]

    @contextmanager
    def halved(self, batch: Any) -> Iterator[None]:
        """Halve the limit if the memory of a GPU runs out within the context, which then ends without an error.

        Call `release` afterwards. Other errors pass.

        Raises:
            torch.OutOfMemoryError: If the batch cannot be divided further.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            if not self._divides:
                raise torch.OutOfMemoryError(f"{error} {_TOGETHER}") from error
            before = num_samples_of(batch) if self.limit is None else self.limit
            if before < 2:
                raise torch.OutOfMemoryError(f"{error} {_ONE_SAMPLE}") from error
            try:
                rows(batch, num_samples_of(batch), slice(0, 1))
            except ValueError:
                raise torch.OutOfMemoryError(f"{error} {_INDIVISIBLE}") from error
            self.limit = -(-before // 2)
            self._warn(
                f"Out of memory on {before} samples: from now on, at most {self.limit} run through the model at once."
                f"{self._note}"
            )

    def over(self, batch: Any, compute: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
        """Yield the parts of a batch, each with what a function computes of it. Parts that do not fit are divided."""
        done, size = 0, None
        while size is None or done < size:
            part, output = batch, _FAILED
            with self.halved(batch):
                stop = None
                if self.limit is not None:
                    size = num_samples_of(batch)
                    stop = self.of(size - done)[0].stop + done
                    part = rows(batch, size, slice(done, stop))
                output = compute(part)
            if output is _FAILED:
                release()
                continue
            yield part, output
            if stop is None:
                return
            done = stop


def release() -> None:
    """Return the memory of a failed computation to the device. Call it when its error is handled."""
    gc.collect()
    torch.accelerator.empty_cache()


def rows(batch: Any, size: int, part: slice, made: dict[int, Any] | None = None) -> Any:
    """Return some samples of a batch, in its structure.

    Args:
        batch: A batch of tensors [N, ...] or lists of N entries, in a tuple, list or mapping.
        size: Number of samples, N.
        part: The samples.
        made: Parts of tensors by the identity of the tensor, so that the same tensor has the same part.

    Raises:
        ValueError: If a value does not have one entry per sample.

    Example:
        >>> rows((torch.arange(4), ["a", "b", "c", "d"]), 4, slice(1, 3))
        (tensor([1, 2]), ['b', 'c'])
    """
    made = {} if made is None else made
    if part == slice(0, size):
        return batch
    if is_group(batch) and not hasattr(batch, "_fields"):
        return type(batch)(_rows(value, size, part, made) for value in batch)
    return _rows(batch, size, part, made)


def _rows(value: Any, size: int, part: slice, made: dict[int, Any]) -> Any:
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
        if len(value) != size:
            raise ValueError("one row per sample expected")
        return made.setdefault(id(value), value[part])
    if isinstance(value, Mapping):
        return {key: _rows(inner, size, part, made) for key, inner in value.items()}
    if type(value) in (list, tuple):
        columns = [tensor.dim() > 0 and len(tensor) == size for tensor in tensors_of(value)]
        if len(value) == size and not (columns and all(columns)):
            return value[part]
        return type(value)(_rows(inner, size, part, made) for inner in value)
    if value is None or isinstance(value, (str, bool, int, float, Tensor, np.ndarray)):
        return value
    raise ValueError("one entry per sample expected")
