"""Convolutional models run in channels_last unless custom code needs another memory format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import FineTuner, StepOutput
from finetune.callbacks import Callback
from finetune.model.channels_last import gains_from_channels_last


class Plain(FineTuner):
    """The same training step as an override, which keeps the layout of the weights."""

    def training_step(self, batch: Any) -> Tensor | StepOutput:
        return super().training_step(batch)


class Layouts(Callback):
    """Records after each update whether the first convolution is in channels_last."""

    def __init__(self) -> None:
        self.seen: set[bool] = set()

    def on_step_end(self, run: Any) -> None:
        self.seen.add(run.model[0].weight.is_contiguous(memory_format=torch.channels_last))


def convolutional(*between: nn.Module, patches: bool = False) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = nn.Conv2d(3, 8, 4, stride=4) if patches else nn.Conv2d(3, 8, 3, padding=1)
        second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)]
        return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), *between, *([] if patches else [second]), *pooled)


def pictures(n: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 8, 8, generator=generator), torch.arange(n) % 3


def fitted(
    make: Callable[..., FineTuner], model: nn.Module, n: int = 48, **arguments: Any
) -> tuple[FineTuner, set[bool]]:
    layouts = Layouts()
    tuner = make(model, device="cpu", **{"optimizer": arguments.pop("optimizer", "adamw")})
    keywords = {"epochs": 2, "lr": 0.01, "batch_size": 16, "progress": False} | arguments
    tuner.fit(pictures(n), callbacks=[layouts, *keywords.pop("callbacks", ())], **keywords)
    return tuner, layouts.seen


def values(model: nn.Module) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in model.state_dict().values()])


@pytest.fixture(autouse=True)
def fast_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the CPU is one on which training in channels_last is faster too."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


def test_gradients_have_the_strides_of_the_weights_as_distributed_data_parallel_expects() -> None:
    class Strides(Callback):
        def on_phase_begin(self, run: Any) -> None:
            for parameter in run.model.parameters():
                parameter.register_post_accumulate_grad_hook(lambda p: strides.append((p.grad.stride(), p.stride())))

    strides: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    layouts = fitted(FineTuner, convolutional(nn.Conv2d(8, 8, 1)), callbacks=[Strides()])[1]
    assert layouts == {True}
    assert strides
    assert all(gradient == weight for gradient, weight in strides)


def test_without_avx512_only_partly_frozen_models_run_in_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert fitted(FineTuner, convolutional())[1] == {False}
    assert fitted(FineTuner, convolutional(), strategy="gradual_unfreezing", epochs=2)[1] == {True}


def test_a_gpu_gains_from_channels_last_where_it_has_tensor_cores(accelerator: torch.device) -> None:
    old = accelerator.type == "cuda" and torch.cuda.get_device_capability() < (7, 0)
    for trains_all in (False, True):
        assert gains_from_channels_last(nn.Conv2d(3, 8, 3), accelerator, trains_all=trains_all) == (not old)
    assert not gains_from_channels_last(nn.Conv2d(3, 8, 1), accelerator)


def test_training_in_channels_last_gives_the_same_model_up_to_rounding() -> None:
    turned, layouts = fitted(FineTuner, convolutional(), optimizer="sgd")
    plain, other = fitted(Plain, convolutional(), optimizer="sgd")  # Adam amplifies rounding errors
    assert (layouts, other) == ({True}, {False})
    assert not torch.equal(values(turned.model), values(convolutional()))
    torch.testing.assert_close(values(turned.model), values(plain.model), rtol=1e-3, atol=1e-4)


def test_weights_keep_their_memory_and_layout_after_every_verb() -> None:
    model = convolutional()
    before = [(p, p.data_ptr(), p.stride()) for p in model.parameters()]
    referred = model.state_dict()
    tuner, _ = fitted(FineTuner, model)
    tuner.evaluate(pictures())
    tuner.predict(pictures()[0])
    assert [(p, p.data_ptr(), p.stride()) for p in tuner.model.parameters()] == before
    assert all(torch.equal(referred[name], value) for name, value in tuner.model.state_dict().items())


def test_weights_keep_their_memory_and_layout_after_an_error() -> None:
    class Stop(Callback):
        def on_step_end(self, run: Any) -> None:
            raise KeyboardInterrupt

    model = convolutional()
    before = [(p.data_ptr(), p.stride()) for p in model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        fitted(FineTuner, model, callbacks=[Stop()])
    assert [(p.data_ptr(), p.stride()) for p in model.parameters()] == before


class Viewing(nn.Module):
    """A user-defined layer that needs contiguous activations."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1).view_as(x)


class ViewingInTraining(Viewing):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x


class _ViewsGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view(len(gradient), -1).view(gradient.shape)


class ViewingGradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _ViewsGradient.apply(x)
        return out


class ReadingMemory(nn.Module):
    """A custom kernel that assumes a contiguous input."""

    def forward(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        return torch.as_strided(x, x.shape, (c * h * w, h * w, w, 1)) * torch.arange(c).view(c, 1, 1)


@pytest.mark.parametrize("layer", [Viewing, ViewingInTraining, ViewingGradient, ReadingMemory])
def test_a_model_that_needs_contiguous_activations_is_left_alone(layer: type[nn.Module]) -> None:
    tuner, layouts = fitted(FineTuner, convolutional(layer()))
    plain, _ = fitted(Plain, convolutional(layer()))
    assert layouts == {False}
    assert torch.equal(values(tuner.model), values(plain.model))
    tuner.evaluate(pictures())
    assert len(tuner.predict(pictures()[0])) == 48


@pytest.mark.parametrize(("model", "n"), [(convolutional(patches=True), 48), (convolutional(), 31)])
def test_models_and_data_without_a_gain_are_left_alone(model: nn.Module, n: int) -> None:
    assert fitted(FineTuner, model, n)[1] == {False}


def test_a_layout_chosen_by_the_user_is_kept() -> None:
    model = convolutional().to(memory_format=torch.channels_last)
    tuner, layouts = fitted(Plain, model)
    assert layouts == {True}
    assert tuner.model[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index, union-attr, operator]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_in_channels_last_resumes_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    class StopAt(Callback):
        only_watches = True

        def on_step_end(self, run: Any) -> None:
            if run.position.step == 4:
                run.save(tmp_path / "last.safetensors")

    whole, _ = fitted(FineTuner, convolutional(), optimizer=optimizer, callbacks=[StopAt()])
    resumed, layouts = fitted(FineTuner, convolutional(), optimizer=optimizer, resume_from=tmp_path)
    assert layouts == {True}
    assert torch.equal(values(whole.model), values(resumed.model))


def test_cached_and_uncached_runs_in_channels_last_are_equal_bit_for_bit() -> None:
    def run(cache: str | bool) -> Tensor:
        tuner = FineTuner(convolutional(), device="cpu").freeze(["0", "1"])
        layouts = Layouts()
        tuner.fit(pictures(), epochs=3, batch_size=16, cache=cache, callbacks=[layouts], progress=False)
        assert layouts.seen == {True}
        return values(tuner.model)

    assert torch.equal(run("memory"), run(False))


def test_evaluation_and_prediction_are_the_same_up_to_rounding() -> None:
    tuner, plain = FineTuner(convolutional(), device="cpu"), Plain(convolutional(), device="cpu")
    assert tuner.evaluate(pictures()) == pytest.approx(plain.evaluate(pictures()), rel=1e-4)
    torch.testing.assert_close(tuner.predict(pictures()[0]), plain.predict(pictures()[0]))
