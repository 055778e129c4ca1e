"""Pictures of samples, for tables, sheets and pages that show them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from finetune.data.batch import split_batch
from finetune.data.preprocessing.base import InputPreprocessing, TextPair
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.pixels import with_channels
from finetune.data.sources.base import Source
from finetune.nested import tensors_of

_LONGEST_SIDE = 96
_ROUNDING = 0.01  # of normalized pixels in low precision


def picture_of(source: Source, index: int) -> Image.Image | None:
    """Return a sample as an RGB image, or None if it is none.

    Bytes are shown as they are. The values of floats, whose scale is unknown, are stretched from black to white.

    Example:
        >>> from finetune.data.sources.open_source import open_source
        >>> picture_of(open_source(torch.zeros(4, 3, 8, 8), labeled=False), 0).size
        (8, 8)
    """
    return as_picture(_input_of(source, index))


def as_picture(item: Any) -> Image.Image | None:
    """Return the inputs of a sample as a new RGB image, or None if they are none.

    Example:
        >>> as_picture(torch.zeros(1, 8, 8)).mode
        'RGB'
    """
    if isinstance(item, Image.Image):
        return with_channels(item, 3).copy()
    tensors = tensors_of(torch.from_numpy(item) if isinstance(item, np.ndarray) else item)
    return _of_tensor(tensors[0].cpu()) if len(tensors) == 1 else None


def text_of(source: Source, index: int) -> str | None:
    """Return the text of a sample, or None if it is none.

    Example:
        >>> from finetune.data.sources.items import RawItems
        >>> text_of(RawItems(["a good film"], "text"), 0)
        'a good film'
    """
    found = _input_of(source, index)
    if isinstance(found, TextPair):
        return f"{found.first} / {found.second}"
    return found if isinstance(found, str) else None


def thumbnail(source: Source, index: int, side: int = _LONGEST_SIDE) -> bytes | None:
    """Return a small PNG file of a sample, or None if it is no image.

    Args:
        source: The data.
        index: Number of the sample.
        side: Length of the longer side in pixels, at most.
    """
    picture = picture_of(source, index)
    if picture is None:
        return None
    picture.thumbnail((side, side))
    page = io.BytesIO()
    picture.save(page, "PNG")
    return page.getvalue()


def as_bytes(inputs: Tensor, preprocessing: InputPreprocessing | None) -> Tensor:
    """Return images as a model sees them, uint8 [N, 3, H, W], from its inputs [N, C, H, W].

    Inputs that the preprocessing cannot have made are stretched from black to white, each image by itself. Images of
    other than three channels are grayscale.

    Example:
        >>> as_bytes(torch.tensor([0.0, 0.5]).reshape(1, 1, 1, 2), None)[0, 0]
        tensor([[  0, 255]], dtype=torch.uint8)
    """
    values = inputs.float()
    own = isinstance(preprocessing, Preprocessing) and values.shape[1] == preprocessing.channels
    if isinstance(preprocessing, Preprocessing) and own and not preprocessing.is_unprepared(values):
        restored = preprocessing.denormalize(values)
        if float(restored.min()) >= -_ROUNDING and float(restored.max()) <= 1 + _ROUNDING:
            return _of_three_channels(restored)
    low, high = (end(values, (1, 2, 3), keepdim=True) for end in (torch.amin, torch.amax))
    return _of_three_channels((values - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny))


def _of_three_channels(values: Tensor) -> Tensor:
    pixels = (255 * values).round().clamp(0, 255).to(torch.uint8)
    return pixels if pixels.shape[1] == 3 else pixels[:, :1].expand(-1, 3, -1, -1)


def _input_of(source: Source, index: int) -> Any:
    if not source.indexed:
        return None
    item = source[index]
    return split_batch(item)[0] if isinstance(item, (tuple, list, dict)) else item


def _of_tensor(values: Tensor) -> Image.Image | None:
    """Return an image [C, H, W] of one or three channels, or None for another tensor."""
    if values.dim() != 3 or values.shape[0] not in (1, 3) or values.is_complex() or not values.numel():
        return None
    if values.dtype != torch.uint8:
        low, high = values.aminmax()
        values = (
            (255 * (values - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)).round().to(torch.uint8)
        )
    pixels: Any = values.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels)
