"""Pictures that are the same in every epoch are decoded once, and every number stays what it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from finetune import FineTuner, Preprocessing
from finetune.data.loading.batches import Batches
from finetune.data.preprocessing.base import PICTURE
from finetune.data.sources.items import RawItems
from finetune.data.sources.open_source import open_source
from finetune.errors import DataError

SMALL = Preprocessing(crop_size=(8, 8), resize_size=10)


@pytest.fixture
def folder(class_folder: Callable[..., Path]) -> Path:
    return class_folder(cat=4, dog=5)


def made(folder: Path, **arguments: Any) -> Batches:
    arguments = {"batch_size": 2, "shuffle": True, "preprocessing": SMALL, "workers": 0} | arguments
    return Batches(open_source(folder), **arguments)


def same(left: list[Any], right: list[Any]) -> bool:
    pairs = [pair for one, other in zip(left, right, strict=True) for pair in zip(one, other, strict=True)]
    return all(type(one) is type(other) and one.dtype == other.dtype and one.equal(other) for one, other in pairs)


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


def test_a_first_epoch_in_part_is_made_up_for_in_the_next(folder: Path) -> None:
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


def test_a_file_that_changed_is_read_anew(folder: Path) -> None:
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


def test_pictures_beyond_the_budget_are_decoded_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 9 * 3 * 8 * 8
    for free, keeps in ((5 * needed, True), (5 * needed - 1, False)):
        monkeypatch.setattr("finetune.data.loading.picture_cache.free_memory", lambda device, free=free: free)
        assert (made(folder, keep=True)._kept is not None) == keeps


def test_pictures_in_memory_and_without_targets(folder: Path) -> None:
    pictures = [Image.open(path).copy() for path in sorted(folder.rglob("*.png"))]
    source = RawItems(pictures, PICTURE)
    once, plain = (
        Batches(source, batch_size=4, shuffle=False, preprocessing=SMALL, keep=keep) for keep in (True, False)
    )
    list(once.epoch(0))
    assert once._kept is not None
    assert all(map(torch.equal, once.epoch(1), plain.epoch(1)))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_run_that_keeps_pictures_is_the_same_bit_for_bit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    def run() -> dict[str, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        tuner = FineTuner(model, device="cpu", preprocessing=SMALL)
        if frozen:
            tuner.freeze("0")
        tuner.fit(folder, folder, epochs=3, batch_size=4, augment=False, progress=False)
        return model.state_dict()

    kept = run()
    monkeypatch.setattr("finetune.data.loading.picture_cache.free_memory", lambda device: 0)
    torch.testing.assert_close(run(), kept, rtol=0, atol=0)
