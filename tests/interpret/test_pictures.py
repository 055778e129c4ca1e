"""Pictures of samples: of files and tensors, as they are or stretched, and none of other data."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from finetune.data.preprocessing.base import TextPair
from finetune.data.sources.items import RawItems
from finetune.data.sources.open_source import open_source
from finetune.interpret.pictures import picture_of, text_of, thumbnail

RGB = torch.randint(0, 256, (3, 6, 5), dtype=torch.uint8)


def pixels(image: Image.Image | None) -> torch.Tensor:
    assert image is not None
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_a_file_is_shown_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(RGB.permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    assert torch.equal(pixels(picture_of(open_source(tmp_path / "a.png", labeled=False), 0)), RGB)


@pytest.mark.parametrize("labeled", [True, False])
def test_bytes_are_shown_as_they_are(labeled: bool) -> None:
    source = open_source((RGB[None], torch.zeros(1))) if labeled else open_source(RGB[None], labeled=False)
    assert torch.equal(pixels(picture_of(source, 0)), RGB)
    grey = pixels(picture_of(open_source((RGB[None, :1], torch.zeros(1))), 0))
    assert torch.equal(grey, RGB[:1].expand(3, -1, -1))


def test_floats_are_stretched_from_black_to_white() -> None:
    shown = pixels(picture_of(open_source((torch.randn(1, 3, 9, 9), torch.zeros(1))), 0))
    assert (shown.min(), shown.max()) == (0, 255)
    assert not pixels(picture_of(open_source((torch.ones(1, 3, 9, 9), torch.zeros(1))), 0)).any()


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield RGB, 0


@pytest.mark.parametrize("data", [torch.zeros(2, 4), torch.zeros(2, 5, 8, 8), ["a text"], Stream()])
def test_other_data_has_no_picture(data: Any) -> None:
    source = open_source(data, labeled=False)
    assert picture_of(source, 0) is thumbnail(source, 0) is None


def test_a_thumbnail_keeps_the_proportions_of_its_picture() -> None:
    source = open_source(torch.zeros(1, 3, 200, 400, dtype=torch.uint8), labeled=False)
    content = thumbnail(source, 0, side=100)
    assert content is not None
    assert Image.open(io.BytesIO(content)).size == (100, 50)


def test_texts_are_shown_as_they_are() -> None:
    assert text_of(RawItems(["a text"], "text", torch.zeros(1)), 0) == "a text"
    assert text_of(RawItems([TextPair("one", "two")], "text"), 0) == "one / two"
    assert text_of(open_source(torch.zeros(2, 4), labeled=False), 0) is None
    assert text_of(open_source(Stream(), labeled=False), 0) is None
