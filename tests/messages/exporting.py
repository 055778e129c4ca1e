"""Messages about exported files. Those of ONNX are tried in `tests/export`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from finetune import FineTuner
from finetune.export.program import cause
from tests.messages.material import X, case, error, fit, tuner


class Grumbling(nn.Module):
    """A model whose forward looks at values, which no program can."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x if float(x.sum()) > 0 else -x)
        return out


class Choosy(nn.Module):
    """A model that takes samples of an unusual shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (2, 7, 4):
            raise ValueError("of another shape")
        out: Tensor = self.layer(x.sum((1, 2)))
        return out


class OfAPair(nn.Module):
    """A model whose forward takes two inputs as one argument, unless it is told to take each by its name."""

    def __init__(self, *, named: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        if named:
            self.forward = lambda left, right: self.layer(left + right)

    def forward(self, pair: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.layer(pair["left"] + pair["right"])
        return out


class Pairing(FineTuner):
    """A tuner whose steps call the model with one argument."""

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.predict_step(batch).square().mean()

    def predict_step(self, batch: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.model(batch)
        return out


class Fewer(FineTuner):
    """A tuner with other answers than its model."""

    def predict_step(self, batch: Tensor) -> Tensor:
        return super().predict_step(batch) / 2


@case("quantize is onnxruntime's, so it is for format='onnx'. Omit it for {}")
def quantized_program(tmp: Path) -> str:
    said = error(lambda: tuner().export(tmp / "model", "torch", quantize="int8"))
    tuner().export(tmp / "model", "torch")
    return said


@case("{} cannot be written: {}. Choose another path")
def unwritable(tmp: Path) -> str:
    (tmp / "taken.pth").mkdir()
    said = error(lambda: tuner().export(tmp / "taken.pth", "state_dict"))
    assert tuner().export(tmp / "free.pth", "state_dict").path.exists()
    return said


@case("The file made of {} gives other answers than the model")
def other_answers(tmp: Path) -> str:
    model = Fewer(fit(tuner()).model, device="cpu", loss="cross_entropy")
    said = error(lambda: model.export(tmp / "model.pth", "state_dict", verify=X))
    assert not any(tmp.iterdir())
    assert model.export(tmp / "model.pth", "state_dict", verify=X, tolerance=1).path.exists()
    return said


@case("{} cannot be traced by torch.export: {}. Export its weights with format='state_dict', or change that part")
def untraceable(tmp: Path) -> str:
    model = FineTuner(Grumbling(), device="cpu")
    said = error(lambda: model.export(tmp / "model.pt2", "torch", verify=X))
    assert not any(tmp.iterdir())
    assert cause(RuntimeError("one\ntwo")) == "RuntimeError: one"
    model.export(tmp / "model.pth", "state_dict", verify=X)
    return said


@case("{} accepted none of the inputs tried. Pass some of its data: verify=data")
def no_guess(tmp: Path) -> str:
    said = error(lambda: FineTuner(Choosy(), device="cpu").export(tmp / "model.pth", "state_dict"))
    FineTuner(Choosy(), device="cpu").export(tmp / "model.pth", "state_dict", verify=torch.zeros(2, 2, 7, 4))
    return said


@case("{} does not take the inputs of the data by itself: {}. A file calls the model without custom steps. Change its")
def called_otherwise(tmp: Path) -> str:
    data = [{"left": x, "right": x} for x in X]
    said = error(
        lambda: Pairing(OfAPair(named=False), device="cpu").export(tmp / "model.pth", "state_dict", verify=data)
    )
    assert not any(tmp.iterdir())
    model = FineTuner(OfAPair(named=True), device="cpu")
    assert model.export(tmp / "model.pth", "state_dict", verify=data).path.exists()
    return said
