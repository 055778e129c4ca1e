"""Texts and links of classes, from a CSV file."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from finetune import DataError
from finetune.serve.class_info import ClassInfo, read_class_info

BREEDS = ("husky", "pug", "사모예드")


def test_columns_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "breeds.csv"
    path.write_text('link,class,text\nhttps://example.org/pug,pug,"Small, wrinkled."\n\n,사모예드,희다\n', "utf-8-sig")
    assert read_class_info(path, BREEDS) == {
        "pug": ClassInfo("Small, wrinkled.", "https://example.org/pug"),
        "사모예드": ClassInfo("희다"),
    }


def test_names_are_found_in_any_unicode_form(tmp_path: Path) -> None:
    path = tmp_path / "breeds.csv"
    path.write_text(unicodedata.normalize("NFD", "class,text\n사모예드 ,white\n"))
    assert read_class_info(path, BREEDS) == {"사모예드": ClassInfo("white")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,text\npug,x\n", "has the columns name, text"),
        ("class,text,extra\n", "Expected class, text and link"),
        ("", "has the columns none"),
        ("class,text\npgu,x\n", "Line 2 .* no class of the model. Did you mean .*pug"),
        ("class,text\npug,x\npug,y\n", "Line 3 .* second time"),
        ("class,text\npug,Small, wrinkled\n", "has 3 cells. Expected 2"),
        ("class,text,text\npug,x,y\n", "has the columns class, text, text"),
        ("class,link\npug,javascript:alert(1)\n", "such as https://"),
        ("class,link\npug,https:pug\n", "such as https://"),
        ("class,link\npug,http://[::1\n", "such as https://"),
        ("class,link\npug,https://example.org/a pug\n", "such as https://"),
    ],
)
def test_an_invalid_file_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "breeds.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_class_info(path, BREEDS)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_class_info(tmp_path / "none.csv", BREEDS)


def test_a_file_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "breeds.csv"
    path.write_bytes("class,text\npug,희다\n".encode("cp949"))
    with pytest.raises(DataError, match="UTF-8"):
        read_class_info(path, BREEDS)
