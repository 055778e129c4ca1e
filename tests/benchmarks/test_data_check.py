"""The benchmark of `check_data` plants the faults that it says, and scores the findings against them."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from benchmarks.data_check import (
    LEAKS,
    PICTURE_WAYS,
    TEXT_WAYS,
    DataSet,
    Sample,
    planted,
    scores,
    tables,
    write_pictures,
    write_texts,
)
from finetune import DataCheck, FineTuner
from finetune.data.sources.open_source import open_source
from finetune.data_check.findings import finding
from finetune.data_check.samples.places import Places
from tests.helpers.models import small_cnn


def pictures() -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (60, 12, 12, 3), dtype=torch.uint8, generator=generator).numpy()
    return [("ab"[place % 2], Image.fromarray(each).resize((24, 24))) for place, each in enumerate(pixels)]


def texts() -> list[Sample]:
    return [("ab"[place % 2], f"The {place}. parcel, in {'ab'[place % 2] * 20}.") for place in range(60)]


def tuner(classes: int) -> FineTuner:
    return FineTuner(small_cnn(classes), device="cpu", preprocessing={"crop_size": 24, "resize_size": 24})


PICTURES = DataSet("pictures", pictures, tuner, PICTURE_WAYS, write_pictures)
TEXTS = DataSet("texts", texts, tuner, TEXT_WAYS, write_texts)


def test_labels_are_wrong_and_copies_are_in_the_validation_data_as_planted(tmp_path: Path) -> None:
    train, val, (wrong, pairs) = planted(PICTURES, tmp_path / "faulty", 0)
    honest, _, none = planted(PICTURES, tmp_path / "clean", 0, faults=False)
    now, before = ({path.relative_to(folder) for path in folder.rglob("*.*")} for folder in (train, honest))
    assert now - before == {Path(name).relative_to(train) for name in wrong}
    assert len(wrong) == 2  # 5 % of 48
    assert (len(pairs), {*pairs.values()}) == (LEAKS, {*PICTURE_WAYS})
    assert all({Path(name).is_relative_to(val) for name in pair} == {True, False} for pair in pairs)
    assert none == (set(), {})

    table, _, (wrong, pairs) = planted(TEXTS, tmp_path / "texts", 0)
    assert len(table.read_text().splitlines()) == 49
    assert len(wrong) == 2
    assert {*pairs.values()} == {*TEXT_WAYS}


def test_scores_count_what_is_found_and_what_is_not() -> None:
    source = open_source((torch.zeros(9, 2), torch.arange(9) % 2))
    found = [
        finding("wrong label", (0,), ("a",), ""),
        finding("wrong label", (1,), ("b",), ""),
        finding("leak", (2, 3, 8), ("c", "d", "x"), ""),
    ]
    pairs = {frozenset({"c", "d"}): "exact", frozenset({"e", "f"}): "exact", frozenset({"g", "h"}): "cropped"}
    measured = scores(DataCheck(found, Places((source,)), ()), ({"a", "z"}, pairs))
    assert measured == {
        "labels precision": 0.5,
        "labels recall": 0.5,
        "leaks precision": 1.0,
        "leaks recall": 1 / 3,
        "copy: exact": 0.5,
        "copy: cropped": 0.0,
    }


def test_the_table_has_a_row_for_each_set() -> None:
    (table,) = tables([PICTURES], [0])
    header, _, row = table.splitlines()[-3:]
    assert header.count("|") == row.count("|")
    assert row.startswith("| pictures | 60 | ")
    assert "exact 100" in row
