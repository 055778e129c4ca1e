"""Compare a frozen, a partly frozen and a fine-tuned model on real images: a folder or a torchvision data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchvision

STRATEGIES = ("linear_probe", "last_stage", "full_finetune")

# Arguments of the training and the test split.
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
    """The data set is missing."""


def opened(data: str, root: Path, download: bool) -> tuple[Any, Any]:
    """Return training and test data. For a folder, the test data is None and `compare` splits off a part.

    Args:
        data: Image folder with one folder per class, or the name of a torchvision data set.
        root: Folder of the torchvision data sets.
        download: Whether to download the data set if it is missing.

    Raises:
        MissingDataError: If the data set is missing.
    """
    if Path(data).is_dir():
        return data, None
    if data not in _SPLITS:
        raise MissingDataError(f"{data} is not a folder, nor one of the torchvision data sets {', '.join(_SPLITS)}.")
    try:
        train, test = (getattr(torchvision.datasets, data)(root, download=download, **which) for which in _SPLITS[data])
    except RuntimeError as error:
        raise MissingDataError(
            f"{data} is not in {root}: {error} Set --root to the folder it was downloaded to, or pass --download."
        ) from error
    return train, test


def report(data: str, model: str, root: Path, download: bool, out: Path, **options: Any) -> str:
    """Compare the strategies and return the table as Markdown. Finished runs are kept in `out`.

    Raises:
        MissingDataError: If the data set is missing.
    """
    train, test = opened(data, root, download)
    from finetune import compare

    comparison = compare(model, train, test, strategies=STRATEGIES, folder=out, cache=False, **options)
    return f"# {model} on {Path(data).name}\n\n{comparison.to_markdown()}"
