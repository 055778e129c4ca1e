"""Models and inputs of the golden checkpoints in `tests/checkpoint/golden`.

All values come from formulas, so models are equal bit for bit on every machine. After the format has a new version,
`python -m tests.helpers.golden` writes the files of that version to a folder of its own.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from finetune import FineTuner, Phase
from finetune.callbacks import EMA, L2SP, SWA, Callback, CSVLogger, EarlyStopping, ModelCheckpoint
from finetune.checkpoint.schema import format_version

CLASSES = ("bird", "cat", "dog")


class Net(nn.Module):
    """A stem with batch norm, a hidden layer and a head."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.hidden = nn.Linear(8, 8)
        self.fc = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.fc(self.hidden(self.stem(x)).relu())
        return outputs


class Scaled(nn.Module):
    """A head that does not consist of standard layers."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((), 2.0))
        self.linear = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.scale * self.linear(x)
        return outputs


def patterned(model: nn.Module) -> nn.Module:
    """Fill weights with a short repeating pattern, which compresses well, and zero the biases."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            if parameter.dim() > 1:
                size = 2.0 ** -((parameter[0].numel().bit_length() + 1) // 2)  # about one over the root of the fan-in
                values = (torch.arange(parameter.numel()) * (i % 5 + 1) % 13 - 6) / 4
                parameter.copy_(size * values.reshape(parameter.shape))
            elif not torch.equal(parameter, torch.ones_like(parameter)):
                parameter.zero_()
    return model


def net() -> nn.Module:
    return patterned(Net())


def layers_head(features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3))


def adapted() -> nn.Module:
    """Return the net with LoRA adapters from PEFT."""
    import peft

    return peft.get_peft_model(net(), peft.LoraConfig(r=2, target_modules=["hidden"], modules_to_save=["fc"]))


def inputs(*shape: int) -> Tensor:
    """Return distinct samples between -1 and 1."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7 % 31 - 15) / 16 + torch.arange(count) / count / 8).reshape(shape)


def vectors(n: int = 24) -> tuple[Tensor, list[str]]:
    x = inputs(n, 4)
    return x, [CLASSES[int(kind)] for kind in (x.sum(1) * 3).round().long() % 3]


# ---------------------------------------------------------------------- files of the current version


class StopHereError(Exception):
    """The process of a run ends, as if it were killed."""


class Counted(Callback):
    """A custom callback with a state: the number of updates, and the sum of their losses."""

    def __init__(self) -> None:
        self.updates, self.total = 0, torch.zeros(())

    def on_step_end(self, run: Any) -> None:
        self.updates += 1
        self.total = self.total + 1

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self.updates, self.total = state["updates"], state["total"]


class SaveWithin(Callback):
    """Saves a run in the middle of its third epoch, and ends it."""

    saves_run = True

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, run: Any) -> None:
        if run.epoch == 2 and run.position.window == 2:
            run.save(self.path)
            raise StopHereError


def fit(folder: Path, *others: Callback, resume_from: Path | None = None) -> FineTuner:
    """Train for two phases with everything that a checkpoint of a run can hold: every callback that has a state,
    metrics that keep values, accumulated batches, a replaced head, frozen layers, and the scaler of half precision.
    """
    tuner = FineTuner(net(), metrics=["accuracy", "auroc"], seed=1, device="cpu", precision="fp16")
    tuner.replace_head(3)
    patterned(tuner.model)
    callbacks = [
        EMA(decay=0.75), SWA(start=0.25), L2SP(), EarlyStopping(patience=3), Counted(), CSVLogger(folder / "log.csv"),
        ModelCheckpoint(folder / "saved"), *others,
    ]  # fmt: skip
    phases = [Phase("fc", 1, 1e-2, name="head"), Phase(["hidden", "fc"], 3, (1e-3, 1e-2), name="more")]
    tuner.fit(
        vectors(), vectors(12), strategy=phases, batch_size=4, cache=False, progress=False, callbacks=callbacks,
        resume_from=resume_from,
    )  # fmt: skip
    return tuner


def write_run(folder: Path) -> Path:
    """Write the checkpoint of a run that ended in the middle of an epoch."""
    path = folder / "run.safetensors"
    with suppress(StopHereError):
        fit(folder, SaveWithin(path))
    return path


def write_model(folder: Path) -> Path:
    """Write the checkpoint of a model by name, with another head, grayscale inputs, classes, and a calibration."""
    tuner = FineTuner("squeezenet1_1", weights=None, seed=2, device="cpu", in_channels=1)
    tuner.replace_head(3).freeze("features")
    patterned(tuner.model)
    data = inputs(6, 1, 64, 64), [*CLASSES, *CLASSES]
    tuner.fit(data, epochs=1, batch_size=3, cache=False, progress=False)
    return tuner.calibrate(data).save_checkpoint(folder / "model.safetensors")


def structure(value: Any) -> Any:
    """Return the keys of dicts, the elements of lists, and the types of values, without the values.

    Lists of plain values count as one, whatever their length. Keys that name a version of Python, whose code differs,
    name none.
    """
    if isinstance(value, Mapping):
        return {re.sub(r"Python 3\.\d+", "Python", key): structure(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        elements = [structure(item) for item in value]
        return sorted({*elements}) if all(isinstance(element, str) for element in elements) else elements
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def main() -> None:
    """Write the golden files of the current version, and the results that they lead to."""
    golden = Path(__file__).parents[1] / "checkpoint" / "golden" / str(format_version())
    golden.mkdir(parents=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        run, model = write_run(folder), write_model(folder)
        resumed, loaded = fit(folder, resume_from=run), FineTuner.load_checkpoint(model, device="cpu")
        expected = {
            "run": {"predictions": resumed.predict(vectors()[0]).tolist(), "history": list(resumed.history)},
            "model": {
                "predictions": loaded.predict(inputs(3, 1, 64, 64)).tolist(),
                "probabilities": loaded.predict_proba(inputs(3, 1, 64, 64)).tolist(),
                "classes": loaded.classes,
            },
        }
        for path in (run, model):
            (golden / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    (golden / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
