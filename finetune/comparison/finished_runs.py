"""The rows of finished runs in a folder, found again by all that decides what is in them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from finetune.comparison.entries import GivenStrategy
from finetune.comparison.identity import described
from finetune.comparison.results import Row
from finetune.digests import sha256
from finetune.errors import ArgumentError


class Ledger:
    """A folder with a file for each finished run.

    Args:
        folder: where; None to keep nothing.
        common: what decides the results of all runs, in values of JSON.

    Raises:
        ArgumentError: the folder cannot be written.
    """

    def __init__(self, folder: Path | None, common: Mapping[str, Any]) -> None:
        self._folder = None if folder is None else folder / "runs"
        self._common = dict(common)
        if self._folder is not None:
            _check_writable(self._folder)

    def place(self, model: nn.Module | str, strategy: GivenStrategy, seed: int, data: Any) -> Path | None:
        """Return the file of a run, there or not; None where nothing is kept. Data is given in values of JSON."""
        if self._folder is None:
            return None
        entry = {"model": described({"model": model}), "strategy": described(strategy)}
        run = {**self._common, **entry, "seed": seed, "data": data}
        return self._folder / f"{sha256(json.dumps(run))[:32]}.json"

    def read(self, place: Path | None) -> Row | None:
        """Return the row in a file, None if there is none that is whole."""
        if place is not None:
            with suppress(OSError, ValueError, TypeError):
                return Row(**json.loads(place.read_text(encoding="utf-8")))
        return None

    def keep(self, place: Path | None, row: Row) -> None:
        """Write a row, whole or not at all."""
        if place is not None:
            staged = place.with_suffix(f".{os.getpid()}.part")
            staged.write_text(json.dumps(asdict(row), indent=1), encoding="utf-8")
            staged.replace(place)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ArgumentError(f"{folder} cannot be written: {error}. Expected the path of a folder.") from error
