"""onnxruntime quantizes a file, and the accuracy lost is measured."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from finetune import ArgumentError, ExportError, FineTuner, Preprocessing
from tests.helpers.models import plain_cnn, small_mlp

IMAGES = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tuner() -> FineTuner:
    return FineTuner(plain_cnn(), device="cpu", loss="cross_entropy", preprocessing=Preprocessing(8))


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_the_file_is_quantized_and_both_agreements_are_said(tuner: FineTuner, kind: str, tmp_path: Path) -> None:
    made = tuner.export(tmp_path / "model.onnx", verify=IMAGES, quantize=kind)
    types = {tensor.data_type for tensor in onnx.load(made.path).graph.initializer}
    assert {"fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[kind] in types
    assert made.before is not None
    assert made.before.difference < made.agreement.difference < 0.1
    assert "float32   12 of 12 classes agree" in str(made)
    assert "quantized" in str(made)
    assert {prop.key for prop in onnx.load(made.path).metadata_props} >= {"classes", "task", "preprocessing"}


def test_matrix_products_need_no_data(tmp_path: Path) -> None:
    made = FineTuner(small_mlp(features=64), device="cpu").export(tmp_path / "model.onnx", quantize="int8")
    assert made.before is not None


def test_convolutions_need_data_of_the_user(tuner: FineTuner, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"Pass it: export\(path, quantize='int8', verify=data\)"):
        tuner.export(tmp_path / "model.onnx", quantize="int8")
    assert not any(tmp_path.iterdir())


def test_an_accuracy_beyond_the_tolerance_is_an_error(tuner: FineTuner, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="gives other answers than the model"):
        tuner.export(tmp_path / "model.onnx", verify=IMAGES, quantize="int8", tolerance=0)
    assert not any(tmp_path.iterdir())
