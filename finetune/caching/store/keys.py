"""What stored activations follow from, said by digests: whatever of it changes, they are found no more.

The fingerprint says how they are computed: the recipe of the prefix with the values of all it reads, and
what is done to samples before the model sees them. The key of a sample says what it is computed from.
Nothing is remembered of what trains, or of any head, rate or fold: runs that differ in these alone share
what is stored. And because each sample has a key of its own, a fold is found in whatever form it is given:
a part that the library set aside, a list of paths, or `X[fold]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from finetune.caching.prefix.prefix import Prefix
from finetune.caching.prefix.recipe import kind_of
from finetune.caching.store.disk import KEY
from finetune.data.loading.batches import Batches
from finetune.data.sources.base import Source
from finetune.digests import KEY_BYTES, key_of, sha256

VERSION = 2  # of what is stored; another one whenever a prefix comes to store other values, or in another way


def keys_of(source: Source) -> np.ndarray | None:
    """Return the key of each sample of a source, `KEY` [N], or None if the source has none."""
    keys = source.keys()
    if keys is None:
        return None
    return np.array([key if len(key) == KEY_BYTES else key_of("source", key) for key in keys], KEY)


def keys_of_views(batches: Batches) -> np.ndarray | None:
    """Return the key of each input there is in these batches, `KEY` [views * N], as `Batches.rows` numbers them."""
    keys, views = keys_of(batches.source), batches.described_views()
    if keys is None or views is None or not views:
        return None if views is None else keys
    described = [(key, view(index)) for view in views for index, key in enumerate(keys.tolist())]
    return np.array([_key_of_view(*pair) for pair in described], KEY)


def fingerprint(prefix: Prefix, described: Mapping[str, Any] | None = None, *, version: int = VERSION) -> str | None:
    """Return the fingerprint of what a prefix stores, 64 letters and digits.

    Reads every frozen weight before the boundary, some 1.5 GB a second.

    Args:
        prefix: as it was cut; what it leaves out must not have changed since.
        described: All else that decides the model's inputs, in JSON values: the preprocessing as a dict, the views,
            the precision and the layout.
        version: Version of the stored values.

    Returns:
        None if a constant that the prefix reads has no bytes to compare, as a sparse tensor.

    Raises:
        TypeError: something in `described` is not of JSON.
    """
    import torchvision

    header = (
        version,
        [torch.__version__, torchvision.__version__, PIL.__version__],  # the latter two decode and resize
        _precisions(),
        [[list(spec.shape), str(spec.dtype)] for spec in prefix.specs],
        prefix.recipe.text,
        described or {},
    )
    parts: list[str | Tensor] = [json.dumps(header, sort_keys=True) + "\n"]
    for constant in prefix.recipe.constants:
        parts += [f"{kind_of(constant)}\n", constant]
    try:
        return sha256(*parts)
    except (RuntimeError, TypeError):
        return None


def _key_of_view(key: bytes, view: str) -> bytes:
    return key_of(f"view {view}", key.ljust(KEY.itemsize, b"\0"))  # numpy leaves zeros at the end away


def _precisions() -> list[str]:
    """Return with how many bits torch may multiply float32 on a device."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    kinds: tuple[Any, ...] = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)  # type: ignore[attr-defined]
    return [str(kind.fp32_precision) for kind in kinds]
