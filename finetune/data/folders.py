"""Folders of pictures: one folder per class, loose pictures, or a training and a validation part."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from finetune.data.base import PictureFiles
from finetune.data.labels import Classes, unknown_class
from finetune.data.pictures import SUFFIXES, is_picture_file
from finetune.errors import DataError, nearest

logger = logging.getLogger("finetune")

_TRAIN_NAMES = ("train", "training")
_VAL_NAMES = ("val", "valid", "validation", "dev", "test")


def find_split(folder: str | os.PathLike[str]) -> tuple[Path, Path] | None:
    """Return the training and the validation folder inside `folder`, or None if it isn't so divided.

    The training part is called train or training; the validation part val, valid, validation, dev or
    test, the first of these that is there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    inside = {path.name.lower(): path for path in _folders_in(folder)}
    train = next((inside[name] for name in _TRAIN_NAMES if name in inside), None)
    val = next((inside[name] for name in _VAL_NAMES if name in inside), None)
    return (train, val) if train is not None and val is not None else None


def open_folder(folder: Path, classes: Classes | None, labelled: bool) -> PictureFiles:
    """Open a folder with one folder per class, or, unlabelled, any folder of pictures.

    Raises:
        DataError: no class folders, an empty one, one the training data doesn't have, or a folder
            that is a training and a validation part.
    """
    if not labelled:
        return PictureFiles(list(_pictures_under(folder)), folder=folder)
    split = find_split(folder)
    if split is not None:
        raise DataError(
            f"'{folder}' is divided into parts; they are not classes. "
            f"Give '{split[0]}' as the training data and '{split[1]}' as the validation data."
        )
    found = {path.name: list(_pictures_under(path)) for path in _folders_in(folder)}
    _check_class_folders(folder, found, classes)
    names = tuple(sorted(found)) if classes is None else classes
    index = {name: k for k, name in enumerate(names)}
    paths = [path for name in sorted(found) for path in found[name]]
    targets = [index[name] for name in sorted(found) for _ in found[name]]
    return PictureFiles(paths, torch.tensor(targets, dtype=torch.int64), names, folder)


def missing_path(path: Path) -> DataError:
    """Say that `path` isn't there, what of it is, and which names there are like the missing one."""
    there = path.absolute()
    while not there.parent.exists():
        there = there.parent
    siblings = [entry.name for entry in there.parent.iterdir()]
    return DataError(
        f"'{path}' does not exist: there is no '{there.name}' in '{there.parent}'."
        f"{nearest(there.name, siblings)} Expected a folder with one folder per class, "
        "or a CSV or Parquet file of path and label."
    )


def _check_class_folders(folder: Path, found: dict[str, list[Path]], classes: Classes | None) -> None:
    loose = [path for path in sorted(folder.iterdir()) if path.is_file() and is_picture_file(path)]
    if not any(found.values()):
        holds = f"{len(loose)} loose pictures" if loose else "no pictures"
        raise DataError(
            f"'{folder}' holds {holds} and no folder per class. Expected '{folder}/<class name>/<picture>', "
            f"a picture being one of {', '.join(SUFFIXES)}. For other layouts list path and label in a CSV "
            "file."
        )
    if loose:
        logger.warning(
            "'%s': %d pictures beside the class folders have no class; left out.", folder, len(loose)
        )
    for name in sorted(found):
        if classes is not None and name not in classes and found[name]:
            raise unknown_class(name, f"'{found[name][0]}'", classes)
        if classes is None and not found[name]:
            raise DataError(f"The class folder '{folder / name}' holds no pictures. Fill it or remove it.")


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _pictures_under(folder: Path) -> Iterator[Path]:
    """Yield the pictures of a folder and of all below it, in an order that is the same everywhere."""
    for base, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(base, name) for name in sorted(files) if is_picture_file(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
