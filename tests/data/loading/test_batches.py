"""Batches: their order, their reproducibility, and every form of data that they load."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from finetune.data.loading.batches import Batches
from finetune.data.preprocessing.augmentations import CropAndFlip
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.sources.base import Source
from finetune.data.sources.open_source import open_source
from finetune.data.targets import CLASSIFICATION, TargetRule
from finetune.distributed.world import join
from finetune.errors import ArgumentError, DataError
from tests.helpers.image_files import picture
from tests.helpers.stand_in import asynchronous_copies
from tests.helpers.worlds import in_processes

MakeFolder = Callable[..., Path]
SMALL = Preprocessing(crop_size=(16, 16), resize_size=20)


class Noise(Dataset[Any]):
    """Items that draw from all three global generators, as custom transforms may."""

    def __init__(self, length: int = 7) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return {"x": torch.rand(2) + random.random() + float(np.random.rand()), "label": index}


class Ten(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for i in range(10):
            yield torch.rand(2) + i, i % 3


def flat(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    return [t for value in (batch.values() if isinstance(batch, dict) else batch) for t in flat(value)]


def equal(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        len(flat(x)) == len(flat(y)) and all(map(torch.equal, flat(x), flat(y))) for x, y in zip(a, b, strict=True)
    )


def epoch(batches: Batches, number: int = 0, start: int = 0) -> list[Any]:
    return list(batches.epoch(number, start))


# ---------------------------------------------------------------- order


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 3), st.integers(0, 3))
def test_every_sample_once_in_the_order_of_seed_and_epoch(n: int, size: int, seed: int, number: int) -> None:
    source = open_source((torch.arange(n), torch.arange(n)))
    batches = Batches(source, batch_size=size, shuffle=True, seed=seed)
    order = batches.order(number)
    assert sorted(order.tolist()) == list(range(n))
    seen = epoch(batches, number)
    assert len(seen) == len(batches) == batches.steps
    assert torch.equal(torch.cat([x for x, _ in seen]), order)
    again = Batches(source, batch_size=size, shuffle=True, seed=seed)
    assert torch.equal(again.order(number), order)
    plain = Batches(source, batch_size=size, shuffle=False)
    assert plain.order(number).tolist() == list(range(n))
    for start in range(len(seen) + 2):
        assert equal(epoch(batches, number, start), seen[start:])


def test_golden_order() -> None:
    batches = Batches(open_source((torch.arange(8), torch.arange(8))), batch_size=3, shuffle=True, seed=1)
    assert batches.order(0).tolist() == [4, 0, 2, 7, 5, 6, 3, 1]
    assert batches.order(1).tolist() == [4, 0, 5, 3, 1, 2, 6, 7]
    assert [len(x) for x, _ in batches.epoch(0)] == [3, 3, 2]


# ---------------------------------------------------------------- the same run


@pytest.fixture
def folder(class_folder: MakeFolder) -> Path:
    return class_folder(a=5, b=4)


def test_trap_30_any_number_of_workers_gives_the_same_run(folder: Path) -> None:
    def run(workers: int, start: int = 0) -> list[Any]:
        batches = Batches(
            open_source(folder), batch_size=2, shuffle=True, seed=3, preprocessing=SMALL,
            augment=CropAndFlip(SMALL), workers=workers,
        )  # fmt: skip
        return epoch(batches, 0, start) + epoch(batches, 1)

    alone = run(0)
    assert equal(alone, run(2))
    assert equal(alone[3:], run(2, start=3))
    assert equal(alone[3:], run(0, start=3))
    assert not equal(alone[:5], alone[5:])


def test_trap_30_no_two_samples_or_epochs_share_their_augmentation() -> None:
    source = open_source([(picture(0), 0)] * 6)
    batches = Batches(
        source,
        batch_size=3,
        shuffle=False,
        preprocessing=SMALL,
        augment=CropAndFlip(SMALL),
        workers=2,
    )
    pictures = torch.cat([x for number in range(3) for x, _ in batches.epoch(number)])
    assert len(pictures.unique(dim=0)) == 18


def test_trap_30_data_sets_that_draw_are_a_function_of_seed_and_epoch() -> None:
    def run(workers: int, seed: int = 0) -> list[Any]:
        return epoch(Batches(open_source(Noise()), batch_size=3, shuffle=True, seed=seed, workers=workers), 2)

    assert equal(run(0), run(1))
    assert not equal(run(0), run(0, seed=1))


def test_an_abandoned_epoch_leaves_nothing_behind(folder: Path) -> None:
    batches = Batches(open_source(folder), batch_size=2, shuffle=True, preprocessing=SMALL, workers=1)
    whole = epoch(batches, 1)
    next(batches.epoch(0))
    assert equal(epoch(batches, 1), whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generators_are_left_alone(folder: Path, workers: int) -> None:
    def states() -> tuple[Any, ...]:
        return torch.random.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    augment = CropAndFlip(SMALL)
    made = [
        Batches(
            open_source(folder),
            batch_size=4,
            shuffle=True,
            preprocessing=SMALL,
            augment=augment,
            workers=workers,
        ),
        Batches(open_source((torch.zeros(5), torch.zeros(5))), batch_size=2, shuffle=True),
        Batches(open_source(Noise()), batch_size=2, shuffle=True, workers=workers),
        Batches(open_source(Ten()), batch_size=2, shuffle=True, workers=workers),
        Batches(open_source(DataLoader(Noise(), shuffle=True)), batch_size=2, shuffle=True),
    ]
    before = states()
    for batches in made:
        epoch(batches)
    assert states() == before


# ---------------------------------------------------------------- images


def test_images_are_prepared_and_normalized(folder: Path) -> None:
    source = open_source(folder)
    (pictures, targets), *_ = epoch(Batches(source, batch_size=4, shuffle=False, preprocessing=SMALL))
    expected = torch.stack([SMALL.normalize(SMALL.geometry(source[i][0])[None])[0] for i in range(4)])
    assert torch.equal(pictures, expected)
    assert torch.equal(targets, source.targets[:4])


def test_images_without_targets_and_in_streams(folder: Path) -> None:
    source = open_source(folder, labeled=False)
    batches = Batches(source, batch_size=5, shuffle=False, preprocessing=SMALL)
    first = epoch(batches)[0]
    assert first.shape == (5, 3, 16, 16)
    assert first.dtype == torch.float32

    class Images(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter([(source[i], i) for i in range(9)])

    stream = open_source(Images())
    stream.kind = "picture"
    assert torch.equal(epoch(Batches(stream, batch_size=5, shuffle=False, preprocessing=SMALL))[0][0], first)


def test_bytes_in_arrays_are_normalized_and_floats_are_final() -> None:
    values = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    made = Batches(open_source((values, [0, 1, 0, 1])), batch_size=4, shuffle=False, preprocessing=SMALL)
    assert torch.equal(epoch(made)[0][0], SMALL.normalize(values))
    floats = Batches(open_source((values.float(), [0, 1, 0, 1])), batch_size=4, shuffle=False, preprocessing=SMALL)
    assert torch.equal(epoch(floats)[0][0], values.float())
    plain = Batches(open_source((values, [0, 1, 0, 1])), batch_size=4, shuffle=False)
    assert torch.equal(epoch(plain)[0][0], values)


@pytest.mark.parametrize("workers", [0, 2])
def test_trap_36_a_corrupt_image_is_named_from_any_worker(folder: Path, workers: int) -> None:
    bad = folder / "b" / "2.png"
    bad.write_bytes(bad.read_bytes()[:200])
    batches = Batches(open_source(folder), batch_size=2, shuffle=True, preprocessing=SMALL, workers=workers)
    with pytest.raises(DataError) as caught:
        epoch(batches)
    message = str(caught.value)
    del caught  # its traceback refers to it, and until that cycle is collected, to the workers
    assert str(bad) in message
    assert "cannot be decoded" in message
    assert "Traceback" not in message
    with pytest.raises(DataError, match=str(bad)):
        open_source(folder)[7]


# ---------------------------------------------------------------- arguments


def test_arguments_are_checked(folder: Path) -> None:
    arrays = open_source((torch.zeros(5), torch.zeros(5)))
    with pytest.raises(ArgumentError, match="Expected batch_size to be a whole number of at least 1, but got 0"):
        Batches(arrays, batch_size=0, shuffle=True)
    with pytest.raises(ArgumentError, match=r"data is images, but the model has no .*=Preprocessing"):
        Batches(open_source(folder), batch_size=1, shuffle=True)
    with pytest.raises(ArgumentError, match="takes PIL images"):
        Batches(arrays, batch_size=1, shuffle=True, preprocessing=SMALL, augment=lambda picture: picture)


# ---------------------------------------------------------------- data sets, streams, loaders


def test_dict_items_and_a_custom_collate_fn() -> None:
    batch = epoch(Batches(open_source(Noise()), batch_size=3, shuffle=False))[0]
    assert batch["label"].tolist() == [0, 1, 2]

    class Ragged(Noise):
        def __getitem__(self, index: int) -> Any:
            return torch.ones(index)

        @staticmethod
        def collate_fn(items: list[Tensor]) -> Tensor:
            return torch.nn.utils.rnn.pad_sequence(items, batch_first=True)

    assert epoch(Batches(open_source(Ragged()), batch_size=7, shuffle=False))[0].shape == (7, 6)


@pytest.mark.parametrize("workers", [0, 1])
def test_streams_are_batched_and_resume(workers: int) -> None:
    batches = Batches(open_source(Ten()), batch_size=4, shuffle=True, workers=workers)
    assert batches.steps is None
    assert batches.num_samples is None
    with pytest.raises(TypeError, match="unknown"):
        len(batches)
    whole = epoch(batches)
    assert [len(x) for x, _ in whole] == [4, 4, 2]
    assert torch.cat([x for x, _ in whole])[:, 0].int().tolist() == list(range(10))
    assert equal(epoch(batches, 0, start=1), whole[1:])
    assert not equal(epoch(batches, 1), whole)

    class Ragged(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter([torch.zeros(2), torch.zeros(3)])

    with pytest.raises(DataError, match=r"item 0 of the batch has the shape \(2,\), item 1"):
        epoch(Batches(open_source(Ragged()), batch_size=2, shuffle=False, workers=workers))


def test_a_stream_with_a_length_and_epochs() -> None:
    class Sized(Ten):
        epoch = 0

        def __len__(self) -> int:
            return 10

        def set_epoch(self, number: int) -> None:
            self.epoch = number

    data = Sized()
    batches = Batches(open_source(data), batch_size=4, shuffle=False)
    assert (batches.steps, batches.num_samples) == (3, 10)
    epoch(batches, 6)
    assert data.epoch == 6


def test_a_loader_keeps_its_batches_and_resumes() -> None:
    def make() -> Batches:
        loader = DataLoader(Noise(), batch_size=3, shuffle=True)
        return Batches(open_source(loader), batch_size=99, shuffle=False, preprocessing=SMALL)

    batches = make()
    assert (len(batches), batches.num_samples) == (3, 7)
    whole = epoch(batches, 1)
    assert [len(b["x"]) for b in whole] == [3, 3, 1]
    assert equal(epoch(make(), 1, start=2), whole[2:])
    assert not equal(epoch(batches, 2), whole)
    dropping = DataLoader(Noise(), batch_size=3, drop_last=True)
    assert Batches(open_source(dropping), batch_size=1, shuffle=False).num_samples is None
    endless = DataLoader(Ten(), batch_size=3)
    assert Batches(open_source(endless), batch_size=1, shuffle=False).steps is None


def test_a_distributed_sampler_gets_the_epoch() -> None:
    sampler = DistributedSampler(Noise(), num_replicas=2, rank=0, seed=4)
    batches = Batches(open_source(DataLoader(Noise(), sampler=sampler)), batch_size=1, shuffle=False)
    epoch(batches, 5)
    assert sampler.epoch == 5
    assert batches.num_samples == 4


def test_trap_34_labels_in_streams_and_loaders_are_checked_before_the_device() -> None:
    for data in (Ten(), DataLoader(Noise(10), batch_size=4), Noise(10)):
        fine = Batches(open_source(data), batch_size=4, shuffle=False, rule=TargetRule(CLASSIFICATION, 10))
        assert len(epoch(fine)) == 3
        short = Batches(open_source(data), batch_size=4, shuffle=False, rule=TargetRule(CLASSIFICATION, 2))
        with pytest.raises(DataError, match=r"sample 2 of batch 0: 2\. Expected 0 to 1"):
            epoch(short)


def test_empty_data_has_no_batches() -> None:
    batches = Batches(open_source([]), batch_size=4, shuffle=True)
    assert len(batches) == 0
    assert epoch(batches) == []


# ---------------------------------------------------------------- memory maps and devices


def test_memory_maps_are_gathered(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(20, dtype=np.float32).reshape(10, 2))
    source = open_source((np.load(tmp_path / "x.npy", mmap_mode="r"), np.arange(10)))
    batches = Batches(source, batch_size=4, shuffle=True)
    for x, y in batches.epoch(0):
        assert torch.equal(x[:, 0], 2.0 * y)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_gpu_gives_what_the_cpu_gives(folder: Path, workers: int, accelerator: torch.device) -> None:
    def run(device: torch.device | str) -> list[Any]:
        augment = CropAndFlip(SMALL)
        made = Batches(
            open_source(folder), batch_size=2, shuffle=True, preprocessing=SMALL, augment=augment,
            device=device, workers=workers,
        )  # fmt: skip
        return epoch(made)

    for (x, y), (a, b) in zip(run(accelerator), run("cpu"), strict=True):
        assert x.device.type == accelerator.type
        assert torch.allclose(x.cpu(), a, atol=1e-6)
        assert torch.equal(y.cpu(), b)
    arrays = Batches(open_source((torch.rand(9, 4), list(range(9)))), batch_size=4, shuffle=True, device=accelerator)
    assert torch.cat([y for _, y in arrays.epoch(0)]).cpu().tolist() == arrays.order(0).tolist()


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA does not count its copies")
@pytest.mark.parametrize("workers", [0, 1])
def test_the_host_does_not_wait_for_its_copies(folder: Path, workers: int, accelerator: torch.device) -> None:
    made = Batches(
        open_source(folder), batch_size=2, shuffle=False, preprocessing=SMALL, device=accelerator, workers=workers
    )
    before, batches = asynchronous_copies(), epoch(made)
    assert asynchronous_copies() - before == 2 * len(batches)  # inputs and targets


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-3, 5), min_size=1, max_size=8), st.integers(1, 5))
def test_labels_out_of_range_are_refused_and_others_pass(labels: list[int], num_classes: int) -> None:
    made = Batches(
        open_source([(torch.zeros(1), k) for k in labels]),
        batch_size=9,
        shuffle=False,
        rule=TargetRule(CLASSIFICATION, num_classes),
    )
    if all(0 <= label < num_classes for label in labels):
        assert len(epoch(made)) == 1
    else:
        with pytest.raises(DataError, match="out of range"):
            epoch(made)


class Partly(Dataset[Any]):
    """Items of which some differ in every read."""

    def __init__(self, size: int, varies: Callable[[int], bool]) -> None:
        self.size, self.varies = size, varies
        self.reads = 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        noise = self.reads if self.varies(index) else 0
        return torch.tensor([float(index), float(noise)]), index * 3 // self.size


@pytest.mark.parametrize(
    ("size", "varies"),
    [
        (90, lambda index: index >= 60),
        (90, lambda index: index == 89),
        (90, lambda index: index % 9 == 4),
        (5000, lambda index: index >= 4800),
        (5000, lambda index: 2000 <= index < 2200),
        (5000, lambda index: index % 10 == 3),
        (5000, lambda index: index > 0),
        (1, lambda index: True),
    ],
)
def test_items_that_differ_anywhere_do_not_repeat(size: int, varies: Callable[[int], bool]) -> None:
    for shuffle in (False, True):
        assert not Batches(open_source(Partly(size, varies)), batch_size=8, shuffle=shuffle).repeats()
    constant = Partly(size, lambda index: False)
    assert Batches(open_source(constant), batch_size=8, shuffle=True).repeats()
    assert constant.reads < 250


def test_one_of_every_known_class_is_compared() -> None:
    class Rare(Source):
        targets = torch.tensor([0] * 9000 + [1] + [0] * 999)

        def __len__(self) -> int:
            return 10_000

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return (torch.rand(2) if index == 9000 else torch.zeros(2)), int(index == 9000)

    assert not Batches(Rare(), batch_size=8, shuffle=True).repeats()


def test_processes_with_different_data_are_an_error() -> None:
    X, y = torch.arange(12.0)[:, None], torch.arange(12) % 5

    def work(rank: int) -> list[int]:
        def read(rows: slice, distributed: Any = "auto") -> list[int]:
            world = join(distributed, torch.device("cpu"))
            batches = Batches(open_source((X[rows], y[rows])), batch_size=3, shuffle=False, world=world)
            return [int(value) for batch in batches.epoch(0) if batch is not None for value in batch[0]]

        for rows in (slice(12 - rank), slice(rank, None, 2)):
            with pytest.raises(DataError, match="The processes have different data, of"):
                read(rows)
        assert read(slice(rank, None, 2), distributed=False) == list(range(12))[rank::2]
        return read(slice(12))

    first, second = in_processes(2, work)
    assert sorted([*first, *second]) == list(range(12))
