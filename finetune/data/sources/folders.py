"""Folders and lists of files: one subfolder per class, loose files, or a training and a validation folder."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from glob import escape, glob
from pathlib import Path

import torch
from torch import Tensor

from finetune.data.sources.base import Request
from finetune.data.sources.files import FileSource
from finetune.data.sources.image_files import ImageFiles
from finetune.data.sources.labels import Classes, numbers_in, unknown_class
from finetune.data.sources.sound_files import SoundFiles
from finetune.display.left_out import left_out
from finetune.errors import ArgumentError, DataError, nearest
from finetune.naming.paths import exists, local_path, shortened
from finetune.naming.unicode import normalized

logger = logging.getLogger("finetune")

# Folders in which Linux shows its state, as endless files and folders. Those in shared memory are ordinary ones.
_VIRTUAL = re.compile(r"/(proc|sys|dev)(/(?!shm(/|$))|$)")

# One source per kind of file. The first also takes files with an unknown suffix.
FILE_SOURCES: tuple[type[FileSource], ...] = (ImageFiles, SoundFiles)

TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "dev", "eval", "evaluation", "test", "testing")

# Words around these names, as in `training_set`, `seg_train` and `PublicTest`.
_WITH_PARTS = (
    "set", "data", "dataset", "split", "folder", "raw", "seg", "public", "private", "images", "image", "imgs", "img",
    "pictures", "photos", "pics", "files", "samples", "sample",
)  # fmt: skip

# Files and folders that file systems, file browsers and archives leave behind, beside hidden ones.
_OF_SYSTEMS = (
    "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found", "__macosx",
    "__pycache__", "thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r",
)  # fmt: skip


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
    *,
    takes: str | None = None,
    name: Callable[[int], str] | None = None,
) -> FileSource:
    """Open a list of files of one kind. A folder stands for the files in it, at any depth, which share its target.

    Args:
        paths: Path of each file or folder.
        targets: [N, ...], one per path, or None.
        classes: Class names by index, or None.
        folder: Folder or table that lists the paths, or None.
        takes: Kind of raw item in the folders. None for the kind of the files, or images if there are none.
        name: Function that names path i in an error message.

    Raises:
        DataError: If the files are of several kinds, or a folder has no files of the kind.
    """
    trees = {path: _Tree() for path in paths if path.is_dir()}
    if not trees:
        return _one_kind(paths)(paths, targets, classes, folder)
    first = next((path for path in paths if path not in trees), None)
    kind = next((source for source in FILE_SOURCES if source.kind == takes), file_source(first or ""))
    for path, tree in trees.items():
        tree.add(_walk(path, kind))
    name = name or (lambda i: f"'{paths[i]}'")
    _check_listed([(name(i), trees[path]) for i, path in enumerate(paths) if path in trees], kind)
    _warn_of_folders(list(trees.values()))
    _say_links(list(trees.items()))
    _warn_of_files(None, list(trees.values()), kind)
    listed = [trees[path].files if path in trees else [path] for path in paths]
    rows = torch.arange(len(paths)).repeat_interleave(torch.tensor(list(map(len, listed))))
    files = [file for part in listed for file in part]
    source = _one_kind(files)(files, None if targets is None else targets[rows], classes, folder)
    source.rows = rows
    folders = [part for path, part in zip(paths, listed, strict=True) if path in trees]
    held = sum(map(len, folders))
    source.notes = (f"{len(folders)} of {len(paths)} paths name folders: {held} {kind.noun}{'s' * (held > 1)}.",)
    return source


def _one_kind(paths: Sequence[Path]) -> type[FileSource]:
    """Return the source that reads all files.

    Raises:
        DataError: If they are of several kinds.
    """
    examples = {file_source(path): path for path in reversed(paths)}  # the first of each kind
    if len(examples) > 1:
        shown = " and ".join(f"'{path}' is read as an {source.noun}" for source, path in examples.items())
        raise DataError(f"The files are of several kinds: {shown}. Expected one kind.")
    return next(iter(examples), FILE_SOURCES[0])


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
    if not os.path.isdir(folder):
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
        tree = _walk(folder, source)
        _warn_of_folders([tree])
        _warn_of_files(folder, [tree], source)
        _say_links([(folder, tree)])
        return source(tree.files, folder=folder)
    split = find_split(folder)
    if split is not None:
        raise DataError(
            f"'{folder}' contains a training and a validation folder instead of one folder per class. "
            f"Pass '{split[0]}' as the training data and '{split[1]}' as the validation data."
        )
    trees: dict[str, _Tree] = {}
    for path in _folders_in(folder):
        trees.setdefault(normalized(path.name), _Tree()).add(_walk(path, source))
    _warn_of_folders(list(trees.values()))
    _say_links([(folder, tree) for tree in trees.values()])
    _check_class_folders(folder, trees, request.classes, source)
    paths = [path for name in sorted(trees) for path in trees[name].files]
    labels = [name for name in sorted(trees) for _ in trees[name].files]
    meaning = request.meaning
    targets, names = meaning.encode(labels if meaning.names else numbers_in(labels), lambda i: f"'{paths[i]}'")
    return source(paths, targets, names, folder)


def matching_files(pattern: Path) -> list[Path]:
    """Return the image and audio files that match a pattern, sorted, in which `**` stands for folders of any depth.

    Raises:
        DataError: If there are none.
    """
    found = sorted({path for path in _matches(pattern) if is_sample_file(path)})
    if not found:
        raise DataError(f"No image or audio file matches '{pattern}'. Correct the pattern.")
    return found


def data_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of data that the user wrote, with `~` replaced by the home folder.

    Raises:
        DataError: If no file can have this name.
    """
    try:
        return local_path(path)
    except ArgumentError as error:
        raise DataError(str(error)) from error


def missing_path(path: Path) -> DataError:
    """Return the error for a missing `path`, with its existing part and the nearest names of its kind there."""
    there = path.absolute()
    while not exists(there.parent):
        there = there.parent
    kind = next((source for source in FILE_SOURCES if source.matches(path)), None)
    siblings = [
        entry.name
        for entry in _entries(there.parent)
        if (entry.is_dir() if there != path.absolute() else kind is None or kind.matches(entry))
    ]
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


@dataclass
class _Tree:
    """The files of one kind in a folder and all folders below it, in the same order on every machine.

    Attributes:
        files: Files of the kind.
        others: Files of other kinds.
        repeated: Links to folders that are read elsewhere in the tree, or that hold the tree.
        errors: Errors of folders that cannot be read.
        folders: Real path of each folder that was read.
    """

    files: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    repeated: list[Path] = field(default_factory=list)
    errors: list[OSError] = field(default_factory=list)
    folders: dict[str, Path] = field(default_factory=dict)

    def add(self, other: _Tree) -> None:
        self.files += other.files
        self.others += other.others
        self.repeated += other.repeated
        self.errors += other.errors
        self.folders |= other.folders


def _walk(folder: Path, source: type[FileSource]) -> _Tree:
    """Read a folder and all folders below it. Links are followed, but no folder is read twice."""
    tree, above = _Tree(), _real_parents(folder)
    for base, folders, names in os.walk(folder, onerror=tree.errors.append, followlinks=True):
        real = os.path.realpath(base)
        if _VIRTUAL.match(real):
            raise DataError(f"'{base}' leads to '{real}', which holds no data but the system's state. Remove the link.")
        if real in above or real in tree.folders:
            tree.repeated.append(Path(base))
            folders.clear()
            continue
        tree.folders[real] = Path(base)
        folders[:] = sorted(name for name in folders if not _is_left_by_a_system(name))
        for name in sorted(names):
            if not _is_left_by_a_system(name):
                (tree.files if source.matches(name) else tree.others).append(Path(base, name))
    return tree


def _matches(pattern: Path) -> list[Path]:
    """Return what matches a pattern. Python's own `**` reads a folder again through each link to it, without end."""
    parts = pattern.parts
    if "**" not in parts:
        return list(map(Path, glob(str(pattern))))
    cut = parts.index("**")
    trees = [_walk(path, FILE_SOURCES[0]) for path in sorted(_matches(Path(*parts[:cut]))) if path.is_dir()]
    _warn_of_folders(trees)
    folders: dict[str, Path] = {}
    for tree in trees:
        folders = tree.folders | folders
    below = parts[cut + 1 :] or ("*",)
    return [path for folder in folders.values() for path in _matches(Path(escape(str(folder)), *below))]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"The folder '{shortened(folder)}' cannot be read: {error.strerror}.") from error


def _folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, without links to folders that hold it."""
    above = {os.path.realpath(folder), *_real_parents(folder)}
    folders = [path for path in _entries(folder) if path.is_dir() and not _is_left_by_a_system(path.name)]
    loops = [path for path in folders if os.path.realpath(path) in above]
    if loops:
        left_out("a link to a folder that holds it", f"Left out the link '{loops[0]}' to a folder that holds it.")
    return [path for path in folders if path not in loops]


def _real_parents(folder: Path) -> set[str]:
    return {str(path) for path in Path(os.path.realpath(folder)).parents}


def _is_left_by_a_system(name: str) -> bool:
    """Return whether a file or folder is hidden, or was made by a file system, a file browser or a notebook."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


# ---------------------------------------------------------------------- checks


def _check_class_folders(
    folder: Path, trees: dict[str, _Tree], classes: Classes | None, source: type[FileSource]
) -> None:
    noun = source.noun
    loose = [path for path in _entries(folder) if path.is_file() and source.matches(path)]
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
        left_out(which, f"Left out {which} in '{folder}', without a class, such as '{loose[0].name}'.")
    if known is None:
        _check_parts(folder, source)
    _check_overlap(trees)
    _warn_of_files(folder, list(trees.values()), source)


def _check_listed(trees: Sequence[tuple[str, _Tree]], source: type[FileSource]) -> None:
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
    if below and not any(path.is_file() and source.matches(path) for path in _entries(inner)):
        raise DataError(
            f"'{folder}' has a single folder, '{only.name}', and the folders {_listed([path.name for path in below])} "
            f"are in '{inner}'. Expected one folder per class. Pass '{inner}'."
        )


def _check_parts(folder: Path, source: type[FileSource]) -> None:
    """Raise DataError if all folders in a folder hold the same folders, which are rather the classes."""
    outer = _folders_in(folder)
    inner = [[path.name for path in _folders_in(path)] for path in outer]
    loose = any(entry.is_file() and source.matches(entry) for path in outer for entry in path.iterdir())
    if len(outer) > 1 and not loose and len(inner[0]) > 1 and all(names == inner[0] for names in inner):
        train = next((path for path in outer if part_of(path.name) in TRAIN_NAMES), outer[0])
        raise DataError(
            f"All folders in '{folder}', {_listed([path.name for path in outer])}, hold the same folders "
            f"{_listed(inner[0])}, so these are rather the classes. Pass one of them as the training data, such as "
            f"'{train}', and another one as the validation data. If the outer folders are the classes, pass the pair "
            f"(paths, labels)."
        )


def _check_overlap(trees: dict[str, _Tree]) -> None:
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


def _warn_of_folders(trees: list[_Tree]) -> None:
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


def _say_links(trees: Sequence[tuple[Path, _Tree]]) -> None:
    """Log the links in folders to folders and files outside, which are followed. A tree may be a part of a folder."""
    outside = []
    for folder, tree in trees:
        root = os.path.join(os.path.realpath(folder), "")
        links = {path: real for real, path in tree.folders.items() if path.is_symlink()}
        links |= {path: os.path.realpath(path) for path in tree.files if os.path.islink(path)}
        outside += [(folder, path, real) for path, real in links.items() if not f"{real}/".startswith(root)]
    if outside:
        folder, path, real = outside[0]
        noun = "link to a file or folder" if len(outside) == 1 else "links to files or folders"
        logger.warning("Following %d %s outside '%s', such as '%s' to '%s'.", len(outside), noun, folder, path, real)


def _warn_of_files(folder: Path | None, trees: list[_Tree], source: type[FileSource]) -> None:
    """Log the files of a folder, or of listed ones, that are left out, in one line."""
    others = [path for tree in trees for path in tree.others]
    if others:
        total = len(others) + sum(len(tree.files) for tree in trees)
        fullest = max(trees, key=lambda tree: len(tree.others))
        noun, counts = source.noun, _by_suffix(others)
        short, where = ("listed folders",) * 2 if folder is None else (f"'{folder.name}'", f"'{folder}'")
        example = fullest.others[0] if folder is None else fullest.others[0].relative_to(folder)
        read = " or ".join(source.suffixes if len(source.suffixes) == 1 else (".jpg", ".png"))
        left_out(
            f"{len(others)} of {total} files in {short} ({counts})",
            f"Left out {len(others)} of the {total} files in {where}, which are no {noun}s: {counts}, such as "
            f"'{example}'. Convert {noun}s of other formats to {read} to include them.",
        )


def _by_suffix(paths: list[Path]) -> str:
    """Return counts by suffix, such as "20 .heic, 3 .txt", the most frequent first."""
    counts = Counter(path.suffix.lower() or "unnamed" for path in paths).most_common()
    shown = ", ".join(f"{count} {suffix}" for suffix, count in counts[:5])
    return shown + (f", {sum(count for _, count in counts[5:])} others" if len(counts) > 5 else "")


def _listed(names: list[str]) -> str:
    shown = [*names[:4], *(["..."] if len(names) > 4 else [])]
    return " and ".join(shown) if len(shown) == 2 else ", ".join(shown)
