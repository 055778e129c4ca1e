"""A model that is divided among processes trains as one that is whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor.debug import CommDebugMode

from finetune import FineTuner
from finetune.callbacks import EMA, L2SP, Callback, EarlyStopping, ModelCheckpoint
from finetune.checkpoint.verify import verify
from finetune.cli import main
from finetune.distributed.divided import is_divided
from finetune.errors import DistributedError
from finetune.training.run import Run
from tests.helpers.worlds import in_processes

Result = tuple[dict[str, Any], list[float]]


def _data(samples: int = 22) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    return torch.randn(samples, 5, 6, generator=generator), torch.arange(samples) % 3


class _Network(nn.Module):
    """Layers that are called one by one, weights beside them, a tied weight, a single number and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.shift = nn.Parameter(torch.zeros(6))
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.GELU()), nn.Linear(6, 6)])
        self.layers[2].weight = self.layers[0].weight
        self.recurrent = nn.GRU(6, 7, batch_first=True)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale * x + self.shift
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(self.recurrent(x)[0][:, -1])


def _tuner(distributed: str = "fsdp", **settings: Any) -> FineTuner:
    torch.manual_seed(0)
    return FineTuner(_Network(), device="cpu", distributed=distributed, **settings)


def _result(tuner: FineTuner) -> Result:
    weights = {name: weight.numpy() for name, weight in tuner.model.state_dict().items()}
    return weights, [row["val_loss"] for row in tuner.history]


def _assert_close(results: list[Any], expected: Result) -> None:
    weights, losses = expected
    for own in results:
        assert not isinstance(own, str), own
        for name, weight in weights.items():
            np.testing.assert_allclose(own[0][name], weight, atol=2e-6, err_msg=name)
        assert own[1] == pytest.approx(losses, abs=2e-6)


def _training(settings: dict[str, Any], callbacks: Callable[[], list[Callback]], **options: Any) -> Any:
    """Return a function of the number of processes that a global batch stands for, which trains."""

    def train(size: int) -> Result:
        tuner = _tuner(**settings)
        tuner.freeze("layers.1")
        held = dict(tuner.model.named_parameters())
        options["batch_size"] = 4 * size
        tuner.fit(_data(), _data(9), lr=1e-2, epochs=4, callbacks=callbacks(), progress=False, **options)
        assert all(held[name] is parameter for name, parameter in tuner.model.named_parameters())
        assert type(tuner.model.layers[0]) is nn.Linear
        return _result(tuner)

    return train


@pytest.mark.parametrize(
    ("settings", "callbacks", "options"),
    [
        ({"max_grad_norm": 0.5, "gradient_accumulation_steps": 2}, lambda: [EMA(0.9), L2SP()], {}),
        ({"optimizer": "sgd"}, list, {"strategy": "gradual_unfreezing"}),
    ],
    ids=["one freeze state", "unfreezing"],
)
def test_as_one_process(settings: dict[str, Any], callbacks: Callable[[], list[Callback]], options: dict[str, Any]):
    train = _training(settings, callbacks, **options)
    _assert_close(in_processes(2, lambda rank: train(1)), train(2))


def test_each_process_holds_its_part():
    class Measure(Callback):
        """Add up the numbers that this process holds of weights, and of the state of the optimizer."""

        held = 0, 0

        def on_epoch_end(self, run: Run) -> None:
            weights = [p for p in run.model.parameters() if p.dim()]
            assert all(map(is_divided, weights))
            state = [value for kept in run.optimizer.state.values() for value in kept.values() if value.dim()]
            self.held = tuple(sum(v.to_local().numel() for v in values) for values in (weights, state))

    def train(rank: int) -> tuple[int, int]:
        measure, tuner = Measure(), _tuner()
        tuner.fit(_data(), batch_size=4, callbacks=[measure], progress=False)
        return measure.held

    first, second = in_processes(2, train)
    weights = sum(parameter.numel() for parameter in _Network().parameters() if parameter.dim())
    assert first[0] + second[0] == weights
    assert first[1] + second[1] == 2 * weights
    assert abs(first[0] - second[0]) < weights / 8


@pytest.mark.parametrize("sharded", [False, True])
def test_resumed_by_another_number_of_processes(tmp_path: Path, sharded: bool):
    options: dict[str, Any] = {"lr": 1e-2, "schedule": "constant", "progress": False, "epochs": 3}
    whole = _tuner()
    whole.fit(_data(), _data(9), batch_size=8, callbacks=[EMA(0.9)], **options)

    class Stop(Callback):
        stops = False

        def on_epoch_end(self, run: Run) -> None:
            if self.stops and run.epoch == 2:
                raise InterruptedError

    def begin(rank: int) -> None:
        callbacks = [EMA(0.9), EarlyStopping(patience=9), stop := Stop()]
        callbacks.insert(2, ModelCheckpoint(tmp_path, keep=1, sharded=sharded))
        stop.stops = True
        with pytest.raises(InterruptedError):
            _tuner().fit(_data(), _data(9), batch_size=4, callbacks=callbacks, **options)

    def go_on(size: int, distributed: str) -> Result:
        tuner = _tuner(distributed)
        callbacks = [EMA(0.9), EarlyStopping(patience=9), ModelCheckpoint(tmp_path / "more"), Stop()]
        last = tmp_path / "last.safetensors"
        tuner.fit(_data(), _data(9), batch_size=size, callbacks=callbacks, resume_from=last, **options)
        return _result(tuner)

    assert in_processes(2, begin) == [None, None]
    _assert_close([go_on(8, "auto")], _result(whole))
    _assert_close(in_processes(2, lambda rank: go_on(4, "fsdp")), _result(whole))


def test_a_sharded_checkpoint_is_the_single_file_in_parts(tmp_path: Path, same: Callable[[Any, Any], bool]):
    class Save(Callback):
        gathers: tuple[bool, bool]

        def on_epoch_end(self, run: Run) -> None:
            self.gathers = tuple(self.gathers_for(run, sharded) for sharded in (True, False))

        def gathers_for(self, run: Run, sharded: bool) -> bool:
            with CommDebugMode() as exchanges:
                run.tuner.save_checkpoint(tmp_path / f"{sharded}.safetensors", sharded=sharded)
            return any("all_gather" in str(name) for name in exchanges.get_comm_counts())

    def train(rank: int) -> tuple[bool, bool]:
        save, tuner = Save(), _tuner()
        tuner.fit(_data(), batch_size=4, callbacks=[EMA(0.9), EarlyStopping("loss"), L2SP(), save], progress=False)
        return save.gathers

    assert in_processes(2, train) == [(False, True)] * 2
    main(["gather", str(tmp_path / "True.safetensors"), str(tmp_path / "gathered.safetensors")])
    assert verify(tmp_path / "True.safetensors")["shards"].startswith("whole, 4 files in True.safetensors-")
    assert (tmp_path / "gathered.safetensors").read_bytes() == (tmp_path / "False.safetensors").read_bytes()
    own, single = (FineTuner.load_checkpoint(tmp_path / f"{name}.safetensors", _Network()) for name in (True, False))
    assert same(own.model.state_dict(), single.model.state_dict())


def test_error_in_one_process():
    class Fail(Callback):
        def on_step_end(self, run: Run) -> None:
            if run.world.rank == 1:
                raise ValueError("no more")

    def train(rank: int) -> str:
        tuner = _tuner()
        with pytest.raises((DistributedError, ValueError)) as error:
            tuner.fit(_data(), batch_size=4, callbacks=[Fail()], progress=False)
        return f"{error.value} {tuner.model.head.weight.isnan().all().item()}"

    first, second = in_processes(2, train)
    assert first == "Process 1 failed: ValueError: no more True"
    assert second == "no more True"
