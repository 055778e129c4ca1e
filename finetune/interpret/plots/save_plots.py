"""All plots of an `Interpretation`, as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.errors import ArgumentError
from finetune.naming.paths import local_path

if TYPE_CHECKING:
    from finetune.interpret.interpretation import Interpretation

_OF_PROBABILITIES = ("reliability", "scores", "curves", "mistakes")
_NAMES = {
    CLASSIFICATION: ("confusion", *_OF_PROBABILITIES),
    BINARY: ("confusion", *_OF_PROBABILITIES),
    MULTILABEL: _OF_PROBABILITIES,
    REGRESSION: ("residuals", "mistakes"),
}


def folder_for_plots(path: str | Path) -> Path:
    """Return a folder for files, which is made if there is none.

    Raises:
        ArgumentError: If it cannot be made.
    """
    folder = local_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{folder} cannot be made: {error}. Expected the path of a folder.") from error
    return folder


def save_plots(found: Interpretation, folder: Path) -> list[Path]:
    """Write the plots that suit the task to a folder, as PNG files, and return their paths."""
    paths = [folder / f"{name}.png" for name in _NAMES[found.task]]
    for path in paths:
        getattr(found, f"plot_{path.stem}")(path=path)
    return paths
