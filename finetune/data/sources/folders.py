"""Folders of pictures or sound: one folder per class, loose pictures, or a training and a validation part."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from finetune.data.preprocessing.base import SOUND
from finetune.data.sources.files import Files, PictureFiles, WaveFiles
from finetune.data.sources.labels import Classes, unknown_class
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


def open_folder(folder: Path, classes: Classes | None, labelled: bool, takes: str | None) -> Files:
    """Open a folder with one folder per class, or, unlabelled, any folder of pictures.

    They are sound files for a preprocessing that `takes` waveforms.

    Raises:
        DataError: no class folders, an empty one, one the training data doesn't have, or a folder
            that is a training and a validation part.
    """
    files = WaveFiles if takes == SOUND else PictureFiles
    if not labelled:
        return files(list(_files_under(folder, files)), folder=folder)
    split = find_split(folder)
    if split is not None:
        raise DataError(
            f"'{folder}' is divided into parts; they are not classes. "
            f"Give '{split[0]}' as the training data and '{split[1]}' as the validation data."
        )
    found = {path.name: list(_files_under(path, files)) for path in _folders_in(folder)}
    _check_class_folders(folder, found, classes, files)
    names = tuple(sorted(found)) if classes is None else classes
    index = {name: k for k, name in enumerate(names)}
    paths = [path for name in sorted(found) for path in found[name]]
    targets = [index[name] for name in sorted(found) for _ in found[name]]
    return files(paths, torch.tensor(targets, dtype=torch.int64), names, folder)


def missing_path(path: Path) -> DataError:
    """Say that `path` isn't there, what of it is, and which names there are like the missing one."""
    there = path.absolute()
    while not there.parent.exists():
        there = there.parent
    siblings = [entry.name for entry in there.parent.iterdir()]
    return DataError(
        f"'{path}' does not exist: there is no '{there.name}' in '{there.parent}'."
        f"{nearest(there.name, siblings)} Expected a folder with one folder per class, "
        "or a CSV or Parquet file of path, or text, and label."
    )


def _check_class_folders(
    folder: Path, found: dict[str, list[Path]], classes: Classes | None, files: type[Files]
) -> None:
    noun = files.noun
    loose = [path for path in sorted(folder.iterdir()) if path.is_file() and files.is_file(path)]
    if not any(found.values()):
        holds = f"{len(loose)} loose {noun}s" if loose else f"no {noun}s"
        raise DataError(
            f"'{folder}' holds {holds} and no folder per class. Expected '{folder}/<class name>/<{noun}>', "
            f"a {noun} being one of {', '.join(files.suffixes)}. For other layouts list path and label in a CSV "
            "file."
        )
    if loose:
        logger.warning("'%s': %d %ss beside the class folders have no class; left out.", folder, len(loose), noun)
    for name in sorted(found):
        if classes is not None and name not in classes and found[name]:
            raise unknown_class(name, f"'{found[name][0]}'", classes)
        if classes is None and not found[name]:
            raise DataError(f"The class folder '{folder / name}' holds no {noun}s. Fill it or remove it.")


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _files_under(folder: Path, files: type[Files]) -> Iterator[Path]:
    """Yield the files of one kind in a folder and in all below it, in an order that is the same everywhere."""
    for base, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(base, name) for name in sorted(names) if files.is_file(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
