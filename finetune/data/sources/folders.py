"""Folders and lists of files: one subfolder per class, loose files, or a training and a validation folder."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from glob import escape, glob
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from finetune.data.sources.base import Request
from finetune.data.sources.files import FileSource
from finetune.data.sources.image_files import ImageFiles
from finetune.data.sources.labels import Classes, numbers_in, unknown_class
from finetune.data.sources.sound_files import SoundFiles
from finetune.display.left_out import left_out
from finetune.display.progress.waits import announced
from finetune.errors import ArgumentError, DataError, nearest
from finetune.files.listing import Located
from finetune.files.paths import Paths
from finetune.files.remote import Entry, Url, is_url, matching, scanned
from finetune.files.tree import Tree, is_left_by_a_system, real_parents, walk
from finetune.naming.paths import exists, local_path, shortened
from finetune.naming.unicode import normalized

logger = logging.getLogger("finetune")

# One source per kind of file. The first also takes files with an unknown suffix.
FILE_SOURCES: tuple[type[FileSource], ...] = (ImageFiles, SoundFiles)

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "dev", "eval", "evaluation", "test", "testing")

# Words around these names, as in `training_set`, `seg_train` and `PublicTest`.
_WITH_PARTS = (
    "set", "data", "dataset", "split", "folder", "raw", "seg", "public", "private", "images", "image", "imgs", "img",
    "pictures", "photos", "pics", "files", "samples", "sample",
)  # fmt: skip


def is_sample_file(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` has the suffix of an image or audio file."""
    return any(source.matches(path) for source in FILE_SOURCES)


def file_source(path: str | os.PathLike[str]) -> type[FileSource]:
    """Return the source that reads a file, by its suffix."""
    return next((source for source in FILE_SOURCES if source.matches(path)), FILE_SOURCES[0])


def open_files(
    listed: Located,
    targets: Tensor | None = None,
    classes: Classes | None = None,
    folder: Path | None = None,
    *,
    takes: str | None = None,
    name: Callable[[int], str] | None = None,
) -> FileSource:
    """Open a list of files of one kind. A folder stands for the files in it, at any depth, which share its target.

    Args:
        listed: Files and folders.
        targets: [N, ...], one per path, or None.
        classes: Class names by index, or None.
        folder: Folder or table that lists the paths, or None.
        takes: Kind of raw item in the folders. None for the kind of the files, or images if there are none.
        name: Function that names path i in an error message.

    Raises:
        DataError: If the files are of several kinds, or a folder has no files of the kind.
    """
    paths = listed.paths
    if not listed.folders:
        source = _one_kind(paths)(paths, targets, classes, folder)
        source.distinct = listed.distinct
        return source
    trees = {paths[i]: Tree() for i in listed.folders}
    first = next((path for path in paths if path not in trees), None)
    kind = next((source for source in FILE_SOURCES if source.kind == takes), file_source(first or ""))
    for path, tree in trees.items():
        tree.add(walk(data_path(path), kind.matches))
    name = name or (lambda i: f"'{paths[i]}'")
    _check_listed([(name(i), trees[path]) for i, path in enumerate(paths) if path in trees], kind)
    _warn_of_folders(list(trees.values()))
    _say_links([(data_path(path), tree) for path, tree in trees.items()])
    _warn_of_files(None, list(trees.values()), kind)
    parts = [trees[path].files if path in trees else [path] for path in paths]
    rows = torch.arange(len(paths)).repeat_interleave(torch.tensor(list(map(len, parts))))
    files = [file for part in parts for file in part]
    source = _one_kind(files)(files, None if targets is None else targets[rows], classes, folder)
    source.rows = rows
    held = sum(len(parts[i]) for i in listed.folders)
    source.notes = (f"{len(listed.folders)} of {len(paths)} paths name folders: {held} {kind.noun}{'s' * (held > 1)}.",)
    return source


def _one_kind(paths: Sequence[str]) -> type[FileSource]:
    """Return the source that reads all files.

    Raises:
        DataError: If they are of several kinds.
    """
    found = {file_source(f"file{suffix}") for suffix in {path[path.rfind(".") :] for path in paths}}
    kinds = [kind for kind in FILE_SOURCES if kind in found]
    if len(kinds) > 1:
        examples = {kind: next(path for path in paths if file_source(path) is kind) for kind in kinds}
        shown = " and ".join(f"'{path}' is read as an {source.noun}" for source, path in examples.items())
        raise DataError(f"The files are of several kinds: {shown}. Expected one kind.")
    return next(iter(kinds), FILE_SOURCES[0])


def part_of(name: str) -> str | None:
    """Return the one of `TRAIN_NAMES` and `VAL_NAMES` that a name of a part of the data stands for, or None.

    Example:
        >>> part_of("Training_Set"), part_of("seg_test"), part_of("train2017"), part_of("test tube")
        ('training', 'test', 'train', None)
    """
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[^\W\d_]+", name)]
    words = [word if word in _WITH_PARTS else word.removesuffix("set") for word in words]
    left = [word for word in words if word not in _WITH_PARTS]
    return left[0] if len(left) == 1 and left[0] in (*TRAIN_NAMES, *VAL_NAMES) else None


def find_split(folder: str | os.PathLike[str]) -> tuple[Path, Path] | None:
    """Return the training and the validation folder inside `folder`, or None if it does not have both.

    The training folder is called train or training, and the validation folder val, valid, validation, dev, eval,
    evaluation, test or testing, in this order of preference; words such as "set" and "images" beside these count as
    nothing.
    """
    folder = data_path(folder)
    if not folder.is_dir():
        return None
    found = sorted(_folders_in(folder), key=lambda path: path.name.lower() == part_of(path.name))
    inside = {part_of(path.name): path for path in found}  # the plain name counts where there are several
    train = next((inside[name] for name in TRAIN_NAMES if name in inside), None)
    val = next((inside[name] for name in VAL_NAMES if name in inside), None)
    return (train, val) if train is not None and val is not None else None


def open_folder(folder: Path, request: Request) -> FileSource:
    """Open a folder with one subfolder per class or, without labels, with files at any depth.

    The files are images unless the preprocessing takes another kind.

    Raises:
        DataError: If there are no class folders or only one, one is empty or unknown to the training data, two are
            the same folder, or the folder consists of a training and a validation folder.
    """
    source = next((source for source in FILE_SOURCES if source.kind == request.takes), FILE_SOURCES[0])
    if not request.labeled:
        tree = walk(folder, source.matches)
        _warn_of_folders([tree])
        _warn_of_files(folder, [tree], source)
        _say_links([(folder, tree)])
        return _of_tree(source(tree.files, folder=folder), [tree])
    split = find_split(folder)
    if split is not None:
        raise DataError(
            f"'{folder}' contains a training and a validation folder instead of one folder per class. "
            f"Pass '{split[0]}' as the training data and '{split[1]}' as the validation data."
        )
    trees: dict[str, Tree] = {}
    folders = _folders_in(folder)
    for path in announced(folders, f"Listing the {source.noun}s of each class", len(folders)):
        trees.setdefault(normalized(path.name), Tree()).add(walk(path, source.matches))
    _warn_of_folders(list(trees.values()))
    _say_links([(folder, tree) for tree in trees.values()])
    _check_class_folders(folder, trees, request.classes, source)
    filled = {name: tree.files for name, tree in sorted(trees.items()) if tree.files}
    names, meaning = list(filled), request.meaning
    targets, classes = meaning.encode(
        names if meaning.names else numbers_in(names), lambda i: f"'{filled[names[i]][0]}'"
    )
    targets = targets.repeat_interleave(torch.tensor(list(map(len, filled.values()))), 0)
    paths = (path for files in filled.values() for path in files)
    return _of_tree(source(Paths(paths), targets, classes, folder), list(trees.values()))


def _of_tree(source: FileSource, trees: Sequence[Tree]) -> FileSource:
    """Return the source, which knows from the trees that no file is in it twice, unless links lead to the same."""
    source.distinct = not any(tree.links for tree in trees)
    return source


def matching_files(pattern: Path) -> list[str]:
    """Return the image and audio files that match a pattern, sorted, in which `**` stands for folders of any depth.

    Raises:
        DataError: If there are none.
    """
    found = sorted({str(path) for path in _matches(pattern) if is_sample_file(path)})
    if not found:
        raise DataError(f"No image or audio file matches '{pattern}'. Correct the pattern.")
    return found


def data_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of data that the user wrote, with `~` replaced by the home folder, or its `Url`.

    Raises:
        DataError: If no file can have this name.
    """
    if is_url(path):
        return cast("Path", Url(path))
    try:
        return local_path(path)
    except ArgumentError as error:
        raise DataError(str(error)) from error


def missing_path(path: Path) -> DataError:
    """Return the error for a missing `path`, with its existing part and the nearest names of its kind there."""
    if is_url(path):
        return DataError(f"'{shortened(path)}' does not exist, or may not be read. Correct the URL.")
    there = path.absolute()
    while not exists(there.parent):
        there = there.parent
    kind = next((source for source in FILE_SOURCES if source.matches(path)), None)
    siblings = sorted(
        entry.name
        for entry in _entries(there.parent)
        if (entry.is_dir() if there != path.absolute() else kind is None or kind.matches(entry.name))
    )
    expected = (
        f"Correct the path of the {kind.noun}, or leave it out."
        if kind is not None
        else "Expected a folder with one subfolder per class, or a CSV or Parquet file with a path or text and a "
        "label per row."
    )
    return DataError(
        f"'{shortened(path)}' does not exist: there is no '{shortened(there.name)}' in '{there.parent}'."
        f"{nearest(there.name, siblings)} {expected}"
    )


# ---------------------------------------------------------------------- what a folder holds


def _matches(pattern: Path) -> list[Path]:
    """Return what matches a pattern. Python's own `**` reads a folder again through each link to it, without end."""
    if isinstance(pattern, Url):
        return cast("list[Path]", matching(pattern))
    parts = pattern.parts
    if "**" not in parts:
        return list(map(Path, glob(str(pattern))))
    cut = parts.index("**")
    trees = [walk(path, FILE_SOURCES[0].matches) for path in sorted(_matches(Path(*parts[:cut]))) if path.is_dir()]
    _warn_of_folders(trees)
    folders: dict[str, str] = {}
    for tree in trees:
        folders = tree.folders | folders
    below = parts[cut + 1 :] or ("*",)
    return [path for folder in folders.values() for path in _matches(Path(escape(folder), *below))]


def _entries(folder: Path) -> Iterator[Entry]:
    """Yield the entries of a folder, with their kinds from the listing."""
    try:
        with scanned(folder) as entries:
            yield from entries
    except OSError as error:
        raise DataError(f"The folder '{shortened(folder)}' cannot be read: {error.strerror}.") from error


def _folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, without links to folders that hold it."""
    above = {os.path.realpath(folder), *real_parents(folder)}
    folders = sorted(
        folder / entry.name for entry in _entries(folder) if not is_left_by_a_system(entry.name) and entry.is_dir()
    )
    loops = [path for path in folders if os.path.realpath(path) in above]
    if loops:
        left_out("a link to a folder that holds it", f"Left out the link '{loops[0]}' to a folder that holds it.")
    return [path for path in folders if path not in loops]


# ---------------------------------------------------------------------- checks


def _check_class_folders(
    folder: Path, trees: dict[str, Tree], classes: Classes | None, source: type[FileSource]
) -> None:
    noun = source.noun
    loose = sorted(entry.name for entry in _entries(folder) if source.matches(entry.name) and entry.is_file())
    if not any(tree.files for tree in trees.values()):
        holds = f"{len(loose)} loose {noun}s" if loose else f"no {noun}s"
        others = _by_suffix([path for tree in trees.values() for path in tree.others])
        raise DataError(
            f"'{folder}' contains {holds} and no class folders{f' with {noun}s, but {others} files' if others else ''}"
            f". Expected '{folder}/<class name>/<{noun}>' with the suffix {', '.join(source.suffixes)}. For other "
            "layouts, list paths and labels in a CSV file."
        )
    known = None if classes is None else {normalized(name) for name in classes}
    if len(trees) == 1 and not (known and trees.keys() <= known):
        _check_level(folder, source)
    for name, tree in sorted(trees.items()):
        if known is not None and name not in known and tree.files:
            raise unknown_class(name, f"'{tree.files[0]}'", classes or ())
        if known is None and not tree.files:
            others = f" but {_by_suffix(tree.others)} files" if tree.others else ""
            raise DataError(f"The class folder '{folder / name}' contains no {noun}s{others}. Fill it or remove it.")
    if loose:
        which = f"{len(loose)} {noun}{'s' * (len(loose) > 1)} beside the class folders"
        left_out(which, f"Left out {which} in '{folder}', without a class, such as '{loose[0]}'.")
    if known is None:
        _check_parts(folder, source)
    _check_overlap(trees)
    _warn_of_files(folder, list(trees.values()), source)


def _check_listed(trees: Sequence[tuple[str, Tree]], source: type[FileSource]) -> None:
    """Raise DataError if a listed folder has no files of the kind.

    Args:
        trees: Name for a message and tree of each folder.
        source: Source of the kind.
    """
    empty = [(name, tree) for name, tree in trees if not tree.files]
    if empty:
        name, tree = empty[0]
        others = f", but {_by_suffix(tree.others)} files" if tree.others else ""
        others = f" and cannot be read ({tree.errors[0].strerror})" if tree.errors else others
        raise DataError(
            f"{len(empty)} of {len(trees)} listed folders hold no {source.noun}s. The first, {name}, holds none"
            f"{others}. Expected the suffix {', '.join(source.suffixes)}, at any depth. Fill it, or leave it out."
        )


def _check_level(folder: Path, source: type[FileSource]) -> None:
    """Raise DataError if the only folder in a folder holds the class folders."""
    only, *_ = _folders_in(folder)
    inner, below = only, _folders_in(only)
    while len(below) == 1:
        inner, below = below[0], _folders_in(below[0])
    if below and not any(source.matches(entry.name) and entry.is_file() for entry in _entries(inner)):
        raise DataError(
            f"'{folder}' has a single folder, '{only.name}', and the folders {_listed([path.name for path in below])} "
            f"are in '{inner}'. Expected one folder per class. Pass '{inner}'."
        )


def _check_parts(folder: Path, source: type[FileSource]) -> None:
    """Raise DataError if all folders in a folder hold the same folders, which are rather the classes."""
    outer = _folders_in(folder)
    if any(source.matches(entry.name) and entry.is_file() for path in outer for entry in _entries(path)):
        return
    inner = [[path.name for path in _folders_in(path)] for path in outer]
    if len(outer) > 1 and len(inner[0]) > 1 and all(names == inner[0] for names in inner):
        train = next((path for path in outer if part_of(path.name) in TRAIN_NAMES), outer[0])
        raise DataError(
            f"All folders in '{folder}', {_listed([path.name for path in outer])}, hold the same folders "
            f"{_listed(inner[0])}, so these are rather the classes. Pass one of them as the training data, such as "
            f"'{train}', and another one as the validation data. If the outer folders are the classes, pass the pair "
            f"(paths, labels)."
        )


def _check_overlap(trees: dict[str, Tree]) -> None:
    """Raise DataError if a folder belongs to two classes."""
    owner: dict[str, str] = {}
    for name, tree in trees.items():
        for real, path in tree.folders.items():
            other = owner.setdefault(real, name)
            if other != name:
                raise DataError(
                    f"'{path}' and '{trees[other].folders[real]}' are the same folder, but of two classes, {name!r} "
                    f"and {other!r}. Remove the link that is wrong."
                )


def _warn_of_folders(trees: list[Tree]) -> None:
    """Log the folders that are left out: links to others, and those that cannot be read."""
    repeated = [path for tree in trees for path in tree.repeated]
    if repeated:
        left_out(
            f"{len(repeated)} link{'s' * (len(repeated) > 1)} to folders",
            f"Left out {len(repeated)} links to folders that are read already or hold the data, such as "
            f"'{repeated[0]}'.",
        )
    errors = [error for tree in trees for error in tree.errors]
    if errors:
        which = f"{len(errors)} folder{'s' * (len(errors) > 1)} that cannot be read"
        left_out(
            which,
            f"Left out {which}, such as '{shortened(errors[0].filename)}' ({errors[0].strerror}).",
        )


def _say_links(trees: Sequence[tuple[Path, Tree]]) -> None:
    """Log the links in folders to folders and files outside, which are followed. A tree may be a part of a folder."""
    outside = []
    for folder, tree in trees:
        root = os.path.join(os.path.realpath(folder), "")
        links = {path: real for real, path in tree.folders.items() if os.path.islink(path)}
        links |= {path: os.path.realpath(path) for path in tree.links}
        outside += [(folder, path, real) for path, real in links.items() if not f"{real}/".startswith(root)]
    if outside:
        folder, path, real = outside[0]
        noun = "link to a file or folder" if len(outside) == 1 else "links to files or folders"
        logger.warning("Following %d %s outside '%s', such as '%s' to '%s'.", len(outside), noun, folder, path, real)


def _warn_of_files(folder: Path | None, trees: list[Tree], source: type[FileSource]) -> None:
    """Log the files of a folder, or of listed ones, that are left out, in one line."""
    others = [path for tree in trees for path in tree.others]
    if others:
        total = len(others) + sum(len(tree.files) for tree in trees)
        fullest = max(trees, key=lambda tree: len(tree.others))
        noun, counts = source.noun, _by_suffix(others)
        short, where = ("listed folders",) * 2 if folder is None else (f"'{folder.name}'", f"'{folder}'")
        example = fullest.others[0] if folder is None else os.path.relpath(fullest.others[0], folder)
        read = " or ".join(source.suffixes if len(source.suffixes) == 1 else (".jpg", ".png"))
        left_out(
            f"{len(others)} of {total} files in {short} ({counts})",
            f"Left out {len(others)} of the {total} files in {where}, which are no {noun}s: {counts}, such as "
            f"'{example}'. Convert {noun}s of other formats to {read} to include them.",
        )


def _by_suffix(paths: list[str]) -> str:
    """Return counts by suffix, such as "20 .heic, 3 .txt", the most frequent first."""
    counts = Counter(os.path.splitext(path)[1].lower() or "unnamed" for path in paths).most_common()
    shown = ", ".join(f"{count} {suffix}" for suffix, count in counts[:5])
    return shown + (f", {sum(count for _, count in counts[5:])} others" if len(counts) > 5 else "")


def _listed(names: list[str]) -> str:
    shown = [*names[:4], *(["..."] if len(names) > 4 else [])]
    return " and ".join(shown) if len(shown) == 2 else ", ".join(shown)
