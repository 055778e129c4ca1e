from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from finetune import FineTuner
from finetune.data.audit import audit
from finetune.data.prepare import prepare
from finetune.data.sources.labels import Meaning
from finetune.data.sources.open_source import open_source
from finetune.data.tables.table import Table
from finetune.errors import DataError
from tests.helpers.image_files import picture


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ("path,label", ","),
        ("Class;FileName", ";"),
        ("id\timg_path\ttarget", "\t"),
        ("where,what", ","),
        (None, ","),
    ],
)
def test_columns_are_found(tmp_path: Path, pictures: list[str], header: str | None, delimiter: str) -> None:
    label_first = header is not None and header.startswith("Class")
    rows = [[p, name] for p, name in zip(pictures, ["b", "a", "b", "c"], strict=True)]
    rows = [row[::-1] if label_first else row for row in rows]
    if header is not None and header.startswith("id"):
        rows = [["7", *row] for row in rows]
    lines = ([header] if header else []) + [delimiter.join(row) for row in rows]
    source = open_source(write(tmp_path / "t.csv", "\ufeff" + "\n".join(lines) + "\n\n"))
    assert source.classes == ("a", "b", "c")
    assert source.targets is not None
    assert source.targets.tolist() == [1, 0, 1, 2]
    assert source.name(3) == str(tmp_path / "3.png")
    assert open_source(tmp_path / "t.csv", labeled=False).targets is None


@pytest.mark.parametrize(
    ("labels", "targets", "classes"),
    [
        ("0 1 2 1", [0, 1, 2, 1], ("0", "1", "2")),
        ("10 9 9 200", [1, 0, 0, 2], ("9", "10", "200")),
        ("007 008 007 9", [0, 1, 0, 2], ("007", "008", "9")),
        ("0.5 1 2.25 1e3", [0.5, 1, 2.25, 1000], None),
        ("a b 1 2", [2, 3, 0, 1], ("1", "2", "a", "b")),
    ],
)
def test_labels_of_every_kind(
    tmp_path: Path, pictures: list[str], labels: str, targets: list[float], classes: tuple[str, ...] | None
) -> None:
    rows = "".join(f"{p},{label}\n" for p, label in zip(pictures, labels.split(), strict=True))
    source = open_source(write(tmp_path / "t.csv", "path,label\n" + rows))
    assert source.targets is not None
    assert source.targets.tolist() == targets
    assert source.targets.dtype == (torch.float32 if classes is None else torch.int64)
    assert source.classes == classes


def test_parquet_equals_csv(tmp_path: Path, pictures: list[str]) -> None:
    table = pd.DataFrame({"path": pictures, "label": ["x", "y", "x", "z"]})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    a, b = open_source(tmp_path / "t.csv"), open_source(tmp_path / "t.parquet")
    assert a.classes == b.classes
    assert a.targets is not None
    assert b.targets is not None
    assert torch.equal(a.targets, b.targets)
    assert [a.name(i) for i in range(4)] == [b.name(i) for i in range(4)]
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_source(write(tmp_path / "bad.parquet", "no"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install 'torch-finetune\[parquet\]'"):
        open_source(write(tmp_path / "t.parquet", ""))


def test_several_regression_columns(tmp_path: Path, pictures: list[str]) -> None:
    rows = "".join(f"{p},{i},{i * 0.5}\n" for i, p in enumerate(pictures))
    source = open_source(write(tmp_path / "t.csv", "path,target_x,target_y\n" + rows))
    assert source.targets is not None
    assert source.targets.tolist() == [[i, i * 0.5] for i in range(4)]
    assert source.classes == ("target_x", "target_y")
    with pytest.raises(DataError, match=r"target_x, target_y .* are not all numbers"):
        open_source(write(tmp_path / "u.csv", "path,target_x,target_y\n0.png,1,a\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label\n", r"t\.csv' is empty"),
        ("path,label\n0.png\n", "row 1 has 1 cells. Expected 2"),
        ("path,label\n0.png,a\n1.png,\n", r"1\.png' \(row 2 of .* has no label"),
        ("path,label\n0.png,1\n1.png,nan\n", "has no label"),
        ("path,label\n0.png,a\n9.png,a\n", r"1 of 2 images that do not exist: .*9\.png' \(row 2\)"),
        ("a,b,c\n1,2,3\n", "Its columns are a, b, c"),
        ("path,b,c\n0.png,2,3\n", "Cannot tell which column .* is the label. Besides 'path' it has b, c"),
        ("path,target_a,c\n0.png,2,3\n", "Cannot tell which column"),
    ],
)
def test_bad_tables_say_where(tmp_path: Path, pictures: list[str], text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(write(tmp_path / "t.csv", text))


def test_quoted_cells_may_contain_delimiters(tmp_path: Path, pictures: list[str]) -> None:
    source = open_source(write(tmp_path / "t.csv", 'path,label\n0.png,"a, or\nb"\n1.png,c\n'))
    assert source.classes == ("a, or\nb", "c")


def test_tables_that_are_not_utf_8(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff\xfe,\n")
    with pytest.raises(DataError, match="not UTF-8"):
        open_source(tmp_path / "t.csv")
    with pytest.raises(DataError, match="neither a table"):
        open_source(write(tmp_path / "t.pdf", ""))


def test_trap_35_training_classes_rule_in_tables(tmp_path: Path, pictures: list[str]) -> None:
    train = open_source(write(tmp_path / "a.csv", "path,label\n0.png,5\n1.png,7\n2.png,9\n"))
    val = open_source(write(tmp_path / "b.csv", "path,label\n0.png,7\n1.png,9\n"), classes=train.classes)
    assert val.targets is not None
    assert val.targets.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"1\.png' \(row 2 of .*b\.csv'\) has the class '8'.* 5, 7, 9"):
        open_source(write(tmp_path / "b.csv", "path,label\n0.png,7\n1.png,8\n"), classes=train.classes)
    many = [f"c{i}" for i in range(30)]
    with pytest.raises(DataError, match=r"c19, \.\.\. \(30 in all\)"):
        open_source(tmp_path / "b.csv", classes=many)


def said(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("form", ["table", "frame", "pair"])
def test_class_names_are_read_without_what_nobody_sees(
    tmp_path: Path, pictures: list[str], form: str, caplog: pytest.LogCaptureFixture
) -> None:
    labels, paths = ["cat", "cat\u200b", "dog\xa0", "dog"], [str(tmp_path / p) for p in pictures]
    rows = zip(paths, labels, strict=True)
    data = {
        "frame": pd.DataFrame({"path": paths, "label": labels}),
        "pair": (paths, labels),
        "table": write(tmp_path / "t.csv", "path,label\n" + "".join(f"{p},{n}\n" for p, n in rows)),
    }[form]
    source = open_source(data)
    assert source.classes == ("cat", "dog")
    assert source.targets is not None
    assert source.targets.tolist() == [0, 0, 1, 1]
    assert "class names are read without" in caplog.text
    assert r"such as 'cat\u200b' as 'cat'" in caplog.text
    with pytest.raises(DataError, match="has no label"):
        open_source((paths, ["cat", " \u200b", "dog", "dog"]))


# ---------------------------------------------------------------------- marks of validation rows


@pytest.mark.parametrize(
    ("column", "cells", "train", "val"),
    [
        ("is_valid", "False False True True", [0, 1], [2, 3]),
        ("is_valid", "0 1 0 1", [0, 2], [1, 3]),
        ("Is_Valid", "true false true false", [1, 3], [0, 2]),
        ("split", "train train val val", [0, 1], [2, 3]),
        ("split", "train val test train", [0, 3], [1]),
        ("Set", "training valid train validation", [0, 2], [1, 3]),
        ("subset", "train train test test", [0, 1], [2, 3]),
        ("phase", "train val test train", [0, 3], [1]),
        ("part of it", "training test training test", [0, 2], [1, 3]),
        ("is_test", "False True False True", [0, 2], [1, 3]),
        ("is_train", "1 0 0 1", [0, 3], [1, 2]),
        ("is_training_img", "yes no no yes", [0, 3], [1, 2]),
        ("isTrain", "True False False True", [0, 3], [1, 2]),
        ("Usage", "Training PublicTest PrivateTest Training", [0, 3], [1, 2]),
        ("dataset", "train_set val_set test_set train_set", [0, 3], [1]),
    ],
)
def test_marked_rows_validate(
    tmp_path: Path, pictures: list[str], column: str, cells: str, train: list[int], val: list[int]
) -> None:
    rows = "".join(
        f"{p},{'ab'[i % 2]},{mark}\n" for i, (p, mark) in enumerate(zip(pictures, cells.split(), strict=True))
    )
    path = write(tmp_path / "t.csv", f"path,label,{column}\n{rows}")
    data = prepare(path)
    assert data.val is not None
    assert [Path(data.train.name(i)).name for i in range(len(data.train))] == [pictures[k] for k in train]
    assert [Path(data.val.name(i)).name for i in range(len(data.val))] == [pictures[k] for k in val]
    assert f"{len(val)} of 4 samples for validation" in data.notes[0]
    alone = prepare(path, False)  # as `find_lr` does
    assert (len(alone.train), alone.val) == (len(train), None)
    given = prepare(path, path)
    assert given.val is not None
    assert (len(given.train), len(given.val)) == (len(train), 4)


def test_two_flags_mark_three_parts(tmp_path: Path, pictures: list[str]) -> None:
    rows = zip(pictures, "abab", ["0,1", "1,0", "0,0", "0,0"], strict=True)
    path = write(tmp_path / "t.csv", "path,label,is_test,is_valid\n" + "\n".join(map(",".join, rows)))
    data = prepare(path)
    assert data.val is not None
    assert (len(data.train), [Path(data.val.name(0)).name]) == (2, [pictures[0]])
    assert "The 1 samples for test are left out" in data.notes[0]


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("path,label,is_test", "yes no maybe no"),  # not read
        ("path,label,phase", "day night day night"),
        ("path,label,phase", "train train train train"),
        ("path,vehicle", "train test train test"),
        ("path,label,is_valid_mail", "yes no yes no"),
        ("path,label,fold", "0 1 0 1"),
        ("path,label,subset", "red blue red blue"),
        ("path,class,note", "train,x val,y train,x val,y"),
    ],
)
def test_other_columns_mark_nothing(tmp_path: Path, pictures: list[str], header: str, cells: str) -> None:
    rows = zip(pictures, cells.split(), strict=True)
    middle = ",a," if header.startswith("path,label") else ","
    text = "\n".join([header, *(middle.join(row) for row in rows)])
    assert open_source(write(tmp_path / "t.csv", text)).marks is None


@pytest.mark.parametrize(
    ("column", "cells"),
    [("split", "train val extra train"), ("split", "0 1 0 1"), ("phase", "train test holdout train")],
)
def test_parts_of_other_names_are_an_error(tmp_path: Path, pictures: list[str], column: str, cells: str) -> None:
    rows = "".join(f"{p},a,{mark}\n" for p, mark in zip(pictures, cells.split(), strict=True))
    with pytest.raises(DataError, match=rf"The column '{column}' of .* seems to divide the rows, but '.+' is no part"):
        open_source(write(tmp_path / "t.csv", f"path,label,{column}\n{rows}"))


def test_reading_all_marked_rows_is_said(tmp_path: Path, pictures: list[str], caplog: pytest.LogCaptureFixture) -> None:
    marks = ["train", "val", "test", "train"]
    rows = ["path,label,phase", *(f"{p},{'ab'[i % 2]},{marks[i]}" for i, p in enumerate(pictures))]
    path = write(tmp_path / "t.csv", "\n".join(rows))
    said = "All 4 samples are read, although the data marks 2 for training, 1 for validation, 1 for test."
    layers = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    tuner = FineTuner(nn.Sequential(*layers), device="cpu", preprocessing={"crop_size": 8})
    caplog.set_level("INFO", "finetune")
    for verb in (tuner.evaluate, tuner.predict):
        caplog.clear()
        verb(path)
        assert said in caplog.text
    assert f"Validation data: {said}" in prepare(path, path).notes
    caplog.clear()
    tuner.fit(path, progress=False)
    assert said not in caplog.text


def test_marks_that_mark_nothing_or_cannot_be_read(tmp_path: Path, pictures: list[str]) -> None:
    rows = "".join(f"{p},{'ab'[i % 2]},train\n" for i, p in enumerate(pictures))
    assert prepare(write(tmp_path / "t.csv", f"path,label,split\n{rows}"), False).notes == ()
    with pytest.raises(DataError, match=r"Row 1 of .* has 'train' in the column 'is_valid'\. Expected True or False"):
        open_source(write(tmp_path / "u.csv", f"path,label,is_valid\n{rows}"))
    with pytest.raises(DataError, match="All 4 rows are marked"):
        prepare(write(tmp_path / "v.csv", f"path,label,split\n{rows.replace('train', 'test')}"))


def test_a_file_of_several_rows_is_trained_on_or_validates(tmp_path: Path, pictures: list[str]) -> None:
    rows = "".join(f"{p},{'ab'[i % 2]}\n" * 5 for i, p in enumerate(pictures))
    path = write(tmp_path / "t.csv", f"path,label\n{rows}")
    for seed in range(5):
        data = prepare(path, 0.5, seed=seed)
        assert data.val is not None
        names = [{part.name(i) for i in range(len(part))} for part in (data.train, data.val)]
        assert names[0]
        assert names[1]
        assert not names[0] & names[1]


# ---------------------------------------------------------------------- cells and columns


@pytest.mark.parametrize("missing", ["NA", "NaN", "nan", "None", "null", "N/A", "<NA>", "#N/A", "NULL"])
def test_missing_labels_that_are_spelled_out(tmp_path: Path, pictures: list[str], missing: str) -> None:
    with pytest.raises(DataError, match=r"1\.png' \(row 2 of .* stands for a missing one, as in 1 of 4 rows"):
        open_source(write(tmp_path / "t.csv", f"path,label\n0.png,cat\n1.png,{missing}\n2.png,dog\n3.png,cat\n"))
    with pytest.raises(DataError, match=r"missing one|has no label"):  # among numbers, too
        open_source(write(tmp_path / "t.csv", f"path,label\n0.png,1.5\n1.png,{missing}\n2.png,2.5\n"))


@pytest.mark.parametrize("name", ["None", "NA", "nan", "null"])
def test_a_folder_may_be_called_so(class_folder: Callable[..., Path], name: str) -> None:
    assert open_source(class_folder(**{name: 1, "zebra": 1})).classes == (name, "zebra")


def test_columns_that_are_not_read_are_said_once(
    tmp_path: Path, pictures: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    open_source(write(tmp_path / "t.csv", ",path,label,width,author\n0,0.png,a,3,x\n1,1.png,b,4,y\n"))
    assert said(caplog) == f"Columns of '{tmp_path / 't.csv'}' that are not read: 'width', 'author'."
    with pytest.raises(DataError, match="several columns called 'label'"):
        open_source(write(tmp_path / "t.csv", "path,label,label\n0.png,a,x\n1.png,b,y\n"))


def test_a_column_name_is_short(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has a column called 'x+'\.\.\., of 301 characters.* no header row, add one"):
        open_source(write(tmp_path / "t.csv", f"path,{'x' * 301},b\n0.png,a,x\n1.png,b,y\n"))
    assert open_source(write(tmp_path / "t.csv", f"text,label,{'x' * 300}\na,x,1\nb,y,2\n")).classes == ("x", "y")


@pytest.mark.parametrize("separator", [" ", "|", ";", ",", ", "])
def test_a_separator_of_labels_is_found(
    tmp_path: Path, pictures: list[str], separator: str, caplog: pytest.LogCaptureFixture
) -> None:
    def opened(cells: list[str], classes: list[str] | None = None, **settings: Any) -> Any:
        rows = "".join(f'{p},"{cell}"\n' for p, cell in zip(pictures, cells, strict=True))
        path = write(tmp_path / "t.csv", f"path,label\n{rows}")
        return open_source(Table(path, **settings), classes=classes)

    both = f"scab{separator}rust"
    cells = ["scab", "rust", both, ""]
    found, given = opened(cells), opened(cells, label_separator=separator.strip() or " ")
    assert found.classes == given.classes == ("rust", "scab")
    assert found.targets.tolist() == given.targets.tolist() == [[0, 1], [1, 0], [1, 1], [0, 0]]
    assert found.notes[0] in caplog.text
    assert f"{both!r} are read as several labels" in found.notes[0]
    assert "1 empty cells have none" in found.notes[0]
    assert caplog.text.count(found.notes[0]) == 1
    opened(cells)
    assert caplog.text.count(found.notes[0]) == 1  # data is opened again and again
    assert not open_source(tmp_path / "t.csv", meaning=Meaning(("rust", "scab"), several=True)).notes
    assert not given.notes
    known = opened([both] * 4, ["scab", "rust"])  # none stands alone, but both are known
    assert known.targets.tolist() == [[1, 1]] * 4
    assert opened([both] * 4).classes == (both,)
    one = opened(["scab", "rust", both, "rust"], label_separator="")
    assert (len(one.classes), one.targets.dim(), one.notes) == (3, 1, ())
    whole = opened(["scab", "rust", both, "rust"], ["scab", "rust", both])
    assert whole.targets.tolist() == [0, 1, 2, 1]


def test_names_of_two_words_are_classes(tmp_path: Path, pictures: list[str]) -> None:
    cells = ["polar bear", "brown bear", "panda", "ice, snow"]
    rows = "".join(f'{p},"{cell}"\n' for p, cell in zip(pictures, cells, strict=True))
    assert open_source(write(tmp_path / "t.csv", f"path,label\n{rows}")).classes == tuple(sorted(cells))


@pytest.mark.parametrize(
    ("cells", "mark"),
    [
        (["clear primary", "haze primary", "clear water", "haze water"], " "),
        (["clear, primary", "haze, primary", "clear, water", "cloudy"], ","),
        (["clear;primary", "haze;primary", "clear;water", "clear;primary"], ";"),
        (["Smith, John", "Smith, Jane", "Doe, Ann", "Poe, Edgar"], None),
        (["golden retriever", "labrador retriever", "border collie", "german shepherd"], None),
        (["polar bear", "cat", "dog", "polar fox"], None),
        (["cat ", "dog", "cat ", "owl"], None),
    ],
)
def test_cells_that_may_hold_several_labels_are_said(
    tmp_path: Path, pictures: list[str], cells: list[str], mark: str | None
) -> None:
    rows = "".join(f'{p},"{cell}"\n' for p, cell in zip(pictures, cells, strict=True))
    path = write(tmp_path / "t.csv", f"path,label\n{rows}")
    source = open_source(path)
    assert source.classes == tuple(sorted({cell.strip() for cell in cells}))
    assert [f"pass Table({str(path)!r}, label_separator={mark!r})" in note for note in source.notes] == [True] * (
        mark is not None
    )
    assert not open_source(Table(path, label_separator="")).notes
    if mark is not None:
        assert {"clear", "primary"} <= {*(open_source(Table(path, label_separator=mark)).classes or ())}


# ---------------------------------------------------------------------- Table and DataFrames


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """Return the path of a table as Kaggle has it: ids without suffix, and images in another folder."""
    (tmp_path / "images").mkdir()
    for i, suffix in enumerate(("png", "JPG", "png", "jpeg")):
        picture(i).save(tmp_path / "images" / f"a{i}.{suffix}", format="PNG")
    return write(tmp_path / "train.csv", "id_code,diagnosis\n" + "".join(f"a{i},{i % 2}\n" for i in range(4)))


def test_ids_in_another_folder(kaggle: Path) -> None:
    with pytest.raises(DataError, match=r"Table\('.+train\.csv', folder=\.\.\., columns=\('id_code', 'diagnosis'\)\)"):
        open_source(kaggle)
    table = Table(kaggle, folder=kaggle.parent / "images", columns=("id_code", "diagnosis"))
    for takes in (None, "picture"):
        source = open_source(table, takes=takes)
        assert [Path(source.name(i)).name for i in range(4)] == ["a0.png", "a1.JPG", "a2.png", "a3.jpeg"]
        assert source.classes == ("0", "1")
        assert len(open_source(table, takes=takes, labeled=False)) == 4
    frame = pd.read_csv(kaggle)
    assert len(open_source(Table(frame, folder=kaggle.parent / "images", columns=("id_code", "diagnosis")))) == 4
    with pytest.raises(DataError, match=r"no column 'diagnosys'\. Did you mean 'diagnosis'"):
        open_source(Table(kaggle, folder=kaggle.parent / "images", columns=("id_code", "diagnosys")))
    with pytest.raises(DataError, match=r"The folder .* does not exist"):
        open_source(Table(kaggle, folder="nowhere"))
    with pytest.raises(DataError, match="names 4 of 4 files or folders that do not exist"):
        open_source(Table(kaggle, columns=("id_code", "diagnosis")), takes="picture")


def test_dataframes_equal_their_files(tmp_path: Path, pictures: list[str]) -> None:
    frame = pd.DataFrame({"path": [str(tmp_path / p) for p in pictures], "label": ["a", "b", "a", "b"]})
    source = open_source(frame)
    assert source.classes == ("a", "b")
    assert source.splits
    assert len(open_source(frame, labeled=False)) == 4
    assert open_source((frame.path, frame.label)).classes == ("a", "b")
    assert open_source((frame["path"].astype("category"), frame.label)).classes == ("a", "b")
    assert open_source(frame.path, labeled=False).name(0).endswith("0.png")
    texts = pd.DataFrame({"tweet": ["so good", "so bad"], "sentiment": ["pos", "neg"]})
    for takes in (None, "text"):
        assert open_source(texts, takes=takes).classes == ("neg", "pos")
    numbers = pd.DataFrame({"x": [1.0, 2.0], "z": [3.0, 4.0]})
    assert open_source(numbers, labeled=False)[1].tolist() == [2.0, 4.0]
    with pytest.raises(DataError, match=r"pass the pair \(X, y\)"):
        open_source(numbers)
    frame.loc[1, "label"] = None
    with pytest.raises(DataError, match=r"row 2 of 'DataFrame'\) has no label"):
        open_source(frame)


def test_a_label_by_another_name_is_not_called_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = open_source(write(tmp_path / "t.csv", "tweet,sentiment\nso good,pos\nso bad,neg\n"))
    assert source.classes == ("neg", "pos")
    assert not caplog.records


def test_polars_frames(tmp_path: Path, pictures: list[str]) -> None:
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"path": [str(tmp_path / p) for p in pictures], "label": ["a", "b", "a", "b"]})
    assert open_source(frame).classes == ("a", "b")
    assert open_source((frame["path"], frame["label"])).classes == ("a", "b")


def test_images_within_parquet(tmp_path: Path) -> None:
    contents = []
    for i in range(4):
        file = io.BytesIO()
        picture(i).save(file, "PNG")
        contents.append(file.getvalue())
    for cells in (contents, [{"bytes": content, "path": None} for content in contents]):
        pd.DataFrame({"image": cells, "label": [0, 1, 0, 1]}).to_parquet(tmp_path / "t.parquet")
        source = open_source(tmp_path / "t.parquet")
        assert source.kind == "picture"
        assert np.array_equal(np.asarray(source[2][0]), np.asarray(picture(2)))
        assert len(open_source(tmp_path / "t.parquet", labeled=False)) == 4
        assert prepare(tmp_path / "t.parquet", 0.5).audited().val is not None
    picture(3).save(tmp_path / "3.png")
    pd.DataFrame({"image": [{"bytes": None, "path": "3.png"}] * 2, "label": [0, 1]}).to_parquet(tmp_path / "p.parquet")
    assert open_source(tmp_path / "p.parquet").name(0).endswith("3.png")
    pd.DataFrame({"image": [b"no image" * 99] * 2, "label": [0, 1]}).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"row 1 of '.*bad\.parquet' cannot be decoded") as caught:
        open_source(tmp_path / "bad.parquet")[0]
    assert len(str(caught.value)) < 400
    pd.DataFrame({"path": ["x" * 3000 + ".png"] * 2, "label": [0, 1]}).to_parquet(tmp_path / "long.parquet")
    with pytest.raises(DataError, match="names 2 of 2 images that do not exist") as caught:
        open_source(tmp_path / "long.parquet")
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize("suffix", [".xlsx", ".json", ".jsonl", ".feather"])
def test_other_tables_say_the_way(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read\. .*pandas\.read_"):
        open_source(write(tmp_path / f"t{suffix}", "{}"))


@pytest.mark.parametrize("as_object", [lambda image: image, np.array, lambda image: torch.from_numpy(np.array(image))])
def test_a_frame_of_images_says_how_to_pass_them(as_object: Callable[[Any], Any]) -> None:
    images = [as_object(Image.new("RGB", (4, 4), (60 * k,) * 3)) for k in range(4)]
    table = pd.DataFrame({"image": images, "label": [0, 1] * 2})
    with pytest.raises(DataError, match=r"objects of type .*\(list\(table\['image'\]\), list\(table\['label'\]\)\)"):
        open_source(table, takes="image")
    assert len(open_source((list(table["image"]), list(table["label"])), takes="image")) == 4


def test_a_pipe_in_a_table_is_said_to_be_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,label\na.png,x\na.png,y\n")
    with pytest.raises(DataError, match=r"a\.png' cannot be decoded .*this is a named pipe"):
        audit(open_source(tmp_path / "t.csv"))
