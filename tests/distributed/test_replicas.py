"""Several processes train as one does, on the same global batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetune import FineTuner, Phase
from finetune.callbacks import Callback
from finetune.data.loading.batches import Batches
from finetune.data.sources.open_source import open_source
from finetune.distributed.world import join, joined
from finetune.training.run import Run
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


def test_trap_31_evaluation_counts_every_sample_once():
    cases = [(samples, batch_size) for samples in range(1, 14) for batch_size in (1, 2, 3)]

    def parts(rank: int) -> list[list[list[int]]]:
        join("auto", torch.device("cpu"))
        world, sources = joined(), [(open_source(_data(samples)), size) for samples, size in cases]
        every = [Batches(source, batch_size=size, shuffle=False, world=world).indices(0) for source, size in sources]
        return [[part.tolist() for part in batches] for batches in every]

    for (samples, _), *each in zip(cases, *in_processes(3, parts), strict=True):
        assert len({len(own) for own in each}) == 1
        assert [index for step in zip(*each, strict=True) for part in step for index in part] == [*range(samples)]


def test_trap_32_unfreezing_is_synchronized():
    class Differ(Callback):
        """Give each process other gradients, which only a sum makes equal again."""

        def change_batch(self, run: Run, batch: Any) -> Any:
            return batch[0] + run.world.rank, batch[1]

    def train(rank: int) -> list[float]:
        tuner = _tuner()
        phases = [Phase("4", epochs=1), Phase("*", epochs=2)]
        tuner.fit(_data(20), batch_size=4, strategy=phases, callbacks=[Differ()], progress=False)
        return [weight.sum().item() for weight in tuner.model.parameters()]

    first, second = in_processes(2, train)
    assert first == second
    assert first[0] != _tuner().model[0].weight.sum().item()


def test_batch_statistics_are_those_of_the_first_process():
    def train(rank: int) -> tuple[list[float], list[dict[str, Any]]]:
        torch.manual_seed(0)
        tuner = FineTuner(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), device="cpu")
        history = tuner.fit(_data(40), _data(21), epochs=2, batch_size=4, progress=False)
        return [buffer.sum().item() for buffer in tuner.model.buffers()], [row["val_loss"] for row in history]

    first, second = in_processes(2, train)
    assert first == second
