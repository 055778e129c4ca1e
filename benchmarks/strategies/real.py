"""Frozen against partly frozen against fine-tuned on a real data set: a folder, or one that torchvision downloads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchvision

STRATEGIES = ("linear_probe", "last_stage", "full_finetune")

# The arguments that give training and test pictures.
_SPLITS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "CIFAR10": ({"train": True}, {"train": False}),
    "CIFAR100": ({"train": True}, {"train": False}),
    "DTD": ({"split": "train"}, {"split": "val"}),
    "FGVCAircraft": ({"split": "train"}, {"split": "val"}),
    "Flowers102": ({"split": "train"}, {"split": "val"}),
    "Food101": ({"split": "train"}, {"split": "test"}),
    "OxfordIIITPet": ({"split": "trainval"}, {"split": "test"}),
}


class MissingDataError(Exception):
    """The data set is not there."""


def opened(data: str, root: Path, download: bool) -> tuple[Any, Any]:
    """Return training and test data; of a folder None for the latter, so that a share is set aside.

    Args:
        data: a folder with a folder per class, or the name of one of torchvision's data sets.
        root: where the latter is, or is to be.
        download: fetch it if it is not there.

    Raises:
        MissingDataError: it is not there.
    """
    if Path(data).is_dir():
        return data, None
    if data not in _SPLITS:
        raise MissingDataError(f"{data} is no folder, and none of torchvision's data sets {', '.join(_SPLITS)}.")
    try:
        train, test = (getattr(torchvision.datasets, data)(root, download=download, **which) for which in _SPLITS[data])
    except RuntimeError as error:
        raise MissingDataError(
            f"{data} is not in {root}: {error} Name the folder that it was downloaded to with --root, or fetch it with "
            f"--download."
        ) from error
    return train, test


def report(data: str, model: str, root: Path, download: bool, out: Path, **options: Any) -> str:
    """Compare the strategies, and return the table as Markdown; finished runs are kept in `out`.

    Raises:
        MissingDataError: the data set is not there.
    """
    train, test = opened(data, root, download)
    from finetune import compare

    comparison = compare(model, train, test, strategies=STRATEGIES, folder=out, cache=False, **options)
    return f"# {model} on {Path(data).name}\n\n{comparison.to_markdown()}"
