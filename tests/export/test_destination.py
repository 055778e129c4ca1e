"""Files are written all or not at all, and the name of each follows from the format."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune import ArgumentError, ExportError
from finetune.export.destination import Destination


def test_of_new_files_none_is_left_if_another_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "old").write_bytes(b"before")
    files = {tmp_path / "new": b"1", tmp_path / "old": b"2", tmp_path / "taken": b"3"}
    with pytest.raises(ExportError, match=r"taken cannot be written"):
        Destination(tmp_path / "new").write(files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "taken"]


def test_a_path_without_a_suffix_gets_one(tmp_path: Path) -> None:
    found = [
        Destination.of(tmp_path / "dogs", name, None, None).path.name for name in ("torch", "state_dict", "pretrained")
    ]
    assert found == ["dogs.pt2", "dogs.pth", "dogs"]
    assert Destination.of(tmp_path / "v1.2.safetensors", "state_dict", None, None).path.name == "v1.2.safetensors"


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(ArgumentError, match="Expected the path of a file to write"):
        Destination.of(path, "torch", None, None)


@pytest.mark.parametrize("tolerance", [-1, float("nan"), "small"])
def test_a_tolerance_is_a_number(tmp_path: Path, tolerance: float) -> None:
    with pytest.raises(ArgumentError, match="tolerance"):
        Destination.of(tmp_path / "model", "torch", None, tolerance)


@pytest.mark.parametrize(
    ("quantize", "tolerance", "halves", "quantized", "expected"),
    [
        (None, None, False, False, 0.001),
        (None, None, True, False, 0.05),
        (None, 0.2, False, False, 0.2),
        ("int8", None, False, True, None),
        ("fp16", None, False, True, 0.05),
        ("int8", 0.2, False, True, 0.2),
        ("int8", 0.2, False, False, 0.001),
    ],
)
def test_the_tolerance_belongs_to_the_file_that_is_written(
    quantize: str | None, tolerance: float | None, halves: bool, quantized: bool, expected: float | None
) -> None:
    to = Destination(Path("model.onnx"), quantize=quantize, tolerance=tolerance)
    assert to.largest_difference(halves=halves, quantized=quantized) == expected
