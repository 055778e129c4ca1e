"""The compared runs: a small network, its strategies, and the results of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune import FineTuner
from finetune.callbacks import EMA, L2SP, Callback, EarlyStopping

_EPOCHS = 3
_BATCH = 12  # over all processes; 2, 3 and 4 divide it
_VALIDATION = 17


class Setup(NamedTuple):
    """A way to train.

    Attributes:
        settings: Arguments of `FineTuner`.
        frozen: Pattern of the layers to freeze, or None.
        options: Arguments of `fit`.
        callbacks: Function that makes the callbacks.
    """

    settings: dict[str, Any] = {}  # noqa: RUF012 - read only
    frozen: str | None = None
    options: dict[str, Any] = {}  # noqa: RUF012 - read only
    callbacks: Callable[[], list[Callback]] = list


SETUPS = {
    "all layers": Setup(),
    "accumulation, clipping": Setup({"gradient_accumulation_steps": 3, "max_grad_norm": 0.3}),
    "frozen, activations in memory": Setup(frozen="0", options={"cache": "memory"}),
    "frozen, activations on disk": Setup({"optimizer": "sgd"}, frozen="0", options={"cache": "disk"}),
    "lp_ft": Setup(options={"strategy": "lp_ft"}),
    "gradual_unfreezing": Setup(options={"strategy": "gradual_unfreezing"}),
    "EMA, L2SP": Setup(callbacks=lambda: [EMA(0.9), L2SP()]),
    "EarlyStopping": Setup(options={"lr": 0.1}, callbacks=lambda: [EarlyStopping(patience=1)]),
}


class End(NamedTuple):
    """What a run ends with, in every process.

    Attributes:
        weights: The weights in one tensor.
        values: Losses and metrics of all epochs, and of an evaluation.
        predictions: Outputs for the validation data, in order.
    """

    weights: list[float]
    values: list[float]
    predictions: list[float]


def data(samples: int) -> tuple[Tensor, Tensor]:
    """Return float32 [N, 6] and labels int64 [N] of three classes, the same for a number of samples."""
    generator = torch.Generator().manual_seed(samples)
    return torch.randn(samples, 6, generator=generator), torch.arange(samples) % 3


def train(setup: Setup, samples: int, size: int, distributed: str | bool = "auto", **options: Any) -> End:
    """Train in one of several processes, on its part of a batch that is the same for any number of them.

    Args:
        setup: The way to train.
        samples: Number of training samples.
        size: Number of processes.
        distributed: As in `FineTuner`.
        options: Further arguments of `fit`.
    """
    tuner = new_tuner(setup, distributed)
    fit(tuner, setup, samples, size, **options)
    skipped = ("epoch", "phase", "lr", "lr_start", "seconds", "samples_per_second")
    values = [value for row in tuner.history for name, value in row.items() if name not in skipped]
    values += tuner.evaluate(data(_VALIDATION), batch_size=4).values()
    weights = torch.cat([weight.flatten() for weight in tuner.model.state_dict().values()])
    predictions = tuner.predict(data(_VALIDATION)[0], batch_size=4)
    return End(weights.tolist(), values, predictions.flatten().tolist())


def new_tuner(setup: Setup, distributed: str | bool = "auto") -> FineTuner:
    """Return a tuner with the same weights in every call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    tuner = FineTuner(model, device="cpu", metrics=["accuracy", "f1"], distributed=distributed, **setup.settings)
    if setup.frozen is not None:
        tuner.freeze(setup.frozen)
    return tuner


def fit(tuner: FineTuner, setup: Setup, samples: int, size: int, folder: Path | None = None, **options: Any) -> None:
    """Fit with the set-up's options, and checkpoints in a folder from which a run resumes."""
    given: dict[str, Any] = {"lr": 1e-2, "epochs": _EPOCHS, "cache": False, "callbacks": setup.callbacks()}
    given |= {"batch_size": _BATCH // size, "progress": False, **setup.options, **options}
    if folder is not None:
        given |= {"checkpoint_dir": folder, "resume_from": "auto"}
    tuner.fit(data(samples), data(_VALIDATION), **given)


def difference(one: End, other: End) -> float:
    """Return the largest difference of a number between two ends; infinity if they have other lengths."""
    if any(len(a) != len(b) for a, b in zip(one, other, strict=True)):
        return float("inf")
    pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(a, b, strict=True)]
    return max(abs(a - b) for a, b in pairs)
