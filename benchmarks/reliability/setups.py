"""Sixteen short runs over every strategy, and over the callbacks and data whose state a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.digests import IMAGES, convolutions, digest, folder, images, layers, numbers
from finetune import FineTuner, LayerDecay, Phase
from finetune.callbacks import (
    EMA,
    L2SP,
    SWA,
    Callback,
    ClassWeights,
    CSVLogger,
    EarlyStopping,
    Mixup,
    ModelCheckpoint,
)

Setup = Callable[..., FineTuner]


class RunningLoss(Callback):
    """A user's callback, with a state of its own."""

    def __init__(self) -> None:
        self.total = 0.0

    def on_step_end(self, run: Any) -> None:
        self.total += float(run.loss)
        run.tuner.model[3].bias.data.add_(1e-4 * self.total)  # so that a lost state shows in the weights

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total = state["total"]


def perceptron(place: Path, strategy: Any = None, *callbacks: Callback, **settings: Any) -> FineTuner:
    """Train a perceptron for three epochs of six updates."""
    options = {key: settings.pop(key) for key in ("schedule", "lr", "epochs") if key in settings}
    tuner = FineTuner(layers(), device="cpu", **settings)
    return trained(tuner, numbers(), numbers(24), place, strategy, *callbacks, batch_size=16, **options)


def convolutional(place: Path, strategy: Any = None, *callbacks: Callback, **options: Any) -> FineTuner:
    """Train a convolutional network with batch norm and dropout for three epochs of six updates."""
    tuner = FineTuner(convolutions(), device="cpu").replace_head(3)
    data = options.pop("data", images())
    return trained(tuner, data, images(12), place, strategy, *callbacks, **options)


def pictures(place: Path, strategy: Any, **options: Any) -> FineTuner:
    """Train a convolutional network on a folder of images for three epochs of four updates."""
    preprocessing = {**IMAGES, "crop_size": (24, 24), "resize_size": 24}
    tuner = FineTuner(convolutions(), device="cpu", preprocessing=preprocessing).replace_head(3)
    return trained(tuner, folder(place.parent / "images"), None, place, strategy, batch_size=9, **options)


def trained(
    tuner: FineTuner, data: Any, val: Any, place: Path, strategy: Any, *own: Callback, **options: Any
) -> FineTuner:
    """Train, or go on, with a checkpoint after every second update."""
    writer = ModelCheckpoint(place, every_steps=2, keep=2)
    options = {"epochs": 3, "lr": 1e-2, "batch_size": 8, "progress": False, **options}
    options = {key: value for key, value in options.items() if value is not None}
    tuner.fit(
        data, val, strategy=strategy, callbacks=[*own, writer], checkpoint_dir=place, resume_from="auto", **options
    )
    return tuner


def _phases() -> list[Phase]:
    return [Phase("3.*", 1, 1e-2), Phase(["0.*", "3.*"], 2, {"0": 1e-3, "3": 1e-2})]


def _loader() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*images()), batch_size=8, shuffle=True, num_workers=2)


SETUPS: dict[str, Setup] = {
    "linear_probe, augmented images": lambda place: pictures(place, "linear_probe"),
    "last_stage, cache on disk": lambda place: pictures(place, "last_stage", cache="disk", augment=False),
    "full_finetune, batch norm, dropout": lambda place: convolutional(place, "full_finetune"),
    "gradual_unfreezing, one_cycle": lambda place: convolutional(place, "gradual_unfreezing", schedule="one_cycle"),
    "lp_ft, SGD, accumulation": lambda place: perceptron(
        place, "lp_ft", optimizer="sgd", gradient_accumulation_steps=2, max_grad_norm=1.0
    ),
    "from_scratch, Mixup": lambda place: convolutional(place, "from_scratch", Mixup()),
    "lora": lambda place: perceptron(place, "lora"),
    "surgical": lambda place: convolutional(place, "surgical:3"),
    "EMA": lambda place: convolutional(place, None, EMA(0.9)),
    "SWA": lambda place: convolutional(place, None, SWA()),
    "EarlyStopping, L2SP": lambda place: perceptron(place, None, EarlyStopping(patience=2), L2SP(0.1)),
    "CSVLogger, metrics": lambda place: perceptron(
        place, None, CSVLogger(place / "log.csv"), metrics=["accuracy", "auroc"]
    ),
    "ClassWeights, layer decay": lambda place: perceptron(place, None, ClassWeights(), lr=LayerDecay(1e-2)),
    "two workers": lambda place: convolutional(place, data=_loader(), batch_size=None, epochs=2),
    "phases by hand": lambda place: perceptron(place, _phases(), epochs=None, lr=None),
    "a user's callback": lambda place: perceptron(place, None, RunningLoss()),
}
"""Functions that train in a folder, or go on there, by name."""


def content(name: str, place: Path) -> str:
    """Train a set-up in a folder, or go on there, and return the digest of its weights and history."""
    return digest(SETUPS[name](place))
