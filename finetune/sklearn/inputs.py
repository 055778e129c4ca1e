"""Inputs in the forms of scikit-learn, as `FineTuner` takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.utils.validation import check_array

from finetune.errors import DataError

_CHANNELS = (1, 3, 4)
_ITEMS = (str, Path, Image.Image)


def are_items(X: Any) -> bool:
    """Return whether inputs are texts, paths or images, one per sample, rather than numbers.

    Example:
        >>> are_items(np.array(["a.png", "b.png"], dtype=object)), are_items([[0.5, 1.0]])
        (True, False)
    """
    first = next(iter(X), None) if isinstance(X, (list, tuple)) or getattr(X, "ndim", 0) == 1 else None
    return isinstance(first, _ITEMS)


def checked_items(X: Any) -> np.ndarray:
    """Return texts, paths or images as an object array [N], of which scikit-learn can take a part.

    Raises:
        DataError: If one of them is something else.
    """
    items = np.empty(len(X), dtype=object)
    items[:] = list(X)
    for index, item in enumerate(items):
        if not isinstance(item, _ITEMS):
            raise DataError(f"Expected texts, paths or images, but X[{index}] is a {type(item).__name__}.")
    return items


def as_inputs(X: np.ndarray) -> Any:
    """Return what `FineTuner` takes for a checked array.

    Args:
        X: Items [N] of dtype object; features [N, D]; pictures [N, H, W], [N, H, W, C] or [N, C, H, W], which are raw
            if they are uint8 and ready for the model otherwise.

    Example:
        >>> as_inputs(np.zeros((2, 8, 8, 3))).shape
        (2, 3, 8, 8)
        >>> as_inputs(np.zeros((2, 3, 8, 6), dtype="uint8"))[0].size
        (6, 8)
    """
    if X.dtype == object:
        return list(X)
    if X.dtype == np.uint8 and X.ndim in (3, 4):
        return [Image.fromarray(picture) for picture in _channels_last(X)]
    ready = check_array(X, dtype="float32", allow_nd=True, copy=True)  # torch warns of arrays that are read-only
    return _channels_first(ready) if ready.ndim == 4 else ready


def _channels_first(X: np.ndarray) -> np.ndarray:
    if X.shape[1] in _CHANNELS or X.shape[3] not in _CHANNELS:
        return X
    return np.ascontiguousarray(X.transpose(0, 3, 1, 2))


def _channels_last(X: np.ndarray) -> np.ndarray:
    if X.ndim == 4 and X.shape[1] in _CHANNELS and X.shape[3] not in _CHANNELS:
        X = X.transpose(0, 2, 3, 1)
    return X[..., 0] if X.ndim == 4 and X.shape[3] == 1 else X
