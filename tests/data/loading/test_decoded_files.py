"""Pictures that the library augments are decoded once, and every number stays what it was."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from finetune import Preprocessing
from finetune.data.loading.batches import Batches
from finetune.data.loading.decoded_files import DecodedFiles, decoded_once
from finetune.data.preprocessing.augmentations import CropAndFlip
from finetune.data.sources.open_source import open_source
from finetune.data.sources.picture_files import PictureFiles
from finetune.errors import DataError

SMALL = Preprocessing(crop_size=(8, 8), resize_size=10)
AUGMENTATION = CropAndFlip(SMALL)


@pytest.fixture
def folder(class_folder: Callable[..., Path]) -> Path:
    return class_folder(cat=4, dog=5)


def made(folder: Path, **arguments: Any) -> Batches:
    arguments = {"augment": AUGMENTATION, "workers": 0, "keep": True} | arguments
    return Batches(open_source(folder), batch_size=2, shuffle=True, preprocessing=SMALL, **arguments)


def pictures(batches: Batches, epoch: int, start: int = 0) -> Tensor:
    return torch.cat([batch[0] for batch in batches.epoch(epoch, start)])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("views", [None, 3])
def test_later_epochs_are_the_same_and_read_no_file(folder: Path, workers: int, views: int | None) -> None:
    again = made(folder, keep=False, views=views)
    expected = [pictures(again, number) for number in range(3)]
    assert not expected[0].equal(expected[1])  # the augmentation is at work
    batches = made(folder, workers=workers, views=views)
    first = pictures(batches, 0)
    shutil.rmtree(folder)
    later = [pictures(batches, number) for number in (1, 2)]
    assert all(map(torch.equal, [first, *later], expected))
    assert pictures(batches, 1, start=2).equal(expected[1][4:])


def test_views_that_stand_in_share_what_is_decoded(folder: Path) -> None:
    batches = made(folder, stand_ins=AUGMENTATION.stand_ins)
    expected = pictures(made(folder, keep=False, stand_ins=AUGMENTATION.stand_ins).in_views(), 1)
    pictures(batches, 0)
    shutil.rmtree(folder)
    assert pictures(batches.in_views(), 1).equal(expected)


@pytest.mark.parametrize("arguments", [{"keep": False}, {"augment": SMALL.geometry}])
def test_nothing_is_kept_unless_asked_or_where_a_function_may_want_the_file(
    folder: Path, arguments: dict[str, Any]
) -> None:
    batches = made(folder, **arguments)
    pictures(batches, 0)
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="does not exist"):
        pictures(batches, 1)


def files(folder: Path, *modes: str) -> PictureFiles:
    rng = np.random.default_rng(0)
    paths = []
    for number, mode in enumerate(modes):
        pixels = rng.integers(0, 256, (5 + number, 7, 4), dtype=np.uint8)
        path = folder / f"{number}.png"
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256) if mode == "I;16" else Image.fromarray(pixels)
        (picture if mode == "I;16" else picture.convert(mode)).save(path)
        paths.append(path)
    return PictureFiles(paths)


def test_pictures_come_back_in_their_mode_and_size(tmp_path: Path) -> None:
    source = files(tmp_path, "RGB", "L", "RGBA", "RGB")
    decoded = DecodedFiles(source, 10_000)
    expected = [source[index] for index in range(4)]
    for _ in range(2):
        found = [decoded[index] for index in reversed(range(4))][::-1]
        assert [(one.mode, one.size, one.tobytes()) for one in found] == [
            (one.mode, one.size, one.tobytes()) for one in expected
        ]
        shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize("mode", ["P", "I;16", "CMYK"])
def test_other_modes_are_decoded_each_time(tmp_path: Path, mode: str) -> None:
    if mode == "CMYK":
        Image.new("CMYK", (7, 5)).save(tmp_path / "0.jpg")
        source = PictureFiles([tmp_path / "0.jpg"])
    else:
        source = files(tmp_path, mode)
    decoded = DecodedFiles(source, 10_000)
    assert [decoded[0].mode for _ in range(2)] == [source[0].mode] * 2
    shutil.rmtree(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        decoded[0]


def test_beyond_the_budget_pictures_are_decoded_each_time(tmp_path: Path) -> None:
    source = files(tmp_path, "RGB", "RGB", "RGB")
    sizes = [3 * 7 * (5 + number) for number in range(3)]
    decoded = DecodedFiles(source, sum(sizes[:2]))
    expected = [decoded[index].tobytes() for index in range(3)]
    assert [decoded[index].tobytes() for index in range(3)] == expected
    shutil.rmtree(tmp_path)
    assert [decoded[index].tobytes() for index in range(2)] == expected[:2]
    with pytest.raises(DataError, match="does not exist"):
        decoded[2]


def test_a_file_that_changed_is_decoded_anew(tmp_path: Path) -> None:
    decoded = DecodedFiles(files(tmp_path, "RGB"), 10_000)
    assert decoded[0].getpixel((0, 0)) != (255, 0, 0)
    Image.new("RGB", decoded[0].size, "red").save(tmp_path / "0.png")
    for _ in range(2):
        assert decoded[0].getpixel((0, 0)) == (255, 0, 0)
    Image.new("RGB", decoded[0].size, "blue").save(tmp_path / "0.png")
    assert decoded[0].getpixel((0, 0)) == (0, 0, 255)


def test_a_process_that_is_spawned_has_the_plain_files(tmp_path: Path) -> None:
    decoded = DecodedFiles(files(tmp_path, "RGB"), 10_000)
    copy = pickle.loads(pickle.dumps(decoded))
    assert type(copy) is PictureFiles
    assert copy[0].tobytes() == decoded[0].tobytes()


def test_without_memory_files_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = files(tmp_path, "RGB")
    assert isinstance(decoded_once(source, AUGMENTATION), DecodedFiles)
    monkeypatch.setattr("finetune.data.loading.decoded_files.free_memory", lambda device: 0)
    assert decoded_once(source, AUGMENTATION) is source
