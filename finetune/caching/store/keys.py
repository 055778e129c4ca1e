"""Content hashes that identify cached activations: if anything they depend on changes, the lookup misses.

The fingerprint covers the computation: the derivation of the activations, the values of all constants, and the
preprocessing. The key of a sample covers its data. Neither covers trainable parameters, heads, learning rates or folds,
so runs that differ only in these share a store. Because each sample has its own key, a fold is found in any form: a
validation split made here, a list of paths, or `X[fold]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from finetune.caching.prefix.derivation import layout_of
from finetune.caching.prefix.prefix import Prefix
from finetune.caching.store.disk_store import KEY
from finetune.data.loading.batches import Batches
from finetune.data.sources.base import Source
from finetune.digests import KEY_BYTES, key_of, sha256

VERSION = 2  # increase whenever the stored values or their format change


def keys_of(source: Source) -> np.ndarray | None:
    """Return the key of each sample of a source, `KEY` [N], or None if the source has none."""
    keys = source.keys()
    if keys is None:
        return None
    return np.array([key if len(key) == KEY_BYTES else key_of("source", key) for key in keys], KEY)


def keys_of_views(batches: Batches) -> np.ndarray | None:
    """Return the key of each view of each sample, `KEY` [views * N], in the order of `Batches.rows`."""
    keys, views = keys_of(batches.source), batches.described_views()
    if keys is None or views is None or not views:
        return None if views is None else keys
    described = [(key, view(index)) for view in views for index, key in enumerate(keys.tolist())]
    return np.array([_key_of_view(*pair) for pair in described], KEY)


def fingerprint(prefix: Prefix, described: Mapping[str, Any] | None = None, *, version: int = VERSION) -> str | None:
    """Return the fingerprint of a prefix's activations, 64 hexadecimal digits.

    Reads every frozen weight before the boundary, at about 1.5 GB/s.

    Args:
        prefix: Prefix whose skipped modules have not changed since the cut.
        described: Everything else that determines the model's inputs, as JSON values: the preprocessing as a dict,
            the views, the precision and the layout.
        version: Version of the stored values.

    Returns:
        The fingerprint, or None if the prefix reads a constant without bytes, such as a sparse tensor.

    Raises:
        TypeError: If `described` holds a value that JSON cannot represent.
    """
    import torchvision

    header = (
        version,
        [torch.__version__, torchvision.__version__, PIL.__version__],  # torchvision and Pillow decode and resize
        _precisions(),
        [[list(spec.shape), str(spec.dtype)] for spec in prefix.specs],
        prefix.derivation.text,
        described or {},
    )
    parts: list[str | Tensor] = [json.dumps(header, sort_keys=True) + "\n"]
    for constant in prefix.derivation.constants:
        parts += [f"{layout_of(constant)}\n", constant]
    try:
        return sha256(*parts)
    except (RuntimeError, TypeError):
        return None


def _key_of_view(key: bytes, view: str) -> bytes:
    return key_of(f"view {view}", key.ljust(KEY.itemsize, b"\0"))  # NumPy drops trailing zeros


def _precisions() -> list[str]:
    """Return torch's settings for the precision of float32 products."""
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    kinds: tuple[Any, ...] = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)  # type: ignore[attr-defined]
    return [str(kind.fp32_precision) for kind in kinds]
