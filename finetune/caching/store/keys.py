"""What stored activations follow from, said by digests: whatever of it changes, they are found no more.

The fingerprint says how they are computed: the recipe of the prefix with the values of all it reads, and
what is done to samples before the model sees them. The key of a sample says what it is computed from.
Nothing is remembered of what trains, or of any head, rate or fold: runs that differ in these alone share
what is stored. And because each sample has a key of its own, a fold is found in whatever form it is given:
a part that the library set aside, a list of paths, or `X[fold]`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from finetune.caching.prefix.prefix import Prefix
from finetune.caching.prefix.recipe import kind_of
from finetune.caching.store.disk import KEY
from finetune.data.loading.batches import Batches
from finetune.data.sources.base import Arrays, Source
from finetune.data.sources.files import PictureFiles

VERSION = 2  # of what is stored; another one whenever a prefix comes to store other values, or in another way

_CHUNK = 1 << 26  # bytes of a tensor that are looked at together
_CLOCK_GRAIN = 2.0  # seconds; the coarsest that a file system keeps times in, FAT's


def keys_of(source: Source) -> np.ndarray | None:
    """Return the key of each sample of a source, `KEY` [N]; None if it cannot be told what they are.

    Equal keys mean equal samples. A picture file is known by path, size, times of change and number on its
    disk; by its bytes too as long as it could change again within the grain of the clock. A sample of an
    array is known by its bytes. Targets do not count. Of a data set of the user's own nothing is known but
    what it returns.
    """
    try:
        if type(source) is PictureFiles:  # a class of the user's own may read files in its own way
            keys = list(map(_key_of_file, source.paths))
        elif type(source) is Arrays:
            keys = list(_keys_of_array(source))
        else:
            return None
    except (OSError, RuntimeError, TypeError):  # a file that is gone, values that are no bytes
        return None
    return np.array(keys, KEY)


def keys_of_views(batches: Batches) -> np.ndarray | None:
    """Return the key of each input there is in these batches, `KEY` [views * N], as `Batches.rows` numbers them."""
    keys, views = keys_of(batches.source), batches.described_views()
    if keys is None or views is None or not views:
        return None if views is None else keys
    described = [(key, view(index)) for view in views for index, key in enumerate(keys.tolist())]
    return np.array([_key_of_view(*pair) for pair in described], KEY)


def fingerprint(prefix: Prefix, **described: Any) -> str | None:
    """Return the fingerprint of what a prefix stores, 64 letters and digits.

    Reads every frozen weight before the boundary, some 1.5 GB a second.

    Args:
        prefix: as it was cut; what it leaves out must not have changed since.
        described: all else that decides what the model is given, as JSON has it: the preprocessing as a
            dict, the views, precision and layout.

    Returns:
        None if a constant that the prefix reads has no bytes to compare, as a sparse tensor.

    Raises:
        TypeError: something in `described` is not of JSON.
    """
    import torchvision

    content = hashlib.sha256()
    parts = (
        VERSION,
        [torch.__version__, torchvision.__version__, PIL.__version__],  # the latter two decode and resize
        _precisions(),
        [[list(spec.shape), str(spec.dtype)] for spec in prefix.specs],
        prefix.recipe.text,
        described,
    )
    content.update(json.dumps(parts, sort_keys=True).encode() + b"\n")
    try:
        for constant in prefix.recipe.constants:
            _add_array(content, constant)
    except (RuntimeError, TypeError):
        return None
    return content.hexdigest()


def _key_of_file(path: Path) -> bytes:
    state = path.stat()
    known = (os.path.abspath(path), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    content = _digest("file")
    content.update(json.dumps(known).encode())
    if time.time() - max(state.st_mtime, state.st_ctime) < _CLOCK_GRAIN:
        content.update(path.read_bytes())
    return bytes(content.digest())


def _keys_of_array(source: Arrays) -> Iterator[bytes]:
    """Yield the keys of an array's samples, whose values are looked at a part at a time."""
    inputs = source.inputs
    if isinstance(inputs, np.ndarray) and inputs.dtype.hasobject:
        raise TypeError("the values of an array of objects are no bytes")
    kind = f"array {inputs.dtype} {tuple(inputs.shape[1:])} {isinstance(inputs, Tensor)}"
    at_once = max(1, len(inputs) * _CHUNK // max(1, inputs.nbytes))
    for indices in source.indices.split(at_once):
        rows = inputs[indices.to(inputs.device)] if isinstance(inputs, Tensor) else np.asarray(inputs[indices.numpy()])
        if isinstance(rows, Tensor):
            plain = rows.detach().resolve_conj().resolve_neg().cpu().contiguous()
            rows = plain.reshape(len(plain), -1).view(torch.uint8).numpy()
        for row in np.ascontiguousarray(rows).reshape(len(rows), -1):
            content = _digest(kind)
            content.update(row)
            yield content.digest()


def _key_of_view(key: bytes, view: str) -> bytes:
    content = _digest(f"view {view}")
    content.update(key.ljust(KEY.itemsize, b"\0"))  # numpy leaves zeros at the end away
    return bytes(content.digest())


def _digest(kind: str) -> Any:
    content = hashlib.blake2b(digest_size=KEY.itemsize)
    content.update(kind.encode() + b"\n")
    return content


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
