"""Activations in memory or on disk that the processes of a machine share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from finetune.caching.store.store import STORAGE_DTYPES, Spec, Store, StoreError
from finetune.distributed.world import World

_MEMORY = Path("/dev/shm")  # a file system in memory


class SharedStore(Store):
    """Activations in files that every process of a machine maps into its memory, so that each row is computed once.

    A process sees the rows that others have written before the last exchange of values with them. The files have no
    name once all have opened them, so they end with the processes.

    Args:
        specs: Shape and dtype per row, one for each stored tensor.
        num_rows: Number of rows to allocate.
        world: The processes. All of them open a store together.
        on_disk: Whether to keep the rows on disk rather than in memory.
        pinned: Whether `get` returns page-locked memory, so that a CUDA device copies it asynchronously.

    Raises:
        StoreError: In every process, if there is no room on a machine.
    """

    def __init__(
        self, specs: Sequence[Spec], num_rows: int, world: World, *, on_disk: bool = False, pinned: bool = False
    ) -> None:
        super().__init__(specs, num_rows, pinned)
        sizes = [num_rows, *(num_rows * spec.bytes for spec in self.specs)]
        place = None if on_disk or not _MEMORY.is_dir() else _MEMORY
        made = _made(place, sizes) if world.local_rank == 0 else None
        every = world.gathered(made)
        failed = next((each for each in every if isinstance(each, str)), None)
        paths = every[world.rank - world.local_rank]
        try:
            if failed is not None or not isinstance(paths, list):
                raise StoreError(f"there is no room for {sum(sizes) / 1e9:.1f} GB that processes share: {failed}")
            filled, *rows = (
                torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
                for path, size in zip(paths, sizes, strict=True)
            )
            self._filled = filled.view(torch.bool)
            self._rows = [
                values.view(STORAGE_DTYPES[spec.dtype.itemsize]).view(num_rows, *spec.shape)
                for values, spec in zip(rows, self.specs, strict=True)
            ]
            world.gathered(None)  # every process has opened the files
        finally:
            for path in made if isinstance(made, list) else ():
                with suppress(OSError):
                    os.unlink(path)

    def close(self) -> None:
        self._filled = torch.zeros(self.num_rows, dtype=torch.bool)  # the shared marks are also those of others
        super().close()

    def _write(self, places: Tensor, values: list[Tensor]) -> None:
        for kept, new in zip(self._rows, values, strict=True):
            kept.index_copy_(0, places, new.to(kept.device))


def _made(place: Path | None, sizes: Sequence[int]) -> list[str] | str:
    """Make a file of zeros of each size, and return the paths, or the reason that there is no room."""
    paths: list[str] = []
    try:
        for size in sizes:
            file, path = tempfile.mkstemp(prefix="finetune-", dir=place)
            paths.append(path)
            try:
                os.posix_fallocate(file, 0, max(1, size))  # a file without blocks would end the process that writes
            finally:
                os.close(file)
    except OSError as error:
        for path in paths:
            os.unlink(path)
        return str(error)
    return paths
