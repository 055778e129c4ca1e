"""Mixed precision on the CPU and on a GPU."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import FineTuner, StepOutput
from finetune.errors import ArgumentError, NonFiniteError
from finetune.training.numerics.precision import Precision, hint_at_bf16

CPU = torch.device("cpu")


def test_auto_is_fp32_on_a_cpu() -> None:
    precision = Precision("auto", CPU)

    assert (precision.name, precision.dtype, precision.scaler, precision.state_dict()) == (
        "fp32",
        torch.float32,
        None,
        {},
    )


@pytest.mark.parametrize(("name", "meant"), [("fp17", "fp1"), ("bf61", "bf16"), ("Auto", "auto")])
def test_an_unknown_precision_is_an_error_with_the_nearest_name(name: str, meant: str) -> None:
    with pytest.raises(ArgumentError, match=f"There is no precision '{name}'. Did you mean .*{meant}"):
        Precision(name, CPU)


class Observed(FineTuner):
    """Record the dtypes of the outputs, and make the loss of call `huge` overflow in fp16."""

    huge = 0
    calls = 0

    def training_step(self, batch: Any) -> StepOutput:
        output = super().training_step(batch)
        self.calls += 1
        self.dtypes = {*getattr(self, "dtypes", set()), output.outputs.dtype}
        return output._replace(loss=output.loss * 1e30) if self.calls == self.huge else output


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_outputs_are_computed_under_autocast(net, blobs, name: str, dtype: torch.dtype) -> None:
    tuner = Observed(net(), device="cpu", precision=name)

    history = tuner.fit(blobs(), blobs(9, seed=3), epochs=6, lr=0.02, batch_size=8)

    assert tuner.dtypes == {dtype}
    assert history[-1]["loss"] < history[0]["loss"]
    assert {parameter.dtype for parameter in tuner.model.parameters()} == {torch.float32}
    assert tuner.predict(blobs()[0]).dtype == torch.float32


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", torch.optim.AdamW])
def test_trap_20_a_skipped_step_changes_neither_schedule_nor_weights(net, blobs, watch, same, optimizer: Any) -> None:
    def look(run: Any) -> Any:
        parameters = {name: parameter.detach() for name, parameter in run.model.named_parameters()}
        state = run.optimizer.state_dict()["state"]
        return copy.deepcopy((parameters, state, run.position.step, run.precision.scaler.get_scale()))

    seen = watch(look)
    tuner = Observed(net(), device="cpu", precision="fp16", optimizer=optimizer, max_grad_norm=1.0)
    tuner.huge = 3

    tuner.fit(blobs(), epochs=2, lr=1e-2, batch_size=4, callbacks=[seen])

    steps = [step for _, _, step, _ in seen.seen]
    assert steps == [1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert same(seen.seen[1][0], seen.seen[2][0])
    assert same(seen.seen[1][1], seen.seen[2][1])
    assert not same(seen.seen[2][0], seen.seen[3][0])
    assert seen.seen[2][3] == seen.seen[1][3] / 2
    assert seen.rates[2] == seen.rates[3] != seen.rates[1]


def test_fp16_gradients_that_overflow_at_every_scale_are_an_error(net, blobs) -> None:
    class Steep(FineTuner):
        def training_step(self, batch: Any) -> StepOutput:
            output = super().training_step(batch)
            return output._replace(loss=output.loss + (output.outputs * 0).float().sqrt().sum())

    tuner = Steep(net(), device="cpu", precision="fp16")
    before = {name: parameter.detach().clone() for name, parameter in tuner.model.named_parameters()}

    with pytest.raises(NonFiniteError, match="stays NaN or infinite at every gradient scale in epoch"):
        tuner.fit(blobs(), epochs=20, batch_size=4)

    assert all(torch.equal(before[name], parameter) for name, parameter in tuner.model.named_parameters())


def test_fp16_scales_no_gradients_of_half_weights(blobs) -> None:
    x, y = blobs()
    with pytest.raises(ArgumentError, match=r"trainable weights are float16.*Pass model.float\(\)"):
        FineTuner(nn.Linear(x.shape[1], 3).half(), device="cpu", precision="fp16").fit((x.half(), y))


def test_fp16_a_non_finite_loss_is_an_error(net, blobs) -> None:
    class Bad(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            return self.model(batch[0]).sum() * math.nan

    with pytest.raises(NonFiniteError, match="The loss became NaN"):
        Bad(net(), device="cpu", precision="fp16").fit(blobs())


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_half_precision_loss_is_averaged_in_single_precision(blobs, name: str) -> None:
    class Half(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            return self.model(batch[0]).mean().to(self.precision.dtype)

    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    nn.init.constant_(model.bias, 1.0)
    tuner = Half(model, device="cpu", precision=name, gradient_accumulation_steps=3, optimizer="sgd")
    scale = 0 if tuner.precision.scaler is None else tuner.precision.scaler.get_scale()

    history = tuner.fit(blobs(11), lr=1e-6, batch_size=5)  # 11 samples in batches of 5, 5 and 1

    assert history[0]["loss"] == 1.0
    if scale:
        assert tuner.precision.scaler.get_scale() == scale  # a loss of 1 does not overflow at a scale of 65536


def test_the_state_of_the_scaler_round_trips() -> None:
    first, second = Precision("fp16", CPU), Precision("fp16", CPU)
    first.scaler.scale(torch.zeros(()))  # initializes the scaler
    first.scaler.update(123.0)

    second.load_state_dict(first.state_dict())
    second.load_state_dict({})

    assert second.state_dict() == first.state_dict()
    assert second.scaler.get_scale() == 123.0
    Precision("fp32", CPU).load_state_dict(first.state_dict())


def test_auto_is_the_best_format_of_the_gpu(net, blobs, accelerator) -> None:
    tuner = Observed(net(), precision="auto")

    tuner.fit(blobs(), epochs=2, batch_size=8)

    assert tuner.device.type == accelerator.type
    has_bf16 = torch.get_device_module(accelerator).is_bf16_supported(including_emulation=False)
    assert tuner.dtypes == {torch.bfloat16 if has_bf16 else torch.float16}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_on_a_gpu_a_skipped_step_changes_nothing(net, blobs, watch, same, accelerator, optimizer: str) -> None:
    def look(run: Any) -> Any:
        return {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}

    seen = watch(look)
    tuner = Observed(net(), device=accelerator, precision="fp16", optimizer=optimizer)
    tuner.huge = 3

    tuner.fit(blobs(), epochs=1, lr=1e-2, batch_size=4, callbacks=[seen])

    assert same(seen.seen[1], seen.seen[2])
    assert not same(seen.seen[2], seen.seen[3])
    assert seen.run.position.step == 0 or seen.rates[2] == seen.rates[3]


@pytest.mark.parametrize(
    ("capability", "name", "parameters", "hinted"),
    [
        ("avx512_bf16", "auto", 10**7, True),
        ("amx_bf16", "fp32", 10**7, True),
        ("avx2", "fp32", 10**7, False),
        ("avx512_bf16", "bf16", 10**7, False),
        ("avx512_bf16", "fp32", 10**5, False),
    ],
)
def test_a_hint_appears_where_bf16_would_help(
    capability: str, name: str, parameters: int, hinted: bool, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    with caplog.at_level("INFO", "finetune"):
        hint_at_bf16(Precision(name, CPU), parameters)
    assert ("precision='bf16'" in caplog.text) == hinted
