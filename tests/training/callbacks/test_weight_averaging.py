"""`EMA` and `SWA`, compared with averages computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune import FineTuner, Phase
from finetune.callbacks import EMA, SWA, Callback, EarlyStopping
from finetune.checkpoint import file, schema
from finetune.errors import ArgumentError, CheckpointError


class States(Callback):
    """Note the model's state at the edges of updates and epochs."""

    def __init__(self, state_of: Any) -> None:
        self.state_of = state_of
        self.steps: list[dict[str, Tensor]] = []
        self.begun: list[dict[str, Tensor]] = []
        self.ended: list[dict[str, Tensor]] = []

    def on_phase_begin(self, run: Any) -> None:
        self.start = self.state_of(run.model)

    def on_epoch_begin(self, run: Any) -> None:
        self.begun.append(self.state_of(run.model))

    def on_step_end(self, run: Any) -> None:
        self.steps.append(self.state_of(run.model))

    def on_epoch_end(self, run: Any) -> None:
        self.ended.append(self.state_of(run.model))


def close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], msg=lambda text, name=name: f"{name}: {text}")


def test_ema_averages_weights_and_statistics_over_all_updates(net, blobs, state_of) -> None:
    states = States(state_of)
    tuner = FineTuner(net(), device="cpu").freeze("0")

    tuner.fit(blobs(), blobs(9), epochs=2, batch_size=4, lr=1e-2, callbacks=[EMA(0.8), states])

    average = {name: value.double() for name, value in states.start.items()}
    for count, state in enumerate(states.steps):
        decay = min(0.8, (1 + count) / (10 + count))
        average = {name: decay * value + (1 - decay) * state[name] for name, value in average.items()}
    average["1.num_batches_tracked"] = torch.tensor(12)
    close(state_of(tuner.model), {name: value.to(states.start[name].dtype) for name, value in average.items()})
    assert torch.equal(states.start["0.weight"], tuner.model[0].weight)


def test_ema_does_not_change_the_training_weights(net, blobs, state_of, same) -> None:
    plain, averaged = States(state_of), States(state_of)
    for states, added in ((plain, []), (averaged, [EMA(0.9)])):
        FineTuner(net(), device="cpu").fit(blobs(), blobs(9), epochs=3, batch_size=4, callbacks=[*added, states])

    assert all(same(one, other) for one, other in zip(plain.steps, averaged.steps, strict=True))
    assert all(same(one, other) for one, other in zip(plain.begun, averaged.begun, strict=True))
    assert not same(plain.ended[0], averaged.ended[0])


@pytest.mark.parametrize("with_val", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_the_average_is_evaluated_saved_and_returned(net, blobs, state_of, same, tmp_path, with_val, first) -> None:
    states = States(state_of)
    stopping = EarlyStopping("val_loss" if with_val else "loss", patience=9)
    tuner, val = FineTuner(net(), device="cpu"), blobs(30, seed=3)
    added = [EMA(0.9), stopping] if first else [stopping, EMA(0.9)]

    history = tuner.fit(
        blobs(), val if with_val else None, epochs=3, batch_size=4, lr=1e-2, checkpoint_dir=tmp_path,
        callbacks=[states, *added],
    )  # fmt: skip

    best = FineTuner.load_checkpoint(tmp_path / "best.safetensors", net(seed=4), device="cpu")
    name = stopping.monitor
    number = min(range(3), key=lambda epoch: history[epoch][name])
    assert same(state_of(best.model), states.ended[number])
    assert same(state_of(tuner.model), states.ended[number])
    if with_val:
        assert best.evaluate(val)["loss"] == pytest.approx(history[number]["val_loss"])


@pytest.mark.parametrize("make", [lambda: EMA(0.9), lambda: SWA(0.2)])
@pytest.mark.parametrize("cut", [3, 6, 8, 12])
def test_weight_averaging_resumes_bit_for_bit(net, blobs, state_of, same, timeless, tmp_path, make, cut) -> None:
    class Cut(Callback):
        saves_run = True
        steps = 0

        def on_step_end(self, run: Any) -> None:
            self.steps += 1
            if self.steps == cut and cut % 6:
                run.save(tmp_path / "cut.safetensors")

        def on_epoch_end(self, run: Any) -> None:
            if self.steps == cut:
                run.save(tmp_path / "cut.safetensors")

    arguments = {"strategy": [Phase("*", 2, 1e-2), Phase("4", 1, name="two")], "batch_size": 4}
    whole, resumed = FineTuner(net(), device="cpu"), FineTuner(net(seed=2), device="cpu")
    whole.fit(blobs(), blobs(9), callbacks=[make(), Cut()], **arguments)

    resumed.fit(blobs(), blobs(9), callbacks=[make()], resume_from=tmp_path / "cut.safetensors", **arguments)

    assert same(state_of(whole.model), state_of(resumed.model))
    assert timeless(whole.history) == timeless(resumed.history)


@pytest.mark.parametrize("key", ["average", "set_aside"])
@pytest.mark.parametrize("strategy", ["full_finetune", "linear_probe", "lora"])
def test_a_saved_average_that_lacks_a_weight_is_refused_before_anything_is_changed(
    net, blobs, state_of, same, tmp_path, key, strategy
) -> None:
    arguments: dict[str, Any] = {"strategy": strategy, "epochs": 4, "batch_size": 4, "callbacks": [EMA(0.9)]}
    FineTuner(net(), device="cpu").fit(blobs(), blobs(9), checkpoint_dir=tmp_path, **arguments)
    path = tmp_path / "previous.safetensors"
    content = file.read(path).content
    (state,) = (state for state in content["training"]["callbacks"].values() if key in state)
    state[key].popitem()
    file.write(path, content, version=schema.format_version())
    tuner = FineTuner(net(seed=2), device="cpu")
    before, trains = state_of(tuner.model), [parameter.requires_grad for parameter in tuner.model.parameters()]
    with pytest.raises(CheckpointError, match=r"previous\.safetensors: The EMA .* averaged other weights"):
        tuner.fit(blobs(), blobs(9), resume_from=path, **arguments)
    assert same(state_of(tuner.model), before)
    assert [parameter.requires_grad for parameter in tuner.model.parameters()] == trains
    assert not tuner.history


@pytest.mark.parametrize("make", [lambda: EMA(1.0), lambda: EMA(0.0), lambda: SWA(1.0), lambda: SWA(-0.1)])
def test_out_of_range_arguments_are_an_error(make: Any) -> None:
    with pytest.raises(ArgumentError, match=r"Expected (decay|start) to be"):
        make()


def test_swa_averages_the_last_epochs_and_recomputes_the_statistics(net, blobs, state_of, same) -> None:
    plain, states, X = States(state_of), States(state_of), blobs()[0]
    for added, last in (([], plain), ([SWA(0.5)], states)):
        tuner = FineTuner(net(dropout=0.0), device="cpu")
        tuner.fit(blobs(), epochs=4, batch_size=8, lr=1e-2, schedule="constant", callbacks=[*added, last])

    epochs = [state for number, state in enumerate(plain.steps, 1) if number % 3 == 0]
    mean = {name: (epochs[2][name] + epochs[3][name]) / 2 for name in epochs[0] if "running" not in name}
    found = state_of(tuner.model)
    close({name: found[name] for name in mean if "num" not in name}, {n: mean[n] for n in mean if "num" not in n})
    features = F.linear(X, mean["0.weight"], mean["0.bias"])
    torch.testing.assert_close(found["1.running_mean"], features.mean(0))
    assert tuner.model[1].momentum == 0.1
    assert all(same(one, other) for one, other in zip(plain.begun, states.begun, strict=True))
