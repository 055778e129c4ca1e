"""Samples on the host: augmented, collated, and named if they do not form a batch."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, get_worker_info

from finetune import FineTuner
from finetune.data.loading.batches import Batches
from finetune.data.loading.samples import default_workers, worker_deaths_named
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.sources.open_source import open_source
from finetune.errors import ArgumentError, DataError

SMALL = Preprocessing(crop_size=(16, 16), resize_size=20)


@pytest.fixture
def folder(class_folder: Callable[..., Path]) -> Path:
    return class_folder(a=5, b=4)


def epoch(batches: Batches) -> list[Any]:
    return list(batches.epoch(0))


def as_pil(image: Image.Image) -> Image.Image:
    return image.rotate(90)


def as_bytes(image: Image.Image) -> Tensor:
    return SMALL.geometry(as_pil(image))


def as_final(image: Image.Image) -> Tensor:
    return SMALL.normalize(as_bytes(image)[None])[0]


@pytest.mark.parametrize("augment", [as_pil, as_bytes, as_final])
def test_augmentations_may_return_a_image_bytes_or_the_final_tensor(folder: Path, augment: Any) -> None:
    source = open_source(folder)
    batches = Batches(source, batch_size=9, shuffle=False, preprocessing=SMALL, augment=augment)
    assert torch.equal(epoch(batches)[0][0][0], as_final(source[0][0]))


@pytest.mark.parametrize(
    ("wrong", "kind"), [(np.asarray, "ndarray"), (lambda p: torch.zeros(3, dtype=torch.long), "int64")]
)
def test_other_results_of_an_augmentation_are_refused(folder: Path, wrong: Any, kind: str) -> None:
    batches = Batches(open_source(folder), batch_size=9, shuffle=False, preprocessing=SMALL, augment=wrong)
    with pytest.raises(ArgumentError, match=rf"to return a PIL image, .*, but got a (torch\.)?{kind}"):
        epoch(batches)


def test_default_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, files = open_source((torch.zeros(5), torch.zeros(5))), open_source(folder)
    for cores, expected in ((1, 0), (2, 0), (4, 3), (64, 8)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert default_workers(files, 100) == expected
        assert default_workers(arrays, 100) == 0
    assert default_workers(files, 2) == 2
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert default_workers(files, 100) == 0


@pytest.mark.parametrize("form", [lambda x: (x, 0), lambda x: {"x": x, "label": 0}, lambda x: ([x, x], 0)])
def test_masked_values_are_refused_wherever_they_are(form: Any) -> None:
    full, masked = (form(np.ma.masked_array(np.ones(2, np.float32), mask=mask)) for mask in (False, [0, 1]))
    epoch(Batches(open_source([full, full]), batch_size=2, shuffle=False))
    with pytest.raises(DataError, match=r"masked values.*array\.filled\(0\)"):
        epoch(Batches(open_source([full, masked]), batch_size=2, shuffle=False))


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_do_not_batch_are_named(workers: int) -> None:
    items = [(torch.zeros(2), 0), (torch.zeros(2), 0), (torch.zeros(3), 0)]
    batches = Batches(open_source(items), batch_size=3, shuffle=False, workers=workers)
    with pytest.raises(DataError, match=r"sample 0 has the shape \(2,\), sample 2 has \(3,\)"):
        epoch(batches)
    strange = Batches(open_source([(object(), 0)] * 2), batch_size=2, shuffle=False)
    with pytest.raises(DataError, match=r"sample 0 to sample 1 do not form a batch: .*collate_fn"):
        epoch(strange)


# torch notices the death again when it ends the other workers.
AT_THE_END = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Dying(Dataset[Any]):
    """Samples that their worker process does not survive, or has no room for."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        if index == 5 and get_worker_info() is not None:
            if self.how == "no room":
                time.sleep(1)  # until torch's thread has sent the batches before
                resource.setrlimit(resource.RLIMIT_FSIZE, (4, resource.RLIM_INFINITY))
            elif self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                os._exit(3)
        return torch.ones(1000), index % 2


@AT_THE_END
@pytest.mark.parametrize("how", ["killed", "exits", "no room"])
@pytest.mark.parametrize("own_loader", [False, True])
def test_the_death_of_a_worker_is_named(how: str, own_loader: bool) -> None:
    data = DataLoader(Dying(how), batch_size=2, num_workers=1) if own_loader else Dying(how)
    batches = Batches(open_source(data), batch_size=2, shuffle=False, workers=1)
    with pytest.raises(DataError, match=r"A worker process that loads the data died .* pass a smaller batch_size"):
        list(batches.epoch(0))
    with suppress(RuntimeError):  # here, and not in a later test
        gc.collect()


class Two(Dataset[Any]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        return torch.ones(1000), index


def _no_room_left(items: list[Any]) -> Any:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, resource.RLIM_INFINITY))
    return [torch.ones(len(items), 1000), torch.arange(len(items))]


def test_a_batch_that_shared_memory_has_no_room_for_is_named() -> None:
    """torch would move it there in a thread that loses the error, and wait for the batch forever."""
    source = open_source(Two())
    source.collate_fn = _no_room_left
    batches = Batches(source, batch_size=2, shuffle=False, workers=1)
    with pytest.raises(DataError, match=r"A worker process that loads the data died .* pass a smaller batch_size"):
        list(batches.epoch(0))


def test_the_death_of_a_worker_is_named_wherever_it_is_noticed() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")  # by torch's signal handler

    tuner = FineTuner(nn.Linear(4, 2), device="cpu", loss=loss)
    with pytest.raises(DataError, match=r"A worker process .* died \(DataLoader worker \(pid 7\)"):
        tuner.fit((torch.randn(8, 4), torch.arange(8) % 2), epochs=1)


def test_a_connection_that_ends_early_waits_for_the_account_of_the_death() -> None:
    def late(*_: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 3.")

    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(DataError, match=r"died \(DataLoader worker \(pid 7\) .* code 3"), worker_deaths_named():
            ours.recv()
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(DataError, match=r"died \(EOFError\)"), worker_deaths_named():
        ours.recv()


def test_other_errors_keep_their_type() -> None:
    for error in (RuntimeError("mat1 and mat2"), KeyError("pid"), OSError("no"), ConnectionResetError("by peer")):
        with pytest.raises(type(error)), worker_deaths_named():
            raise error
