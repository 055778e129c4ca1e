"""Safeties of the library that can be taken out, as controls: without one, the benchmark has to count faults."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image

from finetune.checkpoint import tensor_file
from finetune.data import randomness
from finetune.data.sources import image_files
from finetune.files import durable, regular
from finetune.model.inspection import allocation
from finetune.signals import stops
from finetune.training.callbacks import base, early_stopping, l2sp, model_checkpoint, weight_averaging


def take_out(name: str) -> None:
    """Take a safety out of this process, for good; `""` leaves all of them in."""
    if name:
        _SAFETIES[name]()


def everywhere(old: Any, new: Any) -> None:
    """Put another object in the place of one, in every module of the library that refers to it."""
    for module in [module for name, module in sys.modules.items() if name.startswith("finetune")]:
        for name, value in list(vars(module).items()):
            if value is old:
                setattr(module, name, new)


@contextmanager
def in_place(path: Path, *, keep_as: Path | None = None) -> Iterator[BinaryIO]:
    """Write over a file, as `open` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w+b") as file:
        yield file


class _Any(str):
    """A checksum that equals every other."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


def _no_staging() -> None:
    everywhere(durable.written, in_place)


def _no_sync() -> None:
    durable.os = _Replaced(durable.os, fsync=_nothing)  # type: ignore[attr-defined, assignment]


def _no_folder_sync() -> None:
    everywhere(durable.sync_folder, _nothing)


def _no_previous() -> None:
    plain = durable.written
    everywhere(plain, lambda path, keep_as=None: plain(path))


def _no_checksum() -> None:
    hashes = tensor_file.hashlib  # type: ignore[attr-defined]
    tensor_file.hashlib = _Replaced(  # type: ignore[attr-defined, assignment]
        hashes, sha256=lambda *parts: _Replaced(hashes.sha256(*parts), hexdigest=lambda: _Any("0" * 64))
    )


def _no_optimizer_state() -> None:
    torch.optim.Optimizer.load_state_dict = _nothing  # type: ignore[method-assign]


def _no_callback_state() -> None:
    for module in (base, early_stopping, l2sp, model_checkpoint, weight_averaging):
        for kind in vars(module).values():
            if isinstance(kind, type) and "load_state_dict" in vars(kind):
                kind.load_state_dict = _nothing  # type: ignore[attr-defined]


def _no_keyed_draws() -> None:
    everywhere(randomness.reseed, _nothing)


def _no_heeding() -> None:
    everywhere(stops._install, _nothing)


def _no_polling() -> None:
    everywhere(stops.polled, lambda items: items)
    everywhere(stops.poll, _nothing)
    everywhere(stops.interruptible, nullcontext)


def _no_kinds() -> None:
    everywhere(regular.check_regular, _nothing)
    everywhere(regular.opened, lambda path: open(path, "rb"))  # noqa: SIM115


def _no_formats() -> None:
    Image.init()
    image_files._FORMATS = tuple(Image.OPEN)  # type: ignore[assignment]


def _no_pixel_cap() -> None:
    Image.MAX_IMAGE_PIXELS = None


def _no_allocation_limit() -> None:
    everywhere(allocation.AllocationLimit, lambda most: nullcontext())


_SAFETIES: dict[str, Callable[[], None]] = {
    "staging": _no_staging,
    "syncing": _no_sync,
    "the sync of folders": _no_folder_sync,
    "the previous file": _no_previous,
    "the checksum": _no_checksum,
    "the optimizer's state": _no_optimizer_state,
    "the callbacks' state": _no_callback_state,
    "random numbers by sample": _no_keyed_draws,
    "heeding signals": _no_heeding,
    "looking for signals": _no_polling,
    "regular files only": _no_kinds,
    "known formats only": _no_formats,
    "the pixel cap": _no_pixel_cap,
    "the limit of allocations": _no_allocation_limit,
}


class _Replaced:
    """An object with some other attributes."""

    def __init__(self, of: Any, **others: Any) -> None:
        self._of = of
        vars(self).update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
