"""The loop, compared with a loop in plain PyTorch, and the order of its hooks."""

from __future__ import annotations

import copy
import logging
import math
import random
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from finetune import FineTuner, Phase, StepOutput
from finetune.callbacks import Callback, ModelCheckpoint, SkipNonFinite
from finetune.checkpoint import file
from finetune.data.loading.batches import Batches
from finetune.data.randomness import seeded
from finetune.data.sources.open_source import open_source
from finetune.errors import ArgumentError, DataError, NonFiniteError
from finetune.training.loop import windows
from finetune.training.optim.schedules import cosine
from tests.helpers.datasets import Flow
from tests.helpers.stand_in import limited

Pair = tuple[Tensor, Tensor]


class Gradients(torch.optim.SGD):
    """Plain SGD that keeps the concatenated gradients of every step."""

    def __init__(self, groups: Any) -> None:
        super().__init__(groups)
        self.kept: list[Tensor] = []

    def step(self, closure: Any = None) -> Any:
        self.kept.append(torch.cat([p.grad.flatten() for group in self.param_groups for p in group["params"]]))
        return super().step(closure)


def plain_pytorch(
    model: nn.Module,
    data: Pair,
    make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    *,
    epochs: int,
    batch_size: int,
    accumulation: int,
    max_grad_norm: float | None,
    frozen: tuple[str, ...],
    lr: float,
    decay: float,
    device: str = "cpu",
) -> nn.Module:
    """Train in plain PyTorch, with the sample order and the seeds of this library."""
    X, y = (tensor.to(device) for tensor in data)
    model.to(device)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    training = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make([{"params": [p], "weight_decay": decay if p.dim() > 1 else 0.0, "lr": lr} for p in training])
    batches = Batches(open_source(data), batch_size=batch_size, shuffle=True, seed=0)
    updates = -(-len(batches) // accumulation)
    for epoch in range(epochs):
        model.train()
        for name, module in model.named_children():
            if f"{name}.".startswith(frozen):
                module.eval()
        rows = batches.order(epoch).split(batch_size)
        for update in range(updates):
            window = rows[update * accumulation : (update + 1) * accumulation]
            samples = sum(len(chosen) for chosen in window)
            with seeded(0, "step", epoch, update):
                for chosen in window:
                    loss = F.cross_entropy(model(X[chosen]), y[chosen])
                    (loss * (len(chosen) / samples)).backward()
            if max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(training, max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = lr * cosine((epoch * updates + update + 0.5) / (epochs * updates))
            optimizer.step()
            optimizer.zero_grad()
    return model


OPTIMIZERS = {
    "adamw": ("adamw", lambda groups: torch.optim.AdamW(groups, fused=True)),
    "sgd": ("sgd", lambda groups: torch.optim.SGD(groups, momentum=0.9, fused=True)),
    "factory": (torch.optim.AdamW, torch.optim.AdamW),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("frozen", [(), ("0.", "1.")], ids=["all train", "a part frozen"])
@pytest.mark.parametrize("max_grad_norm", [None, 0.2], ids=["free", "clipped"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_equal_to_plain_pytorch_bit_for_bit(
    net, blobs, state_of, same, optimizer: str, frozen: tuple[str, ...], max_grad_norm: float | None, accumulation: int
) -> None:
    spec, make = OPTIMIZERS[optimizer]
    settings = {"max_grad_norm": max_grad_norm}
    by_hand = plain_pytorch(
        net(), blobs(27), make, epochs=3, batch_size=4, accumulation=accumulation, frozen=frozen, lr=0.01, decay=0.1,
        **settings,
    )  # fmt: skip
    tuner = FineTuner(
        net(), device="cpu", optimizer=spec, weight_decay=0.1, gradient_accumulation_steps=accumulation, **settings
    )
    if frozen:
        tuner.freeze([name.rstrip(".") for name in frozen])

    tuner.fit(blobs(27), epochs=3, lr=0.01, batch_size=4)

    assert same(state_of(tuner.model), state_of(by_hand))
    assert not same(state_of(tuner.model), state_of(net()))


def test_on_a_gpu_equal_to_plain_pytorch(net, blobs, accelerator) -> None:
    by_hand = plain_pytorch(
        net(dropout=0.0), blobs(26), OPTIMIZERS["adamw"][1], epochs=2, batch_size=4, accumulation=2,
        max_grad_norm=0.2, frozen=("0.",), lr=0.01, decay=0.1, device=accelerator,
    )  # fmt: skip
    tuner = FineTuner(
        net(dropout=0.0), device=accelerator, precision="fp32", weight_decay=0.1, max_grad_norm=0.2,
        gradient_accumulation_steps=2,
    )  # fmt: skip

    tuner.freeze("0").fit(blobs(26), epochs=2, lr=0.01, batch_size=4)

    for ours, theirs in zip(tuner.model.state_dict().values(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_custom_training_step_trains_the_same(net, blobs, state_of, same) -> None:
    class Own(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            inputs, targets = batch
            return F.cross_entropy(self.model(inputs), targets)

    own, usual = Own(net(), device="cpu"), FineTuner(net(), device="cpu")

    history = own.fit(blobs(), blobs(9, seed=2), epochs=2, batch_size=8)
    usual.fit(blobs(), blobs(9, seed=2), epochs=2, batch_size=8)

    assert same(state_of(own.model), state_of(usual.model))
    assert "accuracy" not in history[0]
    assert [row["val_accuracy"] for row in history] == [row["val_accuracy"] for row in usual.history]


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_trap_19_windows_of_batches_have_the_gradient_of_one_batch(data: st.DataObject) -> None:
    torch.manual_seed(0)
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=7))
    accumulation = data.draw(st.integers(1, 8))
    X, y = torch.randn(sum(sizes), 3, dtype=torch.float64), torch.arange(sum(sizes)) % 2
    rows = torch.randperm(len(X)).split(sizes)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    start = copy.deepcopy(model)
    made: list[Gradients] = []
    tuner = FineTuner(
        model,
        device="cpu",
        loss=F.cross_entropy,
        metrics=[],
        weight_decay=0.0,
        optimizer=lambda groups: made.append(Gradients(groups)) or made[-1],
        gradient_accumulation_steps=accumulation,
    )
    loader = DataLoader(TensorDataset(X, y), batch_sampler=[chosen.tolist() for chosen in rows])

    history = tuner.fit(loader, lr=1e-200)  # too small to move a double

    whole = [torch.cat(rows[i : i + accumulation]) for i in range(0, len(rows), accumulation)]
    assert len(made[-1].kept) == len(whole)
    order = [name for group in made[-1].param_groups for name in group["names"]]
    for gradient, chosen in zip(made[-1].kept, whole, strict=True):
        loss = F.cross_entropy(start(X[chosen]), y[chosen])
        expected = torch.autograd.grad(loss, [start.get_parameter(name) for name in order])
        torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in expected]))
    assert history[0]["loss"] == pytest.approx(float(F.cross_entropy(start(X), y).detach()), rel=1e-6)


@given(items=st.lists(st.integers()), size=st.integers(1, 5))
def test_windows_contain_every_item(items: list[int], size: int) -> None:
    gathered = list(windows(items, size))

    assert [item for window in gathered for item in window] == items
    assert all(len(window) == size for window in gathered[:-1])
    assert all(gathered)


def test_trap_20_gradients_are_clipped_once_per_update(net, blobs) -> None:
    def gradients(max_grad_norm: float | None) -> list[Tensor]:
        made: list[Gradients] = []
        FineTuner(
            net(dropout=0.0), device="cpu", max_grad_norm=max_grad_norm, gradient_accumulation_steps=3,
            optimizer=lambda groups: made.append(Gradients(groups)) or made[-1],
        ).fit(blobs(), lr=1e-12, batch_size=4)  # fmt: skip
        return made[-1].kept

    free, clipped = gradients(None), gradients(0.01)

    assert len(clipped) == 2  # 24 samples in batches of 4, 3 batches per update
    for before, after in zip(free, clipped, strict=True):
        assert float(before.norm()) > 0.01
        torch.testing.assert_close(after, before * (0.01 / before.norm()), rtol=1e-3, atol=1e-7)


def test_golden_order_of_hooks(net, blobs, watch) -> None:
    seen = watch()
    tuner = FineTuner(net(), device="cpu", gradient_accumulation_steps=2)

    tuner.fit(blobs(20), blobs(6), strategy=[Phase("6", 2), Phase("*", 2)], batch_size=4, callbacks=[seen])

    epoch = ["on_epoch_begin", *["on_step_end"] * 3, "on_evaluate_begin", "on_evaluate_end", "on_epoch_end"]
    phase = ["on_phase_begin", *epoch, *epoch, "on_phase_end"]
    assert seen.hooks == ["on_fit_begin", *phase, *phase, "on_fit_end"]


def test_without_validation_data_nothing_is_evaluated(net, blobs, watch) -> None:
    seen = watch()

    history = FineTuner(net(), device="cpu").fit(blobs(), batch_size=12, callbacks=[seen])

    assert "on_evaluate_end" not in seen.hooks
    assert list(history[0]) == ["epoch", "phase", "loss", "accuracy", "lr", "lr_start", "seconds", "samples_per_second"]


def test_callbacks_are_called_in_their_order(net, blobs) -> None:
    called: list[str] = []

    class Named(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_epoch_end(self, run: Any) -> None:
            called.append(self.name)

    FineTuner(net(), device="cpu").fit(blobs(), callbacks=[Named("a"), Named("b"), Named("c")])

    assert called == ["a", "b", "c"]


def test_after_an_error_on_fit_end_runs_and_the_modes_are_restored(net, blobs, watch) -> None:
    class Broken(Callback):
        def on_step_end(self, run: Any) -> None:
            raise KeyError("of a callback")

    seen = watch()
    tuner = FineTuner(net().eval(), device="cpu")

    with pytest.raises(KeyError):
        tuner.fit(blobs(), callbacks=[seen, Broken()])

    assert seen.hooks[-1] == "on_fit_end"
    assert not any(module.training for module in tuner.model.modules())


def test_an_interrupted_update_leaves_no_gradient_behind(net, blobs, state_of, same) -> None:
    class Interrupted(FineTuner):
        calls = 0

        def training_step(self, batch: Any) -> StepOutput:
            self.calls += 1
            if self.calls == 2:
                raise KeyboardInterrupt
            return super().training_step(batch)

    start = {"gradient_accumulation_steps": 2, "device": "cpu"}
    fresh, broken = FineTuner(nn.Linear(4, 3), **start), Interrupted(nn.Linear(4, 3), **start)
    broken.model.load_state_dict(fresh.model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        broken.fit(blobs(), batch_size=8)

    fresh.fit(blobs(), batch_size=8)
    broken.fit(blobs(), batch_size=8)

    assert same(state_of(fresh.model), state_of(broken.model))


def test_there_is_no_optimizer_before_the_first_phase(net, blobs) -> None:
    class Early(Callback):
        def on_fit_begin(self, run: Any) -> None:
            with pytest.raises(RuntimeError, match="no optimizer before the first phase"):
                run.optimizer.step()

    FineTuner(net(), device="cpu").fit(blobs(), callbacks=[Early()])


def test_a_second_fit_continues_the_epoch_count(net, blobs) -> None:
    tuner = FineTuner(net(), device="cpu")
    tuner.fit(blobs(), epochs=2)

    history = tuner.fit(blobs(), epochs=2)

    assert [row["epoch"] for row in history] == [1, 2, 3, 4]


def test_fit_does_not_change_the_global_random_state(net, blobs) -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    class Noisy(FineTuner):
        def validation_step(self, batch: Any) -> StepOutput:
            draws()
            return super().validation_step(batch)

    seed()
    expected = draws()
    seed()

    Noisy(net(), device="cpu").fit(DataLoader(TensorDataset(*blobs()), shuffle=True, batch_size=8), blobs(9), epochs=2)

    assert draws() == expected


# ---------------------------------------------------------------------- return values of steps


@pytest.mark.parametrize(
    ("returned", "got"),
    [(lambda loss: None, "None"), (lambda loss: loss.item(), r"-?\d"), (lambda loss: loss.repeat(3), r"shape \[3\]")],
)
def test_a_step_should_return_a_scalar_loss(net, blobs, returned: Callable[[Tensor], Any], got: str) -> None:
    class Own(FineTuner):
        def training_step(self, batch: Any) -> Any:
            return returned(self.model(batch[0]).sum())

    with pytest.raises(ArgumentError, match=f"Expected .*Own.training_step to return a scalar loss.*the loss is {got}"):
        Own(net(), device="cpu").fit(blobs())


def test_a_loss_without_trainable_parameters_is_an_error(net, blobs) -> None:
    class Own(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            return self.model(batch[0]).detach().sum()

    with pytest.raises(ArgumentError, match="does not depend on any trainable parameter"):
        Own(net(), device="cpu").fit(blobs())


def test_a_step_output_feeds_the_metrics(net, blobs) -> None:
    class Own(FineTuner):
        def training_step(self, batch: Any) -> StepOutput:
            outputs = self.model(batch[0])
            return StepOutput(F.cross_entropy(outputs, batch[1]), outputs, batch[1])

    own, usual = Own(net(), device="cpu"), FineTuner(net(), device="cpu")

    assert own.fit(blobs())[0]["accuracy"] == usual.fit(blobs())[0]["accuracy"]


# ---------------------------------------------------------------------- non-finite updates


class Spoiled(FineTuner):
    """Make the loss, or only its gradient, non-finite: from update `at` on, or with `once` in that update only."""

    at, how, once = 3, "loss", False
    calls = 0

    def training_step(self, batch: Any) -> StepOutput:
        output = super().training_step(batch)
        self.calls += 1
        if self.calls < self.at or (self.once and self.calls > self.at):
            return output
        if self.how == "loss":
            return output._replace(loss=output.loss * math.nan)
        return output._replace(loss=output.loss + (output.outputs * 0).sqrt().sum())  # 0, with an infinite gradient


@pytest.mark.parametrize("momentum", [0.1, None], ids=["moving", "cumulative"])
@pytest.mark.parametrize(
    ("how", "message"), [("loss", "The loss became NaN"), ("gradient", "norm of the gradients became NaN")]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("interval", [1, 3, None])  # above 1 as on a GPU, where the host checks later
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_trap_37_a_non_finite_update_changes_nothing(
    net,
    blobs,
    state_of,
    same,
    watch,
    how: str,
    message: str,
    momentum: float | None,
    precision: str,
    interval: int | None,
    optimizer: str,
    request: pytest.FixtureRequest,
) -> None:
    def everything(run: Any) -> Any:
        done = (run.position.epoch, run.position.window, run.position.step)
        return copy.deepcopy((state_of(run.model), run.optimizer.state_dict()["state"], done))

    seen = watch(everything)
    device = "cpu" if interval else request.getfixturevalue("accelerator")
    tuner = Spoiled(net(), device=device, precision=precision, optimizer=optimizer)
    assert interval or tuner.precision.interval > 1
    tuner.precision.interval = interval or tuner.precision.interval
    tuner.model[1].momentum = momentum
    tuner.how = how
    tuner.at, tuner.once = 6, True  # 4 updates per epoch

    with pytest.raises(
        NonFiniteError, match=rf"{message} or infinite in epoch 2, update 2 of .* The model keeps its state"
    ):
        tuner.fit(blobs(16), epochs=3, batch_size=4, callbacks=[seen])

    weights, moments, position = everything(seen.run)
    before = seen.seen[4]
    assert same(weights, before[0])
    assert same(moments, before[1])
    assert position == before[2]
    assert weights["1.num_batches_tracked"] == 5
    assert all(parameter.grad is None for parameter in tuner.model.parameters())
    assert len(tuner.history) == 1


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", torch.optim.Adam])
def test_the_interval_of_the_finite_check_changes_no_number(net, blobs, state_of, same, optimizer: Any) -> None:
    def run(interval: int) -> FineTuner:
        tuner = FineTuner(net(), device="cpu", optimizer=optimizer, max_grad_norm=0.5)
        tuner.precision.interval = interval
        tuner.fit(blobs(), epochs=3, batch_size=4)
        return tuner

    assert same(state_of(run(1).model), state_of(run(4).model))


@pytest.mark.parametrize("interval", [1, 32])
def test_trap_37_no_checkpoint_includes_a_non_finite_update(net, blobs, tmp_path, interval: int) -> None:
    tuner = Spoiled(net(), device="cpu")
    tuner.precision.interval = interval
    tuner.at = 3
    with pytest.raises(NonFiniteError, match="epoch 1, update 3"):
        tuner.fit(blobs(32), batch_size=4, callbacks=[ModelCheckpoint(tmp_path, every_steps=2)])
    assert file.read(tmp_path / "last.safetensors").content["training"]["position"]["step"] == 2


def test_trap_37_accumulated_batches_are_undone_together(net, blobs, state_of, same) -> None:
    tuner = Spoiled(net(), device="cpu", gradient_accumulation_steps=3)
    before = state_of(tuner.model)

    with pytest.raises(NonFiniteError, match="epoch 1, update 1"):
        tuner.fit(blobs(), batch_size=4)

    assert same(state_of(tuner.model), before)


def test_trap_37_holds_without_batch_statistics(blobs) -> None:
    tuner = Spoiled(nn.Linear(4, 3), device="cpu")
    tuner.at = 1

    with pytest.raises(NonFiniteError):
        tuner.fit(blobs())

    assert tuner.model.weight.isfinite().all()


# ---------------------------------------------------------------------- small and unusual data


def test_trap_33_a_last_batch_of_one_trains(net, blobs, state_of, watch, caplog) -> None:
    def modes(run: Any) -> tuple[bool, dict[str, Tensor]]:
        return run.model[1].training, state_of(run.model)

    seen = watch(modes)
    tuner = FineTuner(net(), device="cpu")
    assert len(blobs(9)[0]) % 4 == 1

    tuner.fit(blobs(9), batch_size=4, lr=0.01, callbacks=[seen])
    tuner.fit(blobs(9), batch_size=4, lr=0.01, epochs=3)

    assert caplog.text.count("A batch of one sample") == 2  # once per run, not per epoch
    (_, first), (_, second), (training, last) = seen.seen
    assert training
    assert not torch.equal(second["0.weight"], last["0.weight"])
    assert not torch.equal(second["1.weight"], last["1.weight"])
    assert not torch.equal(first["1.running_var"], second["1.running_var"])
    assert torch.equal(second["1.running_var"], last["1.running_var"])
    assert all(tensor.isfinite().all() for tensor in last.values())


def test_data_of_unknown_length_trains_with_a_schedule(net, blobs, watch) -> None:
    seen = watch()

    history = FineTuner(net(), device="cpu", metrics=[]).fit(
        Flow(list(zip(*blobs(22), strict=True))),
        blobs(6),
        epochs=3,
        lr=1.0,
        batch_size=4,
        schedule=lambda p: p,
        callbacks=[seen],
    )

    assert [rates["2"] if "2" in rates else next(iter(rates.values())) for rates in seen.rates] == pytest.approx(
        [0.5 / 3] * 6 + [(step + 0.5) / 18 for step in range(6, 18)]
    )
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert all(row["samples_per_second"] > 0 and "val_loss" in row for row in history)


def test_data_of_unknown_length_trains_as_data_of_known_length(net, blobs, state_of, same) -> None:
    X, y = blobs(22)
    loader = DataLoader(TensorDataset(X, y), batch_size=4)
    stream, known = FineTuner(net(), device="cpu"), FineTuner(net(), device="cpu")

    stream.fit(Flow(list(zip(X, y, strict=True))), epochs=2, batch_size=4, schedule=lambda p: 1.0, lr=0.01)
    known.fit(loader, epochs=2, schedule=lambda p: 1.0, lr=0.01)

    assert same(state_of(stream.model), state_of(known.model))


def test_data_that_gives_no_batch_is_an_error(net, blobs) -> None:
    loader = DataLoader(TensorDataset(*blobs(5)), batch_size=8, drop_last=True)

    with pytest.raises(DataError, match="gave no sample in pass 1"):
        FineTuner(net(), device="cpu", loss="cross_entropy").fit(loader)


def test_an_iterable_that_can_only_be_read_once_is_an_error(net, blobs) -> None:
    class Once(IterableDataset):
        def __init__(self, pair: Pair) -> None:
            self.items = iter(list(zip(*pair, strict=True)))

        def __iter__(self) -> Iterator[Any]:
            return self.items

    tuner = FineTuner(net(), device="cpu", loss="cross_entropy")

    with pytest.raises(DataError, match="gave no sample in pass 2"):
        tuner.fit(Once(blobs(100)), epochs=2, batch_size=10)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch_size=st.integers(1, 30))
def test_predictions_are_in_order_for_any_batch_size(net, blobs, batch_size: int) -> None:
    tuner = FineTuner(net(), device="cpu")
    X, _ = blobs(23)
    with torch.no_grad():
        expected = net().eval()(X)

    outputs = tuner.predict(X, batch_size=batch_size)

    torch.testing.assert_close(outputs, expected)
    assert all(module.training for module in tuner.model.modules())


class Detached(nn.Module):
    """Computes its features without a gradient, as many feature extractors do."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.body, self.spare, self.fc = how, nn.Linear(4, 8), nn.Linear(2, 2), nn.Linear(8, 3)
        if how != "unused":
            del self.spare

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.how != "no_grad"):
            features = self.body(x)
        return self.fc(features.detach() if self.how == "detach" else features)


@pytest.mark.parametrize(
    ("how", "names"), [("no_grad", "body.weight"), ("detach", "body.weight"), ("unused", "spare.weight"), ("plain", "")]
)
def test_parameters_that_get_no_gradient_are_named_once(how: str, names: str, caplog: pytest.LogCaptureFixture) -> None:
    data = torch.randn(12, 4), torch.arange(12) % 3
    FineTuner(Detached(how), device="cpu").fit(data, epochs=2, batch_size=4, progress=False)
    said = [record.message for record in caplog.records if "got no gradient" in record.message]
    assert len(said) == bool(names)
    assert not names or f"2 trainable parameters ({names}" in said[0]


def test_frozen_parameters_are_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    data = torch.randn(12, 4), torch.arange(12) % 3
    tuner = FineTuner(Detached("no_grad"), device="cpu")
    tuner.fit(data, strategy="linear_probe", progress=False)
    assert "got no gradient" not in caplog.text


def test_a_pass_of_evaluation_without_a_sample_is_an_error(net, blobs) -> None:
    X, y = blobs(12)
    tuner = FineTuner(net(), device="cpu")
    empty = DataLoader(TensorDataset(X, y), batch_size=40, drop_last=True)
    for verb in (tuner.evaluate, lambda data: tuner.fit((X, y), data), lambda data: tuner.find_lr(data, steps=10)):
        with pytest.raises(DataError, match=r"gave no sample in pass 1.*drop_last needs at least batch_size"):
            verb(empty)


def test_time_major_batches_count_by_their_targets() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn = nn.GRU(2, 4)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.rnn(x)[1][-1])

    X, y = torch.randn(5, 14, 2, generator=torch.Generator().manual_seed(1)), torch.arange(14) % 2

    def loader(size: int) -> DataLoader[Any]:
        return DataLoader(range(14), batch_size=size, collate_fn=lambda rows: (X[:, rows], y[rows]))  # type: ignore

    def tuner(batches: int) -> FineTuner:
        return FineTuner(Recurrent(), device="cpu", optimizer="sgd", gradient_accumulation_steps=batches)

    few, whole = tuner(4), tuner(1)
    expected = F.cross_entropy(Recurrent()(X), y).item()
    assert few.evaluate(loader(4))["loss"] == pytest.approx(expected, abs=1e-4)
    few.fit(loader(4), lr=0.1, progress=False)
    whole.fit(loader(14), lr=0.1, progress=False)
    for one, other in zip(few.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("n", [5, 9])
def test_a_last_batch_of_one_joins_the_one_before_for_norms_without_statistics(n: int, blobs) -> None:
    X, y = blobs(n)
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    tuner = FineTuner(nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 3)), device="cpu")
    assert "val_loss" in tuner.fit((X, y), (X, y), batch_size=4, progress=False)[0]
    assert tuner.predict(X, batch_size=4).shape == (n, 3)
    assert "loss" in tuner.evaluate((X, y), batch_size=4)
    loader = DataLoader(TensorDataset(X, y), batch_size=4)
    with pytest.raises(DataError, match=r"needs several.*drop_last=True"):
        tuner.fit(loader)
    tuner.fit(DataLoader(TensorDataset(X, y), batch_size=4, drop_last=True), progress=False)  # the advice
    with pytest.raises(DataError, match="leaves no batch of one sample"):
        tuner.fit((X, y), batch_size=1)


def test_predictions_are_plain_tensors(net) -> None:
    class Dressed(Tensor):
        pass

    class Kept(FineTuner):
        def predict_step(self, batch: Any) -> Tensor:
            return super().predict_step(batch).as_subclass(Dressed)

    for kind in (FineTuner, Kept):
        assert type(kind(net(), device="cpu").predict(torch.zeros(3, 4).as_subclass(Dressed))) is Tensor


# ---------------------------------------------------------------------- memory that runs out


class Exhausted(torch.autograd.Function):
    """The identity, whose backward pass fails."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")


class Narrow(nn.Module):
    """A float64 model that runs out of memory on more than `limit` samples, forward or backward."""

    def __init__(self, limit: int | None = 5, *, norm: bool = False, backward: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8) if norm else nn.Identity(), nn.Tanh())
        self.head = nn.Linear(8, 3)
        self.double()
        self.limit, self.backward = limit, backward
        self.tried: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.tried.append(len(x))
        x = self.body(x)
        if self.limit is not None and len(x) > self.limit:
            if not self.backward:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            x = Exhausted.apply(x) if x.requires_grad else x
        return self.head(x)


def narrow_data(blobs: Any, n: int = 22) -> tuple[Tensor, Tensor]:
    X, y = blobs(n)
    return X.double(), y


def assert_alike(one: FineTuner, other: FineTuner, timeless: Any) -> None:
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(value, other.model.state_dict()[name])
    for row, expected in zip(timeless(one.history), timeless(other.history), strict=True):
        assert {k: pytest.approx(v) if isinstance(v, float) else v for k, v in row.items()} == expected


class MeanOfSquares(FineTuner):
    """A step of its own, with a loss that is a mean over samples."""

    def training_step(self, batch: Any) -> Tensor:
        return (self.model(batch[0]) ** 2).mean()


class Reversed(Callback):
    """Pair each sample with another of the batch, as Mixup does, and weigh the targets."""

    def change_batch(self, run: Any, batch: Any) -> Any:
        inputs, targets = batch
        return inputs + inputs.flip(0) * torch.rand((), dtype=inputs.dtype), targets

    def weigh_batch(self, run: Any, batch: Any) -> Any:
        return batch[0], F.one_hot(batch[1], 3) * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("kind", "callbacks"), [(FineTuner, []), (MeanOfSquares, []), (FineTuner, [Reversed()])])
def test_a_batch_that_does_not_fit_trains_in_parts(
    blobs, timeless, caplog, backward: bool, accumulation: int, kind: Any, callbacks: list[Callback]
) -> None:
    def trained(limit: int | None) -> FineTuner:
        model = Narrow(limit, backward=backward)
        tuner: FineTuner = kind(model, device="cpu", optimizer="sgd", gradient_accumulation_steps=accumulation)
        tuner.fit(narrow_data(blobs), epochs=2, batch_size=16, lr=0.1, callbacks=callbacks, progress=False)
        return tuner

    divided = trained(5)

    assert_alike(divided, trained(None), timeless)
    assert caplog.text.count("Out of memory on 16 samples: from now on, at most 8") == 1
    assert caplog.text.count("Out of memory on 8 samples: from now on, at most 4") == 1
    assert [n for n in divided.model.tried if n > 5] == [16, 8]


def test_parts_are_weighted_by_the_targets_that_count(blobs, timeless) -> None:
    X, y = narrow_data(blobs)
    y = torch.where(torch.arange(22) < 9, -100, y)

    def trained(limit: int | None) -> FineTuner:
        loss = nn.CrossEntropyLoss(ignore_index=-100)
        tuner = FineTuner(Narrow(limit), device="cpu", optimizer="sgd", loss=loss)
        tuner.fit((X, y), epochs=2, batch_size=16, lr=0.1, progress=False)
        return tuner

    assert_alike(trained(3), trained(None), timeless)


@pytest.mark.parametrize("skips", [False, True])
def test_a_repeated_step_is_counted_once(blobs, timeless, skips: bool) -> None:
    """The first batch of the window fits and is counted; the second does not, so both are computed again."""
    X, y = narrow_data(blobs, 18)
    order = [[0, 1, 2], list(range(3, 9)), [9, 10, 11], list(range(12, 18))]

    def trained(limit: int | None) -> FineTuner:
        tuner = FineTuner(Narrow(limit), device="cpu", optimizer="sgd", gradient_accumulation_steps=2)
        loader = DataLoader(TensorDataset(X, y), batch_sampler=order)
        tuner.fit(loader, epochs=2, lr=0.1, callbacks=[SkipNonFinite()] if skips else [], progress=False)
        return tuner

    assert_alike(trained(4), trained(None), timeless)


def test_a_failed_attempt_leaves_no_batch_statistics(blobs, state_of, same) -> None:
    def trained(limit: int, batch_size: int, accumulation: int) -> FineTuner:
        model = Narrow(limit, norm=True, backward=True)
        tuner = FineTuner(model, device="cpu", gradient_accumulation_steps=accumulation)
        loader = DataLoader(TensorDataset(*narrow_data(blobs, 16)), batch_size=batch_size)
        tuner.fit(loader, epochs=1, progress=False)
        return tuner

    one, other = trained(4, 8, 1), trained(4, 4, 2)
    assert same(state_of(one.model), state_of(other.model))
    assert one.model.body[1].num_batches_tracked == 4


def test_a_resumed_run_keeps_the_size_of_its_parts(blobs, state_of, same, tmp_path) -> None:
    def trained(*callbacks: Callback, **options: Any) -> FineTuner:
        tuner = FineTuner(Narrow(norm=True), device="cpu")
        tuner.fit(narrow_data(blobs), epochs=2, batch_size=16, callbacks=callbacks, progress=False, **options)
        return tuner

    class Stop(Callback):
        only_watches = True

        def on_epoch_begin(self, run: Any) -> None:
            if run.epoch == 1:
                raise KeyError

    whole = trained()
    with pytest.raises(KeyError):
        trained(Stop(), checkpoint_dir=tmp_path)
    resumed = trained(resume_from=tmp_path)

    assert same(state_of(resumed.model), state_of(whole.model))
    assert len(resumed.history) == 2
    assert max(whole.model.tried) == 16
    assert max(resumed.model.tried) <= 5


def test_evaluation_and_prediction_run_in_parts(blobs) -> None:
    X, y = narrow_data(blobs)
    divided, whole = (FineTuner(Narrow(limit), device="cpu") for limit in (5, None))

    torch.testing.assert_close(divided.predict(X), whole.predict(X))
    assert divided.evaluate((X, y)) == pytest.approx(whole.evaluate((X, y)))
    assert divided.predict((X, y)).shape == (22, 3)
    history = divided.fit((X, y), val=(X, y), batch_size=4, progress=False)
    assert history[0]["val_loss"] == pytest.approx(divided.evaluate((X, y), batch_size=4)["loss"])


class Wide(nn.Module):
    """A model whose activations of one sample take 4 MB."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.unsqueeze(1).expand(-1, 2**18, -1).tanh().mean(1))


def test_memory_of_a_gpu_that_runs_out_divides_the_batches(blobs, timeless, accelerator, caplog) -> None:
    def trained() -> FineTuner:
        tuner = FineTuner(Wide(), device=accelerator, precision="fp32", optimizer="sgd")
        tuner.fit(blobs(16), epochs=2, batch_size=16, lr=0.1, progress=False)
        return tuner

    whole = trained()
    with limited(accelerator, 48 << 20):
        assert_alike(trained(), whole, timeless)
    assert "Out of memory on 16 samples" in caplog.text


class Later(Narrow):
    """A model that runs out of memory from the beginning of training on, and not while a cache is tried."""

    begun: ClassVar[list[bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.begun and self.limit is not None and len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.head(self.body(x))


class Begin(Callback):
    def on_epoch_begin(self, run: Any) -> None:
        Later.begun.append(True)

    def on_fit_end(self, run: Any) -> None:
        Later.begun.clear()


@pytest.mark.parametrize("kind", [Narrow, Later])
def test_a_cached_prefix_and_parts_give_the_same(blobs, timeless, caplog, kind: type[Narrow]) -> None:
    def trained(limit: int | None) -> FineTuner:
        tuner = FineTuner(kind(limit), device="cpu", optimizer="sgd").freeze("body")
        options = {"cache": "memory", "callbacks": [Begin()], "progress": False}
        tuner.fit(narrow_data(blobs), epochs=3, batch_size=16, lr=0.1, **options)
        return tuner

    with caplog.at_level(logging.INFO, "finetune"):
        assert_alike(trained(5), trained(None), timeless)
    assert ("does not hold a whole batch" in caplog.text) == (kind is Narrow)
    assert caplog.text.count("at most 4 run through the model") == 1


def test_one_sample_that_does_not_fit_and_other_errors_pass(blobs) -> None:
    with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\. Even one sample at a time"):
        FineTuner(Narrow(0, backward=True), device="cpu").fit(narrow_data(blobs), batch_size=16)
    with pytest.raises(torch.OutOfMemoryError):  # already of the two samples that the model is tried on
        FineTuner(Narrow(0), device="cpu").fit(narrow_data(blobs), batch_size=16)

    class Broken(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        Broken(Narrow(None), device="cpu").fit(narrow_data(blobs), batch_size=16)
