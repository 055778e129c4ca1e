"""Inputs as arrays: tensors, NumPy arrays or memory maps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.sources.base import Indices, Source
from finetune.data.sources.labels import Classes
from finetune.digests import checksum, keys_of_rows
from finetune.errors import DataError

if TYPE_CHECKING:
    from finetune.data.audit import Audit

_CHUNK_BYTES = 2**26  # the inputs may be larger than memory, so they are read in chunks
_ROWS_DESCRIBED = 1024
_BYTES_IDENTIFIED = 2**32  # some seconds of reading and hashing


class Arrays(Source):
    """Inputs in memory or in a memory map, from which a batch is gathered in one call.

    Args:
        inputs: [N, ...], a tensor on any device or a NumPy array.
        targets: [N, ...] or None.
        classes: Class names by index, or None.
        indices: int64 [M], the rows that belong to this source. None for all.
        double: Whether float64 arrays stay as they are. Otherwise they become float32.
    """

    stochastic = False
    vectorized = True

    def __init__(
        self,
        inputs: Tensor | np.ndarray,
        targets: Tensor | None = None,
        classes: Classes | None = None,
        indices: Tensor | None = None,
        *,
        double: bool = False,
    ) -> None:
        self.inputs = inputs
        self.double = double
        self.classes = classes
        self.indices = torch.arange(len(inputs)) if indices is None else indices
        self._all_targets = targets
        self.targets = targets if targets is None or indices is None else targets[indices.to(targets.device)]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        batch = self.gather(torch.tensor([index]))
        return batch[0] if self.targets is None else (batch[0][0], batch[1][0])

    def gather(self, indices: Tensor) -> Any:
        """Return the batch at int64 [B]: inputs [B, ...], with targets [B, ...] if there are any."""
        inputs = self.rows(self.indices[indices])
        if self.targets is None:
            return inputs
        return inputs, self.targets[indices.to(self.targets.device)]

    def rows(self, rows: Tensor) -> Tensor:
        """Return the inputs at int64 [B], numbered as in the whole array."""
        if isinstance(self.inputs, Tensor):
            return self.inputs[rows.to(self.inputs.device)]
        return torch.from_numpy(native(np.asarray(self.inputs[rows.numpy()]), double=self.double))

    def name(self, index: int) -> str:
        return f"sample {int(self.indices[index])}"

    def subset(self, indices: Indices) -> Arrays:
        chosen = self.indices[torch.as_tensor(indices, dtype=torch.int64)]
        return Arrays(self.inputs, self._all_targets, self.classes, chosen, double=self.double)

    def check(self, audit: Audit, *, chunk_bytes: int = _CHUNK_BYTES) -> Arrays:
        """Check that all inputs are finite, reading `chunk_bytes` at once.

        Raises:
            DataError: If an input is NaN or infinite.
        """
        floats = self.inputs.is_floating_point() if isinstance(self.inputs, Tensor) else self.inputs.dtype.kind == "f"
        if floats:
            row_bytes = max(1, self.inputs[:1].nbytes)
            for indices in torch.arange(len(self)).split(max(1, chunk_bytes // row_bytes)):
                finite = self.rows(self.indices[indices]).isfinite().reshape(len(indices), -1).all(1)
                if not finite.all():
                    raise audit.not_finite(self.name(int(indices[int((~finite).nonzero()[0])])))
        return self

    def describe(self) -> Iterator[Any]:
        for rows in self.indices.split(_ROWS_DESCRIBED):
            yield self.rows(rows)

    def identify(self, *, limit: int = _BYTES_IDENTIFIED) -> Iterator[Any]:
        """Yield the shape, and all rows up to `limit` bytes of inputs; of more, blocks of rows spread over them."""
        yield list(self.inputs.shape[1:]), len(self)
        blocks = self.indices.split(_ROWS_DESCRIBED)
        for rows in blocks[:: 1 + self.inputs.nbytes // limit]:
            yield self.rows(rows)

    def keys(self) -> Iterable[bytes] | None:
        """Return a digest of each sample's bytes, or None if they cannot be read."""
        if type(self) is not Arrays:
            return None  # a subclass may return other inputs
        try:
            return list(keys_of_rows(self.inputs, self.indices))
        except (RuntimeError, TypeError):
            return None

    def version(self, *, values: bool) -> Any:
        """Return torch's version counter, and a checksum if `values`.

        The counter misses changes through `.data` or NumPy, and NumPy arrays have none.
        """
        counted = isinstance(self.inputs, Tensor) and not self.inputs.is_inference()
        version = self.inputs._version if counted else None  # type: ignore[union-attr]
        return (version, checksum(self.inputs)) if values else version


class Group(Source):
    """Several arrays that a model reads together, by name or by position.

    Args:
        parts: Sources of the inputs alone, in a dict or a tuple.
        targets: [N, ...] or None.
        classes: Class names by index, or None.
    """

    stochastic = False
    vectorized = True

    def __init__(
        self,
        parts: dict[str, Arrays] | tuple[Arrays, ...],
        targets: Tensor | None = None,
        classes: Classes | None = None,
    ) -> None:
        self.parts = parts
        self.targets = targets
        self.classes = classes

    def __len__(self) -> int:
        return len(self._sources()[0])

    def __getitem__(self, index: int) -> Any:
        inputs = self._mapped(lambda part: part[index])
        return _alone(inputs) if self.targets is None else (inputs, self.targets[index])

    def gather(self, indices: Tensor) -> Any:
        inputs = self._mapped(lambda part: part.gather(indices))
        return _alone(inputs) if self.targets is None else (inputs, self.targets[indices.to(self.targets.device)])

    def name(self, index: int) -> str:
        return self._sources()[0].name(index)

    def subset(self, indices: Indices) -> Group:
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        targets = None if self.targets is None else self.targets[chosen.to(self.targets.device)]
        return Group(self._mapped(lambda part: part.subset(chosen)), targets, self.classes)

    def check(self, audit: Audit) -> Group:
        """Check that all inputs are finite.

        Raises:
            DataError: If an input is NaN or infinite.
        """
        for part in self._sources():
            part.check(audit)
        return self

    def describe(self) -> Iterator[Any]:
        for part in self._sources():
            yield from part.describe()

    def identify(self) -> Iterator[Any]:
        for part in self._sources():
            yield from part.identify()

    def version(self, *, values: bool) -> Any:
        return tuple(part.version(values=values) for part in self._sources())

    def _sources(self) -> list[Arrays]:
        return list(self.parts.values() if isinstance(self.parts, dict) else self.parts)

    def _mapped(self, change: Callable[[Arrays], Any]) -> Any:
        if isinstance(self.parts, dict):
            return {name: change(part) for name, part in self.parts.items()}
        return tuple(map(change, self.parts))


def _alone(inputs: Any) -> Any:
    """Return inputs without targets as a batch. A bare tuple of two would be taken for inputs and targets."""
    return (inputs,) if isinstance(inputs, tuple) else inputs


def as_inputs(inputs: Any, *, double: bool = False) -> Tensor | np.ndarray:
    """Return a tensor that shares memory with `inputs` if possible. A memory map is returned unchanged.

    Args:
        inputs: A tensor, an array, or a list.
        double: Whether float64 arrays stay as they are.

    Raises:
        DataError: If `inputs` are not numbers, or tensors of different shapes.
    """
    if isinstance(inputs, Tensor):
        return inputs
    if isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], Tensor):
        try:
            return torch.stack(list(inputs))
        except RuntimeError as error:
            raise DataError(f"The tensors of X differ in shape: {error}. Pad or crop them.") from error
    try:
        array = inputs if isinstance(inputs, np.memmap) else native(np.asarray(inputs), double=double)
        if array.dtype.kind not in "biufc":
            raise ValueError(f"its dtype is {array.dtype}")
    except (ValueError, TypeError) as error:
        raise DataError(f"X is not an array of numbers: {error}. Expected shape [N, ...].") from error
    shares = array.flags.writeable and all(stride >= 0 for stride in array.strides)
    return array if isinstance(array, np.memmap) or not shares else torch.from_numpy(array)


def native(array: np.ndarray, *, double: bool = False) -> np.ndarray:
    """Return an array in the machine's byte order, and in a precision that torch has.

    Args:
        array: The array.
        double: Whether float64 stays. Otherwise it becomes float32, as torch's own numbers are.
    """
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind == "f" and array.dtype.itemsize >= 8:
        return array.astype(np.float64 if double else np.float32, copy=False)
    if array.dtype.kind == "c" and array.dtype.itemsize > 16:
        return array.astype(np.complex128)
    return array
