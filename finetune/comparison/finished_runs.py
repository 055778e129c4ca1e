"""`FinishedRuns`: results on disk, keyed by everything that determines them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from finetune.comparison.candidates import GivenStrategy
from finetune.comparison.comparison import RunResult
from finetune.comparison.fingerprint import fingerprint
from finetune.digests import sha256
from finetune.errors import ArgumentError
from finetune.files import durable
from finetune.files.regular import opened


class FinishedRuns:
    """A folder with one JSON file per finished run.

    Args:
        folder: Folder of the comparison, or None to keep nothing.
        common: Fingerprint of the settings that all runs share.

    Raises:
        ArgumentError: If the folder is not writable.
    """

    def __init__(self, folder: Path | None, common: Mapping[str, Any]) -> None:
        self._folder = None if folder is None else folder / "runs"
        self._common = dict(common)
        if self._folder is not None:
            _check_writable(self._folder)

    def path(self, model: nn.Module | str, strategy: GivenStrategy, seed: int, split: Any) -> Path | None:
        """Return the path of a run's file, which may not exist yet, or None if no results are kept.

        Args:
            split: Fingerprint of the data.
        """
        if self._folder is None:
            return None
        entry = {"model": fingerprint({"model": model}), "strategy": fingerprint(strategy)}
        run = {**self._common, **entry, "seed": seed, "data": split}
        return self._folder / f"{sha256(json.dumps(run))[:32]}.json"

    def read(self, path: Path | None) -> RunResult | None:
        """Return the result in a file, or None if the file is missing or damaged."""
        if path is not None:
            with suppress(OSError, ValueError, TypeError, RecursionError), opened(path) as file:
                return RunResult(**json.load(file))
        return None

    def write(self, path: Path | None, row: RunResult) -> None:
        """Write a result atomically."""
        if path is not None:
            with durable.written(path) as file:
                file.write(json.dumps(asdict(row), indent=1).encode())


def _check_writable(folder: Path) -> None:
    try:
        durable.check_writable(folder / "run.json")
    except OSError as error:
        raise ArgumentError(f"{folder} cannot be written: {error}. Expected the path of a folder.") from error
