"""Rows of a table that name files without a suffix, or folders of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from finetune.data.prepare import prepare
from finetune.data.sources.open_source import open_source
from finetune.data.tables.table import Table
from finetune.errors import DataError
from tests.helpers.image_files import picture


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


HELD = {"a": 3, "b": 1, "c.dir/deep": 2, "d": 2, "e": 1, "f": 4}  # images in each folder, one of them below another

KINDS: dict[str, tuple[dict[str, list[Any]], dict[str, Any]]] = {
    "classes": ({"label": ["cat", "dog", "cat", "dog", "cat", "dog"]}, {}),
    "lists": ({"label": ["cat|dog", "dog", "", "bird", "cat|bird", "dog"]}, {"label_separator": "|"}),
    "flags": ({"cat": [0, 1, 0, 1, 0, 1], "dog": [1, 1, 0, 0, 1, 0]}, {"columns": ("path", ("cat", "dog"))}),
    "numbers": ({"target_x": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5], "target_y": [1.5, 0.5, 0.5, 1.5, 2.5, 0.5]}, {}),
    "number": ({"label": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]}, {}),
}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Return a folder of folders of images, with a note in the first and a hidden image in the second."""
    for k, (name, count) in enumerate(HELD.items()):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(count):
            picture(10 * k + i).save(tmp_path / "images" / name / f"{i}.png")
    write(tmp_path / "images" / "a" / "notes.txt", "blurred")
    picture(99).save(tmp_path / "images" / "b" / ".hidden.png")
    picture(98).save(tmp_path / "images" / "loose.png")
    return tmp_path / "images"


def listed(labels: dict[str, list[Any]], each: bool) -> pd.DataFrame:
    """Return a table of one row per folder, a file last; or of one row per image."""
    paths = [*[name.split("/")[0] for name in HELD][:-1], "loose.png"]
    frame = pd.DataFrame({"path": paths, **labels})
    if not each:
        return frame
    files = {name.split("/")[0]: [f"{name}/{i}.png" for i in range(count)] for name, count in HELD.items()}
    frame["path"] = [files.get(path, [path]) for path in paths]
    return frame.explode("path", ignore_index=True)


@pytest.mark.parametrize("form", ["frame", "csv", "Table of a csv"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_may_name_a_folder(folders: Path, kind: str, form: str, caplog: pytest.LogCaptureFixture) -> None:
    labels, settings = KINDS[kind]
    place = folders if form == "csv" else folders.parent

    def opened(each: bool) -> Any:
        frame = listed(labels, each)
        if form != "frame":
            frame.to_csv(place / "t.csv", index=False)
        return open_source(Table(frame if form == "frame" else place / "t.csv", folder=folders, **settings))

    named, plain = opened(False), opened(True)
    assert [*named.paths] == [*plain.paths] == [plain.name(index) for index in range(len(plain))]
    assert named.targets.equal(plain.targets)
    assert named.classes == plain.classes
    assert "Left out 1 of the 10 files in listed folders" in caplog.text
    assert named.notes == ("5 of 6 paths name folders: 9 images.",)
    assert not plain.notes


@pytest.mark.parametrize("kind", KINDS)
def test_no_split_divides_a_folder(folders: Path, kind: str) -> None:
    labels, settings = KINDS[kind]
    for seed in range(5):
        data = prepare(Table(listed(labels, False), folder=folders, **settings), 0.4, seed=seed)
        sides: list[Any] = [data.train, data.val]
        train, val = ({Path(path).relative_to(folders).parts[0] for path in side.paths} for side in sides)
        assert not train & val
        assert train | val == {"a", "b", "c.dir", "d", "e", "loose.png"}
    note = "5 of 6 paths name folders: 9 images."
    assert data.notes[0] == note
    whole = prepare(*[Table(listed(labels, False), folder=folders, **settings)] * 2)
    assert whole.notes[:2] == (note, f"Validation data: {note}")


def test_a_file_in_two_rows_joins_their_folders(folders: Path) -> None:
    frame = pd.DataFrame({"path": ["a", "a/0.png", "b", "d", "d", "e"], "label": ["x", "y", "x", "y", "y", "y"]})
    groups = open_source(Table(frame, folder=folders)).groups()
    assert groups is not None
    assert groups.tolist() == [0, 0, 0, 0, 4, 5, 5, 5, 5, 9]


def test_folders_marked_for_validation(folders: Path) -> None:
    frame = pd.DataFrame({"path": ["a", "b", "d"], "label": ["x", "y", "y"], "split": ["train", "train", "val"]})
    data = prepare(Table(frame, folder=folders))
    assert (len(data.train), len(data.val or [])) == (4, 2)


def test_columns_of_folders_are_found(folders: Path) -> None:
    for names in (("patient", "diagnosis"), ("image", "label"), ("what", "where it is")):
        rows = [[*row] for row in zip(["a", "b", "d"], ["b", "x", "b"], strict=True)]  # 'b' is a class and a folder
        source = open_source(write(folders / "t.csv", "\n".join(map(",".join, [[*names], *rows]))))
        assert (len(source), source.classes) == (6, ("b", "x"))
    for k in (1, 2):
        (folders / "a").rename(folders / str(k)) if k == 1 else (folders / "b").rename(folders / str(k))
    numbers = write(folders / "t.csv", "patient,label\n1,x\n2,y\n")
    assert len(open_source(Table(numbers, columns=("patient", "label")))) == 4


def test_texts_that_are_names_of_folders_stay_texts(folders: Path) -> None:
    table = write(folders / "t.csv", "text,label\na,x\nb,y\n")
    assert open_source(table, takes="text").kind == open_source(table).kind == "text"


def test_a_file_of_any_suffix_precedes_a_folder_of_its_name(folders: Path) -> None:
    picture(1).save(folders / "a.png")
    table = write(folders / "t.csv", "path,label\na,x\nb,y\n")
    source: Any = open_source(table)
    assert [*source.paths] == [f"{folders}/a.png", f"{folders}/b/0.png"]


def test_lists_of_paths_may_name_folders(folders: Path) -> None:
    paths = [str(folders / name) for name in ("a", "b", "loose.png")]
    source: Any = open_source((paths, ["x", "y", "x"]))
    assert source.targets.tolist() == [0, 0, 0, 1, 0]
    assert source.groups().tolist() == [0, 0, 0, 1, 2]
    unlabeled: Any = open_source(paths, labeled=False)
    assert [*unlabeled.paths] == [*source.paths]


def test_empty_and_missing_folders_are_named(folders: Path) -> None:
    (folders / "none").mkdir()
    write(folders / "none" / "0.heic", "")
    table = write(folders / "t.csv", "path,label\na,x\nnone,y\nb,y\n")
    message = r"1 of 3 listed folders hold no images\. .*'.*none' \(row 2 of '.*'\), holds none, but 1 \.heic files"
    with pytest.raises(DataError, match=message):
        open_source(table)
    with pytest.raises(DataError, match=r"1 of 3 files or folders that do not exist: '.*gone' \(row 2\)"):
        open_source(write(table, "path,label\na,x\ngone,y\nb,y\n"))
    with pytest.raises(DataError, match=r"1 of 2 listed folders hold no images\. The first, '.*none', holds none"):
        open_source([str(folders / "none"), str(folders / "a")], labeled=False)


def test_too_few_folders_for_a_split(folders: Path) -> None:
    with pytest.raises(DataError, match="4 samples in 2 files or folders that stay whole are too few"):
        prepare(write(folders / "t.csv", "path,label\na,x\nb,y\n"))
