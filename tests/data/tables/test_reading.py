from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import pytest

from finetune.data.sources.open_source import open_source
from finetune.data.tables.reading import read_table
from finetune.errors import DataError


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


def test_rows_of_unequal_length_name_the_delimiter(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 has 3 cells\. Expected 2 .* delimited by ','.*delimiter="):
        read_table(write(tmp_path / "t.csv", "text,label\na,b,c\n"))
