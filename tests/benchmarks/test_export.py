"""The table of the benchmark counts what it lists."""

from __future__ import annotations

import pytest

from benchmarks import export, export_pictures


def test_the_table_counts_files_and_errors() -> None:
    fine, wrong = {"difference": 1e-7, "same": 1.0}, {"error": "Net has no save_pretrained", "left": []}
    formats = dict.fromkeys(export.FORMATS, fine)
    rows = [
        {"family": "timm", "name": "one", "formats": formats, "versions": "torch 2"},
        {"family": "timm", "name": "two", "formats": {**formats, "pretrained": wrong}, "versions": "torch 2"},
        {"family": "timm", "name": "three", "causes": {"build": "no memory"}},
    ]
    page = export.table(rows)
    assert "| onnx | 2 of 2 | 0 | 0 |" in page
    assert "| pretrained | 1 of 2 | 1 | 0 |" in page
    assert "- `two`, pretrained: Net has no save_pretrained" in page
    assert "no memory" in page


def test_photographs_are_of_both_classes() -> None:
    pytest.importorskip("sklearn")
    assert [export_pictures._photograph(index, seed=0)[0] for index in range(3)] == ["china", "flower", "china"]
