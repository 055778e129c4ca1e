"""Records as files: every value is read back, and a file that cannot be written is an error."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune import ArgumentError
from finetune.display.records import as_frame, write_csv, write_jsonl

texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))
records = st.lists(st.dictionaries(st.sampled_from("abc"), texts, min_size=1), max_size=5)


@given(records)
def test_records_are_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("records")
    lines = write_jsonl(folder / "rows.jsonl", rows).read_text(encoding="utf-8").split("\n")[:-1]
    assert list(map(json.loads, lines)) == rows
    with write_csv(folder / "rows.csv", rows, "cab").open(newline="", encoding="utf-8") as file:
        assert file.readline().strip() == "c,a,b"
        found = list(csv.reader(file))
    assert found == [[row.get(name, "") for name in "cab"] for row in rows]


def test_frames_have_the_columns_of_the_records() -> None:
    assert as_frame([{"a": 1, "b": 2}]).to_dict("records") == [{"a": 1, "b": 2}]


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="cannot be written"):
        write_csv(tmp_path, [{"a": 1}])
