"""ONNX files: sizes have names, and what cannot be converted, loaded or written is said."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import ArgumentError, ExportError, FineTuner
from finetune.export import onnx
from tests.helpers.models import small_mlp

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Spectral(nn.Module):
    """A model with an operation that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + torch.linalg.eigvalsh(torch.einsum("ni,nj->nij", x, x)).sum(1, keepdim=True)
        return out


def test_an_operation_without_a_counterpart_is_named(tmp_path: Path) -> None:
    tuner = FineTuner(Spectral(), device="cpu", loss="cross_entropy")
    with pytest.raises(
        ExportError, match=r"Spectral cannot be converted to ONNX: .*eigh.* Export it with format='torch'"
    ):
        tuner.export(tmp_path / "model.onnx", verify=X)
    assert not any(tmp_path.iterdir())
    assert tuner.export(tmp_path / "model", "torch", verify=X).agreement.same == 6


def test_a_file_that_onnxruntime_cannot_load_is_refused() -> None:
    with pytest.raises(ExportError, match=r"onnxruntime cannot load the file: .* Use format='torch'"):
        onnx.runner_of(b"no model")


def test_a_model_too_large_for_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "_LARGEST", 100)
    with pytest.raises(ExportError, match=r"at most 2 GB. Export it with format='torch'"):
        FineTuner(small_mlp(), device="cpu").export(tmp_path / "model.onnx")


def test_a_missing_package_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "onnxscript":
            raise ImportError("No module named 'onnxscript'", name=name)
        return importing(name, *rest)

    tuner = FineTuner(small_mlp(), device="cpu")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ArgumentError, match=r"onnxscript is not installed. Run `pip install 'torch-finetune\[onnx\]'`"):
        tuner.export(tmp_path / "model.onnx")
