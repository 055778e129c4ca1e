"""Images kept in memory, prepared or decoded: later epochs read no file, and every number stays the same."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from finetune import FineTuner, Preprocessing
from finetune.data.loading.batches import Batches
from finetune.data.loading.image_cache import DecodedImages, cache_decoded, cache_prepared
from finetune.data.preprocessing.augmentations import CropAndFlip
from finetune.data.preprocessing.base import IMAGE
from finetune.data.sources.image_files import ImageFiles
from finetune.data.sources.items import RawItems
from finetune.data.sources.open_source import open_source
from finetune.errors import DataError

SMALL = Preprocessing(crop_size=(8, 8), resize_size=10)
AUGMENTATION = CropAndFlip(SMALL)


@pytest.fixture
def folder(class_folder: Callable[..., Path]) -> Path:
    return class_folder(cat=4, dog=5)


def made(folder: Path, **arguments: Any) -> Batches:
    arguments = {"batch_size": 2, "shuffle": True, "preprocessing": SMALL, "workers": 0} | arguments
    return Batches(open_source(folder), **arguments)


def same(left: list[Any], right: list[Any]) -> bool:
    pairs = [pair for one, other in zip(left, right, strict=True) for pair in zip(one, other, strict=True)]
    return all(type(one) is type(other) and one.dtype == other.dtype and one.equal(other) for one, other in pairs)


def pictures(batches: Batches, epoch: int, start: int = 0) -> Tensor:
    return torch.cat([batch[0] for batch in batches.epoch(epoch, start)])


# ---------------------------------------------------------------- prepared images


@pytest.mark.parametrize("workers", [0, 2])
def test_later_epochs_are_the_same_and_read_no_file(folder: Path, workers: int) -> None:
    again = made(folder)
    expected = [list(again.epoch(number)) for number in range(3)]
    keeping = made(folder, keep=True, workers=workers)
    first = list(keeping.epoch(0))
    shutil.rmtree(folder)
    later = [list(keeping.epoch(number)) for number in (1, 2)]
    assert all(map(same, [first, *later], expected))
    assert same(list(keeping.epoch(1, start=2)), expected[1][2:])


def test_a_partial_first_epoch_is_completed_by_the_next(folder: Path) -> None:
    expected = list(made(folder).epoch(2))
    keeping = made(folder, keep=True)
    list(keeping.epoch(0, start=3))
    list(keeping.epoch(1))
    shutil.rmtree(folder)
    assert same(list(keeping.epoch(2)), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_kept_unless_asked_or_where_it_is_random(folder: Path, workers: int) -> None:
    batches = [
        made(folder, workers=workers),
        made(folder, workers=workers, keep=True, augment=SMALL.geometry),
        kept_for_one := made(folder, workers=workers, keep=True),
    ]
    for one in batches:
        list(one.epoch(0, keep=one is not kept_for_one))
    shutil.rmtree(folder)
    for one in batches:
        with pytest.raises(DataError, match="does not exist"):
            list(one.epoch(1))


def test_a_changed_file_is_read_again(folder: Path) -> None:
    keeping = made(folder, keep=True)
    before = list(keeping.epoch(1))
    path = next(folder.rglob("*.png"))
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    with Image.open(path) as picture:
        size = picture.size
    Image.new("RGB", size, "red").save(path)
    os.utime(path, ns=times)  # as a copy that preserves times does
    for _ in range(2):
        changed = list(keeping.epoch(1))
        assert not same(changed, before)
        assert same(changed, list(made(folder).epoch(1)))


def test_images_beyond_the_budget_are_loaded_each_time(folder: Path) -> None:
    needed = 9 * 3 * 8 * 8
    for budget, keeps in ((needed, True), (needed - 1, False)):
        assert (cache_prepared(open_source(folder), SMALL, budget) is not None) == keeps
        batches = made(folder, keep=True, budget=budget)
        assert (batches._prepared is not None) == keeps


def test_images_in_memory_and_without_targets(folder: Path) -> None:
    images = [Image.open(path).copy() for path in sorted(folder.rglob("*.png"))]
    source = RawItems(images, IMAGE)
    once, plain = (
        Batches(source, batch_size=4, shuffle=False, preprocessing=SMALL, keep=keep) for keep in (True, False)
    )
    list(once.epoch(0))
    assert once._prepared is not None
    assert all(map(torch.equal, once.epoch(1), plain.epoch(1)))


def test_a_custom_collate_fn_sees_every_batch(folder: Path) -> None:
    source = open_source(folder)
    source.collate_fn = lambda samples: (torch.stack([picture for picture, _ in samples]).flip(-1), len(samples))
    kept, plain = (
        Batches(source, batch_size=4, shuffle=False, preprocessing=SMALL, workers=0, keep=keep)
        for keep in (True, False)
    )
    for epoch in range(2):
        pairs = zip(kept.epoch(epoch), plain.epoch(epoch), strict=True)
        assert all(one.equal(other) and count == number for (one, count), (other, number) in pairs)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_run_that_keeps_images_is_the_same_bit_for_bit(folder: Path, frozen: bool) -> None:
    def run(data: Any) -> dict[str, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        tuner = FineTuner(model, device="cpu", preprocessing=SMALL)
        if frozen:
            tuner.freeze("0")
        tuner.fit(data, data, epochs=3, batch_size=4, augment=False, progress=False)
        return model.state_dict()

    source = open_source(folder)
    custom = [(picture, int(target)) for picture, target in map(source.__getitem__, range(len(source)))]
    assert open_source(custom).stochastic  # the images of a custom data set are never kept
    torch.testing.assert_close(run(custom), run(folder), rtol=0, atol=0)


# ---------------------------------------------------------------- decoded images


def augmented(folder: Path, **arguments: Any) -> Batches:
    return made(folder, **{"augment": AUGMENTATION, "keep": True, **arguments})


def decoded(source: ImageFiles, budget: int = 10_000) -> DecodedImages:
    return DecodedImages(source, budget=budget, unchanged=source.watch())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("views", [None, 3])
def test_later_augmented_epochs_are_the_same_and_read_no_file(folder: Path, workers: int, views: int | None) -> None:
    again = augmented(folder, keep=False, views=views)
    expected = [pictures(again, number) for number in range(3)]
    assert not expected[0].equal(expected[1])  # the augmentation is at work
    batches = augmented(folder, workers=workers, views=views)
    first = pictures(batches, 0)
    shutil.rmtree(folder)
    later = [pictures(batches, number) for number in (1, 2)]
    assert all(map(torch.equal, [first, *later], expected))
    assert pictures(batches, 1, start=2).equal(expected[1][4:])


def test_stand_ins_share_the_decoded_images(folder: Path) -> None:
    batches = augmented(folder, stand_ins=AUGMENTATION.stand_ins)
    expected = pictures(augmented(folder, keep=False, stand_ins=AUGMENTATION.stand_ins).in_views(), 1)
    pictures(batches, 0)
    shutil.rmtree(folder)
    assert pictures(batches.in_views(), 1).equal(expected)


@pytest.mark.parametrize("arguments", [{"keep": False}, {"augment": SMALL.geometry}])
def test_nothing_is_decoded_once_unless_asked_or_where_a_function_may_want_the_file(
    folder: Path, arguments: dict[str, Any]
) -> None:
    batches = augmented(folder, **arguments)
    pictures(batches, 0)
    shutil.rmtree(folder)
    with pytest.raises(DataError, match="does not exist"):
        pictures(batches, 1)


def files(folder: Path, *modes: str) -> ImageFiles:
    rng = np.random.default_rng(0)
    paths = []
    for number, mode in enumerate(modes):
        pixels = rng.integers(0, 256, (5 + number, 7, 4), dtype=np.uint8)
        path = folder / f"{number}.png"
        picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256) if mode == "I;16" else Image.fromarray(pixels)
        (picture if mode == "I;16" else picture.convert(mode)).save(path)
        paths.append(path)
    return ImageFiles(paths)


def test_images_keep_their_mode_and_size(tmp_path: Path) -> None:
    source = files(tmp_path, "RGB", "L", "RGBA", "RGB")
    cached = decoded(source)
    expected = [source[index] for index in range(4)]
    for _ in range(2):
        found = [cached[index] for index in reversed(range(4))][::-1]
        assert [(one.mode, one.size, one.tobytes()) for one in found] == [
            (one.mode, one.size, one.tobytes()) for one in expected
        ]
        shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize("mode", ["P", "I;16", "CMYK"])
def test_other_modes_are_decoded_each_time(tmp_path: Path, mode: str) -> None:
    if mode == "CMYK":
        Image.new("CMYK", (7, 5)).save(tmp_path / "0.jpg")
        source = ImageFiles([tmp_path / "0.jpg"])
    else:
        source = files(tmp_path, mode)
    cached = decoded(source)
    assert [cached[0].mode for _ in range(2)] == [source[0].mode] * 2
    shutil.rmtree(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        cached[0]


def test_beyond_the_budget_images_are_decoded_each_time(tmp_path: Path) -> None:
    source = files(tmp_path, "RGB", "RGB", "RGB")
    sizes = [3 * 7 * (5 + number) for number in range(3)]
    cached = decoded(source, sum(sizes[:2]))
    expected = [cached[index].tobytes() for index in range(3)]
    assert [cached[index].tobytes() for index in range(3)] == expected
    shutil.rmtree(tmp_path)
    assert [cached[index].tobytes() for index in range(2)] == expected[:2]
    with pytest.raises(DataError, match="does not exist"):
        cached[2]


def test_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    cached = decoded(files(tmp_path, "RGB"))
    assert cached[0].getpixel((0, 0)) != (255, 0, 0)
    Image.new("RGB", cached[0].size, "red").save(tmp_path / "0.png")
    for _ in range(2):
        assert cached[0].getpixel((0, 0)) == (255, 0, 0)
    Image.new("RGB", cached[0].size, "blue").save(tmp_path / "0.png")
    assert cached[0].getpixel((0, 0)) == (0, 0, 255)


def test_a_spawned_process_has_the_plain_files(tmp_path: Path) -> None:
    cached = decoded(files(tmp_path, "RGB"))
    copy = pickle.loads(pickle.dumps(cached))
    assert type(copy) is ImageFiles
    assert copy[0].tobytes() == cached[0].tobytes()


def test_without_memory_the_source_stays_as_it_is(tmp_path: Path) -> None:
    source = files(tmp_path, "RGB")
    assert isinstance(cache_decoded(source, AUGMENTATION), DecodedImages)
    assert cache_decoded(source, AUGMENTATION, budget=0) is source


def test_images_in_memory_are_not_decoded(folder: Path) -> None:
    in_memory = RawItems([Image.open(path).copy() for path in folder.rglob("*.png")], IMAGE)
    assert cache_decoded(in_memory, AUGMENTATION) is in_memory
