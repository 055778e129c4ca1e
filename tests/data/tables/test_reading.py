from __future__ import annotations

import csv
import logging
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.sources.open_source import open_source
from finetune.data.tables import limits
from finetune.data.tables.reading import columns_of, read_table
from finetune.data.tables.table import Table
from finetune.errors import DataError
from tests.helpers.files import SPECIAL, make_special, tried
from tests.helpers.system import report_free_memory


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_delimiters_and_byte_order_marks(
    tmp_path: Path, delimiter: str, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [["text", "label"], ["gut, aber; kurz", "고양이"], ["sehr\nlang | breit", "개"]]
    text = "\r\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows)
    with caplog.at_level(logging.INFO, "finetune"):
        table = read_table(write(tmp_path / "t.csv", text, encoding))
    assert table == {"text": [rows[1][0], rows[2][0]], "label": [rows[1][1], rows[2][1]]}
    assert ("with the delimiter" in caplog.text) == (delimiter in ";|")


@pytest.mark.parametrize(
    ("text", "encoding", "language"),
    [
        ("path,label\na.png,고양이\n", "cp949", "Korean"),
        ("path,label\na.png,ひらがな\n", "cp932", "Japanese"),
        ("path,label\na.png,über\n", "cp1252", "Western"),
        ("path,label\na.png,Bär\n", "cp1252", "Western"),
        ("path,label\na.png,Århus\n", "cp1252", "Western"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, text: str, encoding: str, language: str) -> None:
    path = write(tmp_path / "t.csv", text, encoding)
    with pytest.raises(DataError, match=rf"is not UTF-8 text .* It may be {encoding} \({language}"):
        read_table(path)
    assert list(pd.read_csv(path, encoding=encoding).columns) == ["path", "label"]  # the advice


@pytest.mark.parametrize(
    ("text", "inputs", "classes"),
    [
        ("good film,1\nbad film,0\nfine,1\n", ["good film", "bad film", "fine"], ("0", "1")),
        ("1,good film\n0,bad film\n1,fine\n", ["good film", "bad film", "fine"], ("0", "1")),
        ("good film,pos\nbad film,neg\nfine,pos\nmeh,neg\n,pos\n", None, ("neg", "pos")),
        ("text,label\ngood film,1\nfine,1\n", ["good film", "fine"], ("1",)),
    ],
)
def test_a_first_row_like_the_others_is_a_sample(
    tmp_path: Path, text: str, inputs: list[str] | None, classes: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source(write(tmp_path / "t.csv", text), takes="text")
    assert source.classes == classes
    if inputs is not None:
        assert [source[i][0] for i in range(len(source))] == inputs
    assert ("has no header row" in caplog.text) == (not text.startswith("text"))


def test_row_numbers_of_pandas_are_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a b", "c d"], "stars": [4, 5]})
    frame.to_csv(tmp_path / "t.csv")
    assert list(read_table(tmp_path / "t.csv")) == ["text", "stars"]


def test_a_file_larger_than_the_free_memory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("wb") as file:
        file.truncate(1 << 43)  # sparse
    with pytest.raises(DataError, match=r"t\.csv' would take [\d,]+ bytes of memory, of which [\d,]+ are left for it"):
        read_table(tmp_path / "t.csv")


def test_rows_of_unequal_length_name_the_delimiter(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 has 3 cells\. Expected 2 .* delimited by ','.*delimiter="):
        read_table(write(tmp_path / "t.csv", "text,label\na,b,c\n"))


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_only_a_regular_file_is_a_table(tmp_path: Path, name: str, kind: str) -> None:
    make_special(tmp_path / name, kind)
    with pytest.raises(DataError, match=rf"{name}' cannot be read.*(this is a|No such device)"):
        read_table(tmp_path / name)


def test_a_null_character_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.csv', line 2 has a null character"):
        read_table(write(tmp_path / "t.csv", "text,label\na\0b,c\n"))


def test_a_path_with_a_null_character_is_named_with_its_row(tmp_path: Path) -> None:
    frame = pd.DataFrame({"path": ["a.png", "b\0.png"], "label": ["x", "y"]})
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"names 1 of 2 images that do not exist: .*b\\x00\.png' \(row 2\)"):
        open_source(Table(frame, folder=tmp_path))


def test_a_cell_longer_than_any_is_said(tmp_path: Path) -> None:
    long = write(tmp_path / "t.csv", f'text,label\n"{"x " * 100_000}",a\nb,c\n')
    with pytest.raises(DataError, match=r"line 2 has a cell of more than 131,072 characters.*field_size_limit\(\)"):
        read_table(long)
    usual = csv.field_size_limit(10**6)
    try:
        assert len(read_table(long)["text"]) == 2
    finally:
        csv.field_size_limit(usual)


def test_names_of_many_columns_are_a_short_message(tmp_path: Path) -> None:
    names = ",".join(f"c{k}" for k in range(10_000))
    with pytest.raises(DataError, match=r"row 1 has 1 cells\. Expected 10000") as caught:
        read_table(write(tmp_path / "t.csv", f"{names}\nx\n"))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("{0}\n{0}", r"line 1 has 1,048,577 cells in a row, but .* 16,384 columns\."),
        ("{0}\nx", r"line 1 has 1,048,577 cells in a row, but .* 16,384 columns\."),
        ("\n{0}", r"line 2 has 1,048,577 cells in a row, but .* 16,384 columns\."),
        ("text,label\na,b\n{0}\n", r"row 2 has 1048577 cells\. Expected 2 \(text, label\)\."),
        ("a.png,b\na.png,b\n\n{0}\n", r"row 3 has 1048577 cells\. Expected 2 \(path, label\)\."),
    ],
)
def test_a_row_of_too_many_columns_is_refused(tmp_path: Path, rows: str, message: str) -> None:
    long = write(tmp_path / "t.csv", rows.format("," * (1 << 20)))
    with pytest.raises(DataError, match=rf"t\.csv', {message}"):
        read_table(long)


def test_a_table_of_too_many_columns_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame([[0] * 5], columns=[*"abcde"])
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    monkeypatch.setattr(limits, "MAX_COLUMNS", 5)
    assert read_table(tmp_path / "t.csv") == read_table(tmp_path / "t.parquet") == columns_of(frame)
    monkeypatch.setattr(limits, "MAX_COLUMNS", 4)
    for data in (tmp_path / "t.csv", tmp_path / "t.parquet", frame):
        with pytest.raises(DataError, match="has 5 cells in a row, but a table may have 4 columns"):
            open_source(data)


def test_a_csv_file_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "t.csv", "text,label\n" + "a,b\n" * 20_000)
    report_free_memory(monkeypatch, 2_000_000)
    with pytest.raises(DataError, match=r"t\.csv' would take 2,560,192 bytes of memory"):
        read_table(path)
    report_free_memory(monkeypatch, 200_000)
    with pytest.raises(DataError, match=r"t\.csv' would take 480,066 bytes of memory"):  # before it is read
        read_table(path)
    report_free_memory(monkeypatch, 4_000_000)
    assert len(read_table(path)["text"]) == 20_000


@given(
    st.binary(max_size=40), st.sampled_from([b"", b"path,label\n", b"text,label\na b,c\n", b"\xff\xfe", b'"a","b"\n'])
)
def test_a_damaged_table_is_read_or_named(tmp_path_factory: pytest.TempPathFactory, tail: bytes, head: bytes) -> None:
    path = tmp_path_factory.mktemp("damaged") / "t.csv"
    path.write_bytes(head + tail)
    for read in (read_table, open_source):
        found = tried(read, path)
        assert not isinstance(found, DataError) or "t.csv" in str(found)
