"""Where loggers write: paths that are checked before training, and the names of files."""

from __future__ import annotations

import re
from pathlib import Path

from finetune.errors import ArgumentError
from finetune.files.durable import check_writable


def check_path(path: Path, kind: str) -> None:
    """Check that a logger can write to a path.

    Raises:
        ArgumentError: If it cannot.
    """
    try:
        check_writable(path)
    except OSError as error:
        raise ArgumentError(f"{path} cannot be written: {error}. Expected the path of {kind}.") from error


def file_name(name: str) -> str:
    """Return a name for a file or a folder, made of letters, digits, dots and dashes.

    Example:
        >>> file_name("resnet18, lp_ft, seed 0")
        'resnet18-lp_ft-seed-0'
    """
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
