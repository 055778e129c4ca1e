"""Folders and lists of files: one subfolder per class, loose files, or a training and a validation folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from finetune.data.sources.base import Request
from finetune.data.sources.files import FileSource
from finetune.data.sources.image_files import ImageFiles
from finetune.data.sources.labels import Classes, unknown_class
from finetune.data.sources.sound_files import SoundFiles
from finetune.errors import DataError, nearest

logger = logging.getLogger("finetune")

# One source per kind of file. The first also takes files with an unknown suffix.
FILE_SOURCES: tuple[type[FileSource], ...] = (ImageFiles, SoundFiles)

_TRAIN_NAMES = ("train", "training")
_VAL_NAMES = ("val", "valid", "validation", "dev", "test")


def is_sample_file(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` has the suffix of an image or audio file."""
    return any(source.matches(path) for source in FILE_SOURCES)


def file_source(path: str | os.PathLike[str]) -> type[FileSource]:
    """Return the source that reads a file, by its suffix."""
    return next((source for source in FILE_SOURCES if source.matches(path)), FILE_SOURCES[0])


def open_files(
    paths: Sequence[Path],
    targets: Tensor | None = None,
    classes: Classes | None = None,
    folder: Path | None = None,
) -> FileSource:
    """Open a list of files of one kind.

    Raises:
        DataError: If the files are of several kinds.
    """
    examples = {file_source(path): path for path in reversed(paths)}  # the first of each kind
    if len(examples) > 1:
        shown = " and ".join(f"'{path}' is read as a {source.noun}" for source, path in examples.items())
        raise DataError(f"The files are of several kinds: {shown}. Expected one kind.")
    return next(iter(examples), FILE_SOURCES[0])(paths, targets, classes, folder)


def find_split(folder: str | os.PathLike[str]) -> tuple[Path, Path] | None:
    """Return the training and the validation folder inside `folder`, or None if it does not have both.

    The training folder is called train or training, and the validation folder val, valid, validation, dev or
    test, in this order of preference.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    inside = {path.name.lower(): path for path in _folders_in(folder)}
    train = next((inside[name] for name in _TRAIN_NAMES if name in inside), None)
    val = next((inside[name] for name in _VAL_NAMES if name in inside), None)
    return (train, val) if train is not None and val is not None else None


def open_folder(folder: Path, request: Request) -> FileSource:
    """Open a folder with one subfolder per class or, without labels, with files at any depth.

    The files are images unless the preprocessing takes another kind.

    Raises:
        DataError: If there are no class folders, one is empty or unknown to the training data, or the folder
            consists of a training and a validation folder.
    """
    source = next((source for source in FILE_SOURCES if source.kind == request.takes), FILE_SOURCES[0])
    if not request.labeled:
        return source(list(_files_under(folder, source)), folder=folder)
    split = find_split(folder)
    if split is not None:
        raise DataError(
            f"'{folder}' contains a training and a validation folder instead of one folder per class. "
            f"Pass '{split[0]}' as the training data and '{split[1]}' as the validation data."
        )
    found = {path.name: list(_files_under(path, source)) for path in _folders_in(folder)}
    _check_class_folders(folder, found, request.classes, source)
    names = request.classes or tuple(sorted(found))
    index = {name: k for k, name in enumerate(names)}
    paths = [path for name in sorted(found) for path in found[name]]
    targets = [index[name] for name in sorted(found) for _ in found[name]]
    return source(paths, torch.tensor(targets, dtype=torch.int64), names, folder)


def missing_path(path: Path) -> DataError:
    """Return the error for a missing `path`, with its existing part and the nearest names there."""
    there = path.absolute()
    while not there.parent.exists():
        there = there.parent
    siblings = [entry.name for entry in there.parent.iterdir()]
    return DataError(
        f"'{path}' does not exist: there is no '{there.name}' in '{there.parent}'."
        f"{nearest(there.name, siblings)} Expected a folder with one subfolder per class, "
        "or a CSV or Parquet file with a path or text and a label per row."
    )


def _check_class_folders(
    folder: Path, found: dict[str, list[Path]], classes: Classes | None, source: type[FileSource]
) -> None:
    noun = source.noun
    loose = [path for path in sorted(folder.iterdir()) if path.is_file() and source.matches(path)]
    if not any(found.values()):
        holds = f"{len(loose)} loose {noun}s" if loose else f"no {noun}s"
        raise DataError(
            f"'{folder}' contains {holds} and no class folders. Expected '{folder}/<class name>/<{noun}>' "
            f"with the suffix {', '.join(source.suffixes)}. For other layouts, list paths and labels in a CSV file."
        )
    if loose:
        logger.warning("'%s': %d %ss beside the class folders have no class; left out.", folder, len(loose), noun)
    for name in sorted(found):
        if classes is not None and name not in classes and found[name]:
            raise unknown_class(name, f"'{found[name][0]}'", classes)
        if classes is None and not found[name]:
            raise DataError(f"The class folder '{folder / name}' contains no {noun}s. Fill it or remove it.")


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))


def _files_under(folder: Path, source: type[FileSource]) -> Iterator[Path]:
    """Yield the files of one kind in a folder and all folders below it, in the same order on every machine."""
    for base, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        yield from (Path(base, name) for name in sorted(names) if source.matches(name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
