"""`compile=True` gives the same results on the user's own object, with and without a cache."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from finetune import FineTuner, Phase
from finetune.callbacks import Callback

EAGER = "aot_eager"  # traces and differentiates like inductor, without generating code


def block(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), block(6), block(6), nn.Linear(6, 3))


def data(n: int = 46) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3


class OwnData(Dataset[Any]):
    """A dataset that cannot be cached."""

    def __len__(self) -> int:
        return 46

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return data()[0][index] + 0.1 * torch.rand(()), data()[1][index]


class Compiled(Callback):
    """Records which modules are compiled at each update."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def on_step_end(self, run: Any) -> None:
        names = {name for name, module in run.model.named_modules() if module._compiled_call_impl is not None}
        if not self.seen or self.seen[-1] != names:
            self.seen.append(names)


def fitted(model: nn.Module, compile: bool | str, n: int = 46, **arguments: Any) -> tuple[FineTuner, list[set[str]]]:
    noted = Compiled()
    tuner = FineTuner(model, device="cpu", compile=compile, optimizer="sgd")
    keywords = {"epochs": 2, "lr": 0.05, "batch_size": 8, "progress": False} | arguments
    tuner.fit(data(n), data(n), callbacks=[noted], **keywords)
    return tuner, noted.seen


def assert_same(one: FineTuner, other: FineTuner) -> None:
    torch.testing.assert_close(one.model.state_dict(), other.model.state_dict(), rtol=1e-4, atol=1e-5)
    drop = ("seconds", "samples_per_second", "lr", "lr_start", "phase")
    for left, right in zip(one.history, other.history, strict=True):
        assert {k: v for k, v in left.items() if k not in drop} == pytest.approx(
            {k: v for k, v in right.items() if k not in drop}, rel=1e-4
        )
    assert one.evaluate(data()) == pytest.approx(other.evaluate(data()), rel=1e-4)
    torch.testing.assert_close(one.predict(data()[0]), other.predict(data()[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.no_cover
def test_a_compiled_run_is_the_same_up_to_rounding() -> None:
    compiled, seen = fitted(network(), EAGER, cache=False)
    eager, nothing = fitted(network(), False, cache=False)
    assert (seen, nothing) == ([{""}], [set()])
    assert_same(compiled, eager)


@pytest.mark.no_cover
def test_the_model_stays_the_users_object_and_is_not_compiled_afterwards() -> None:
    model = network()
    tuner, _ = fitted(model, EAGER)
    tuner.predict(data()[0])
    assert tuner.model is model
    assert list(model.state_dict()) == list(network().state_dict())
    assert all(module._compiled_call_impl is None for module in model.modules())


@pytest.mark.no_cover
def test_a_model_compiled_by_the_user_stays_compiled() -> None:
    model = network()
    model.compile(backend="eager")
    call = model._compiled_call_impl
    fitted(model, EAGER)
    assert model._compiled_call_impl is call


@pytest.mark.no_cover
def test_validation_uses_the_cache_while_training_compiles_the_whole_model() -> None:
    def run(compile: bool | str, cache: bool | str) -> tuple[FineTuner, list[set[str]]]:
        model, noted = network(), Compiled()
        tuner = FineTuner(model, device="cpu", compile=compile, optimizer="sgd").freeze(["0", "1"])
        tuner.fit(OwnData(), data(), epochs=2, batch_size=8, cache=cache, callbacks=[noted], progress=False)
        return tuner, noted.seen

    compiled, seen = run(EAGER, "memory")
    eager, _ = run(False, False)
    assert seen == [{""}]
    assert_same(compiled, eager)


def test_the_compiled_modules_follow_the_trainable_ones() -> None:
    phases = [Phase("3", 2), Phase(["2", "3"], 2), Phase("*")]
    compiled, seen = fitted(network(), EAGER, strategy=phases, cache="memory")
    eager, _ = fitted(network(), False, strategy=phases, cache=False)
    assert seen == [set(), {"2"}, {""}]
    assert_same(compiled, eager)


@pytest.mark.no_cover
@pytest.mark.slow
def test_code_generated_by_inductor_gives_the_same_results() -> None:
    whole = 48  # batches of one size; other sizes cost a compilation each, and are traced alike for any backend
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(block(4), nn.Linear(4, 3))  # each layer costs a compilation, too
    compiled, _ = fitted(copy.deepcopy(model), True, whole)
    eager, _ = fitted(model, False, whole)
    assert_same(compiled, eager)
