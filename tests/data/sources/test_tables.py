from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from finetune.data.sources.open_source import open_source
from finetune.errors import DataError


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
    with pytest.raises(DataError, match=r"pip install torch-finetune\[parquet\]"):
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
        open_source(write(tmp_path / "t.xlsx", ""))


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
