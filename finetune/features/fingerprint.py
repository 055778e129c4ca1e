"""What stored activations follow from, in one line: whatever of it changes, they are found no more.

That is the recipe of the prefix with the values of all it reads, the samples, and what is done to them
before the model sees them. Nothing is remembered of what trains, or of any head, rate or fold: runs that
differ in these alone share what is stored.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.data.base import Arrays, Source
from finetune.data.raw import PictureFiles
from finetune.features.prefix import Prefix
from finetune.features.recipe import kind_of

VERSION = 1  # of what is stored; another one whenever a prefix comes to store other values, or in another way

_CHUNK = 1 << 26  # bytes of a tensor that are looked at together


@dataclass(frozen=True)
class Identity:
    """Which data these are.

    Attributes:
        digest: of all of the user's data that the samples are of, without targets.
        indices: int64 [N], the place of each sample in those; parts of the same data share a digest.
        total: how many there are in those.
    """

    digest: str
    indices: Tensor
    total: int


def identity_of(source: Source) -> Identity | None:
    """Return which data a source has; None if that cannot be told without loading all of it, or not at all.

    Picture files are known by path, size and times of change, arrays by their bytes. Of a data set of
    the user's own nothing is known but what it returns.
    """
    content = hashlib.sha256()
    try:
        if isinstance(source, PictureFiles):
            for path in source.paths:
                state = path.stat()
                known = (os.path.abspath(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns)
                content.update(json.dumps(known).encode() + b"\n")
            return Identity(f"files {content.hexdigest()}", torch.arange(len(source)), len(source))
        if isinstance(source, Arrays):
            _add_array(content, source.inputs)
            return Identity(f"arrays {content.hexdigest()}", source.indices, len(source.inputs))
    except (OSError, RuntimeError, TypeError):  # a file that is gone, values that are no bytes
        pass
    return None


def fingerprint(prefix: Prefix, data: Identity, **described: Any) -> str | None:
    """Return the fingerprint of what a prefix stores of some data, 64 letters and digits.

    Reads every frozen weight before the boundary, some 1.5 GB a second.

    Args:
        prefix: as it was cut; what it leaves out must not have changed since.
        data: `identity_of` the data.
        described: all else that decides what the model is given, as JSON has it: the preprocessing as a
            dict, the views, precision and layout.

    Returns:
        None if a constant that the prefix reads has no bytes to compare, as a sparse tensor.

    Raises:
        TypeError: something in `described` is not of JSON.
    """
    content = hashlib.sha256()
    parts = (
        VERSION,
        torch.__version__,
        _precisions(),
        [[list(spec.shape), str(spec.dtype)] for spec in prefix.specs],
        prefix.recipe.text,
        data.digest,
        data.total,
        described,
    )
    content.update(json.dumps(parts, sort_keys=True).encode() + b"\n")
    try:
        for constant in prefix.recipe.constants:
            _add_array(content, constant)
    except (RuntimeError, TypeError):
        return None
    return content.hexdigest()


def _precisions() -> list[str]:
    """Return with how many bits torch may multiply float32 on a device."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    kinds: tuple[Any, ...] = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)  # type: ignore[attr-defined]
    return [str(kind.fp32_precision) for kind in kinds]


def _add_array(content: Any, array: Tensor | np.ndarray) -> None:
    """Add what an array is and its values, a part at a time: it may be larger than memory."""
    if isinstance(array, Tensor):
        content.update(f"{kind_of(array)}\n".encode())
        for part in _parts(array.detach()):
            plain = part.resolve_conj().resolve_neg().cpu().contiguous()
            content.update(plain.reshape(-1).view(torch.uint8).numpy())
    else:
        if array.dtype.hasobject:
            raise TypeError("the values of an array of objects are no bytes")
        content.update(f"{array.dtype.str} {array.shape}\n".encode())
        for part in _parts(array):
            content.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8))


def _parts(array: Any) -> Iterator[Any]:
    """Divide an array along its first dimension."""
    if not array.ndim:
        yield array
        return
    step = max(1, len(array) * _CHUNK // max(1, array.nbytes))
    for start in range(0, len(array), step):
        yield array[start : start + step]
