"""Facts of a sample that follow from its raw item alone: its content, and for a picture its size and its light."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from finetune.data.preprocessing.base import TextPair, Waveform
from finetune.digests import byte_chunks, key_of
from finetune.interpret.pictures import as_picture
from finetune.nested import tensors_of

TILE = 32  # side of the small gray copy, by which near duplicates are confirmed
COLORS = 8  # side of the small copy in color

_MEASURED_SIDE = 256  # longer side at which sharpness is measured, so that it does not depend on the resolution
_ENDS = (5.0, 95.0)  # percentiles that count as the darkest and the brightest part

Facts = dict[str, Tensor]


def facts_of(item: Any, *, pictures: bool) -> Facts:
    """Return the facts of the inputs of a sample, each a tensor of the same shape for all samples.

    Args:
        item: Raw item or model input, without its target.
        pictures: Whether the data consists of pictures, which have further facts.

    Example:
        >>> facts = facts_of(Image.new("RGB", (40, 30)), pictures=True)
        >>> facts["size"].tolist(), float(facts["contrast"])
        ([30, 40], 0.0)
    """
    facts = {"key": torch.from_numpy(np.frombuffer(content_key(item), np.uint8).copy()), "finite": _is_finite(item)}
    return facts | _picture_facts(item) if pictures else facts


def content_key(item: Any) -> bytes:
    """Return the 128-bit key of a raw item or model input; equal contents have equal keys, whatever their files.

    Example:
        >>> content_key("a dog") == content_key("a dog"), content_key("a dog") == content_key("a cat")
        (True, False)
    """
    if isinstance(item, Image.Image):
        return key_of(f"{item.mode} {item.size}", item.tobytes())
    if isinstance(item, TextPair):
        return key_of("texts", f"{len(item.first)} {item.first}{item.second}".encode(errors="surrogatepass"))
    if isinstance(item, str):
        return key_of("text", item.encode(errors="surrogatepass"))
    arrays = _arrays_of(item)
    content = b"".join(bytes(chunk) for array in arrays for chunk in byte_chunks(array))
    return key_of(str([(str(array.dtype), tuple(array.shape)) for array in arrays]), content)


def _arrays_of(item: Any) -> list[Any]:
    if isinstance(item, Waveform):
        return [item.samples]
    if isinstance(item, np.ndarray):
        return [item]
    if isinstance(item, (tuple, list)):
        return [array for part in item for array in _arrays_of(part)]
    if hasattr(item, "keys"):
        return [array for key in item.keys() for array in _arrays_of(item[key])]  # noqa: SIM118
    return tensors_of(item) if not isinstance(item, (bool, int, float)) else [torch.tensor(item)]


def _is_finite(item: Any) -> Tensor:
    if isinstance(item, (str, TextPair, Image.Image)):
        return torch.tensor(True)
    arrays = [
        torch.as_tensor(np.asarray(array)) if isinstance(array, np.ndarray) else array for array in _arrays_of(item)
    ]
    return torch.tensor(all(bool(array.isfinite().all()) for array in arrays if array.is_floating_point()))


def _picture_facts(item: Any) -> Facts:
    """Return the facts of a picture: zeros for an item that is none, and light of NaN where the scale is unknown."""
    picture = as_picture(item)
    if picture is None:
        return _picture_facts(Image.new("RGB", (1, 1)))
    known = isinstance(item, Image.Image) or getattr(item, "dtype", None) in (torch.uint8, np.uint8)
    height, width = picture.height, picture.width
    picture.thumbnail((_MEASURED_SIDE, _MEASURED_SIDE), Image.Resampling.BOX)
    gray = picture.convert("L")
    values = np.asarray(gray, np.float32)
    low, high = np.percentile(values, _ENDS) if known else (np.nan, np.nan)
    return {
        "size": torch.tensor([height, width], dtype=torch.int32),
        "darkest": torch.tensor(low, dtype=torch.float32),
        "brightest": torch.tensor(high, dtype=torch.float32),
        "contrast": torch.tensor(float(values.max() - values.min())),
        "sharpness": torch.tensor(sharpness(values)),
        "tile": _pixels(gray, TILE),
        "colors": _pixels(picture, COLORS),
    }


def sharpness(gray: np.ndarray) -> float:
    """Return the energy of the finest details of a gray picture [H, W], relative to its contrast.

    It is the mean square of the Laplacian, divided by the variance: a blurred picture has fewer details than others of
    the same contrast. NaN for a picture without any contrast, or below 3 pixels.

    Example:
        >>> board = np.indices((8, 8)).sum(0) % 2 * 255.0
        >>> sharpness(board) > 10 * sharpness(np.indices((8, 8)).sum(0) * 16.0)
        True
    """
    variance = float(gray.var())
    if variance < 1 or min(gray.shape) < 3:
        return float("nan")
    inner = gray[1:-1, 1:-1]
    laplacian = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * inner
    return float((laplacian**2).mean()) / variance


def _pixels(picture: Image.Image, side: int) -> Tensor:
    """Return a small copy, uint8 [side, side] or [side, side, 3]."""
    small = picture.resize((side, side), Image.Resampling.BILINEAR)  # antialiased when it reduces
    return torch.from_numpy(np.asarray(small).copy())
