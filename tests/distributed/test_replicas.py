"""Several processes train as one does, on the same global batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetune import FineTuner
from tests.helpers import stand_in
from tests.helpers.worlds import in_processes

_BOOKKEEPING = {"seconds", "samples_per_second", "lr", "lr_start", "phase", "epoch"}


def _data(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(samples)
    return torch.randn(samples, 6, generator=generator), torch.arange(samples) % 3


def _tuner(**settings: Any) -> FineTuner:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    return FineTuner(model, **{"device": "cpu", **settings})


def _training(
    samples: int, settings: dict[str, Any], freeze: str | None = None, **options: Any
) -> Callable[[int], tuple[Any, ...]]:
    """Return a function that trains, and returns the history, the weights, predictions and an evaluation."""

    def train(size: int) -> tuple[Any, ...]:
        tuner = _tuner(**settings)
        if freeze is not None:
            tuner.freeze(freeze)
        batch = options["batch_size"] * size
        history = tuner.fit(_data(samples), _data(21), lr=1e-2, progress=False, **{**options, "batch_size": batch})
        rows = [{name: value for name, value in row.items() if name not in _BOOKKEEPING} for row in history]
        weights = {name: weight.cpu().numpy() for name, weight in tuner.model.state_dict().items()}
        predictions = tuner.predict(_data(21)[0], batch_size=4).cpu().numpy()
        return rows, weights, predictions, dict(tuner.evaluate(_data(21), batch_size=4))

    return train


@pytest.mark.parametrize(
    ("size", "samples", "settings", "options"),
    [
        (2, 30, {"metrics": ["accuracy", "f1", "auroc"]}, {"batch_size": 4}),
        (4, 50, {"gradient_accumulation_steps": 3, "max_grad_norm": 0.5}, {"batch_size": 3}),
        (4, 3, {"gradient_accumulation_steps": 2}, {"batch_size": 2}),
        (3, 40, {"optimizer": "sgd"}, {"batch_size": 4, "freeze": "0", "cache": "memory"}),
        (2, 41, {}, {"batch_size": 4, "freeze": "0", "cache": "disk"}),
        (2, 40, {}, {"batch_size": 4, "epochs": 4, "strategy": "gradual_unfreezing", "cache": False}),
        (2, 40, {"precision": "bf16"}, {"batch_size": 4, "epochs": 4, "strategy": "lp_ft", "cache": "memory"}),
    ],
    ids=["metrics", "short windows", "fewer samples than processes", "memory", "disk", "unfreezing", "lp_ft"],
)
def test_as_one_process(size: int, samples: int, settings: dict[str, Any], options: dict[str, Any]):
    train = _training(samples, settings, **{"epochs": 3, "cache": False, **options})
    _assert_alike(in_processes(size, lambda rank: train(1)), train(size), 1e-2 if "precision" in settings else 2e-6)


def _assert_alike(processes: list[Any], expected: tuple[Any, ...], rounding: float) -> None:
    rows, weights, predictions, values = expected
    for own in processes:
        assert not isinstance(own, str), own
        for name, weight in weights.items():
            np.testing.assert_allclose(own[1][name], weight, atol=rounding, err_msg=name)
        np.testing.assert_allclose(own[2], predictions, atol=rounding)
        for one, many in zip([*rows, values], [*own[0], own[3]], strict=True):
            assert many == pytest.approx(one, abs=rounding)


@pytest.mark.skipif(not stand_in.AVAILABLE, reason="needs a C++ compiler for the stand-in")
@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"metrics": ["accuracy", "auroc"], "precision": "fp32"}, {"batch_size": 4}),
        ({"gradient_accumulation_steps": 2, "precision": "fp16"}, {"batch_size": 4, "freeze": "0", "cache": "memory"}),
    ],
    ids=["fp32", "fp16"],
)
def test_each_on_a_gpu_of_its_own_as_one_process(settings: dict[str, Any], options: dict[str, Any]):
    def train(rank: int) -> tuple[Any, ...]:
        with stand_in.devices(2):
            found = _training(30, {**settings, "device": stand_in.NAME}, epochs=2, **options)(1)
            used = [torch.accelerator.max_memory_allocated(device) > 0 for device in range(2)]
            assert used == [device == rank for device in range(2)]
            return found

    expected = _training(30, settings, epochs=2, **options)(2)
    _assert_alike(in_processes(2, train), expected, 1e-2 if settings["precision"] == "fp16" else 2e-6)


def test_batch_statistics_are_those_of_the_first_process():
    def train(rank: int) -> tuple[list[float], list[dict[str, Any]]]:
        torch.manual_seed(0)
        tuner = FineTuner(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), device="cpu")
        history = tuner.fit(_data(40), _data(21), epochs=2, batch_size=4, progress=False)
        return [buffer.sum().item() for buffer in tuner.model.buffers()], [row["val_loss"] for row in history]

    first, second = in_processes(2, train)
    assert first == second
