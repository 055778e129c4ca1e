"""The benchmark of `interpret` measures both verbs on the same images, and says where the limit is kept."""

from __future__ import annotations

from pathlib import Path

from benchmarks.interpretation import images, names, rounds, table
from finetune import FineTuner
from tests.helpers.models import small_cnn


def test_arrays_and_files_hold_the_same_images(tmp_path: Path) -> None:
    forms = images(tmp_path, 6, 3)
    tuner = FineTuner(small_cnn(3), device="cpu", preprocessing={"crop_size": 64, "resize_size": None})
    tuner.classes = names(3)
    arrays, files = (tuner.interpret(data) for data in forms.values())
    assert arrays.confusion.sum(1).tolist() == files.confusion.sum(1).tolist() == [2, 2, 2]
    assert len(list(rounds(tuner, forms["arrays"], 2))) == 2


def test_the_table_says_where_the_limit_is_exceeded() -> None:
    rows = table({("arrays", 2): [(1.0, 1.05)] * 3, ("files", 2): [(1.0, 1.2)] * 3}, 100, 1).splitlines()[-2:]
    assert [row.split(" | ")[-1] for row in rows] == ["yes |", "**no** |"]
