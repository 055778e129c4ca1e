"""Recipes as callbacks: averages of weights, mixed pictures, class weights, L2-SP; each against it written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from finetune import FineTuner, Phase, StepOutput, callbacks
from finetune.callbacks import EMA, L2SP, SWA, Callback, ClassWeights, EarlyStopping, Mixup
from finetune.errors import ArgumentError


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


# ---------------------------------------------------------------------- EMA


def test_the_average_is_that_of_all_updates_with_its_statistics(net, blobs, state_of) -> None:
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


def test_training_goes_on_from_its_own_weights_as_without_an_average(net, blobs, state_of, same) -> None:
    plain, averaged = States(state_of), States(state_of)
    for states, added in ((plain, []), (averaged, [EMA(0.9)])):
        FineTuner(net(), device="cpu").fit(blobs(), blobs(9), epochs=3, batch_size=4, callbacks=[*added, states])

    assert all(same(one, other) for one, other in zip(plain.steps, averaged.steps, strict=True))
    assert all(same(one, other) for one, other in zip(plain.begun, averaged.begun, strict=True))
    assert not same(plain.ended[0], averaged.ended[0])


@pytest.mark.parametrize("with_val", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_the_average_is_what_is_evaluated_and_kept(net, blobs, state_of, same, tmp_path, with_val, first) -> None:
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
def test_a_run_with_an_average_resumes_bit_for_bit(net, blobs, state_of, same, timeless, tmp_path, make, cut) -> None:
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


@pytest.mark.parametrize("make", [lambda: EMA(1.0), lambda: EMA(0.0), lambda: SWA(1.0), lambda: SWA(-0.1)])
def test_an_average_of_nothing_is_refused(make: Any) -> None:
    with pytest.raises(ArgumentError, match=r"Expected (decay|start) to be"):
        make()


# ---------------------------------------------------------------------- SWA


def test_swa_is_the_mean_over_the_last_epochs_with_statistics_of_its_own(net, blobs, state_of, same) -> None:
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


# ---------------------------------------------------------------------- Mixup


class Seen(FineTuner):
    """Note the batches that the training step gets."""

    def training_step(self, batch: Any) -> StepOutput:
        self.batches = [*getattr(self, "batches", []), (batch[0].clone(), batch[1].clone())]
        return super().training_step(batch)


def pictures(n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 6, 6, generator=generator), torch.arange(n) % 3


def small() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(("alpha", "cutmix"), [(0.5, 0.0), (0.0, 1.0), (0.5, 1.0)])
def test_mixup_mixes_as_torchvision_does(alpha: float, cutmix: float) -> None:
    plain, mixed, again = (Seen(small(), device="cpu") for _ in range(3))
    plain.fit(pictures(), batch_size=4)
    mixed.fit(pictures(), batch_size=4, callbacks=[Mixup(alpha, cutmix)])
    again.fit(pictures(), batch_size=4, callbacks=[Mixup(alpha, cutmix)])

    assert any(not torch.equal(X, other) for (X, _), (other, _) in zip(plain.batches, mixed.batches, strict=True))
    for (X, y), (mixture, soft), repeated in zip(plain.batches, mixed.batches, again.batches, strict=True):
        assert soft.shape == (4, 3)
        torch.testing.assert_close(soft.sum(1), torch.ones(4))
        assert torch.equal(mixture, repeated[0])
        share = soft[0, y[0]].item() if y[0] != y[3] else None  # torchvision mixes with the sample before
        if share is not None and not cutmix:
            torch.testing.assert_close(mixture[0], share * X[0] + (1 - share) * X[3])
        if not alpha:
            assert ((mixture == X) | (mixture == X.roll(1, 0))).all()


def test_the_loss_is_that_of_the_mixed_labels_and_the_metric_of_the_likelier(state_of) -> None:
    class Noted(Seen):
        def training_step(self, batch: Any) -> StepOutput:
            self.step = super().training_step(batch)
            return self.step

    tuner = Noted(small(), device="cpu")
    history = tuner.fit(pictures(), batch_size=12, callbacks=[Mixup(1.0)])

    ((_, soft),) = tuner.batches
    logits = tuner.step.outputs
    assert history[0]["loss"] == pytest.approx(-(soft * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5)
    assert history[0]["accuracy"] == pytest.approx((logits.argmax(1) == soft.argmax(1)).float().mean().item())


def test_validation_data_is_not_mixed() -> None:
    tuner = FineTuner(small(), device="cpu")

    history = tuner.fit(pictures(), pictures(), callbacks=[Mixup(1.0)])

    assert history[0]["val_loss"] == pytest.approx(tuner.evaluate(pictures())["loss"])


@pytest.mark.parametrize("cache", ["auto", "memory", False])
def test_trap_43_mixtures_are_never_served_from_the_frozen_prefix(cache: Any, state_of, same, caplog) -> None:
    def trained(cache: Any) -> FineTuner:
        tuner = FineTuner(small(), device="cpu").freeze("0")
        tuner.fit(pictures(), pictures(), epochs=3, batch_size=4, callbacks=[Mixup(1.0)], cache=cache)
        return tuner

    with caplog.at_level("INFO", logger="finetune"):
        assert same(state_of(trained(cache).model), state_of(trained(False).model))
    assert ("a callback changes the inputs" in caplog.text) == (cache is not False)


@pytest.mark.parametrize("cache", ["memory", False])
def test_a_callback_that_changes_labels_alone_leaves_the_prefix_stored(cache: Any, state_of, same, caplog) -> None:
    def trained(cache: Any) -> FineTuner:
        tuner = FineTuner(small(), device="cpu").freeze("0")
        tuner.fit(pictures(), epochs=3, batch_size=4, callbacks=[ClassWeights([1.0, 2.0, 3.0])], cache=cache)
        return tuner

    with caplog.at_level("INFO", logger="finetune"):
        assert same(state_of(trained(cache).model), state_of(trained(False).model))
    assert "a callback changes the inputs" not in caplog.text


def test_what_cannot_be_mixed_is_refused(net, blobs) -> None:
    with pytest.raises(ArgumentError, match="mixes batches of images"):
        FineTuner(net(), device="cpu").fit(blobs(), callbacks=[Mixup()])
    with pytest.raises(ArgumentError, match=r"Mixup is for classification .* this is regression"):
        FineTuner(net(1), device="cpu").fit((torch.randn(8, 4), torch.randn(8)), callbacks=[Mixup()])
    for alpha, cutmix in ((0.0, 0.0), (-1.0, 1.0)):
        with pytest.raises(ArgumentError, match="not both 0"):
            Mixup(alpha, cutmix)


def test_a_mixing_of_ones_own_takes_the_same_door(state_of) -> None:
    class Own(Callback):
        def change_batch(self, run: Any, batch: Any) -> Any:
            return v2.MixUp(num_classes=3)(*batch)

    tuner = Seen(small(), device="cpu")
    tuner.fit(pictures(), batch_size=12, callbacks=[Own()])

    assert tuner.batches[0][1].shape == (12, 3)


# ---------------------------------------------------------------------- classes and labels


def uneven() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, 4, generator=generator), torch.tensor([0] * 14 + [1] * 5 + [2])


@pytest.mark.parametrize("weights", ["balanced", [20 / 42, 20 / 15, 20 / 3]])
def test_class_weights_weigh_each_sample(net, weights: Any) -> None:
    X, y = uneven()
    model = net(dropout=0.0).eval()
    tuner = FineTuner(nn.Sequential(*model[:1], *model[2:]), device="cpu")
    by_class = torch.tensor([20 / 42, 20 / 15, 20 / 3])
    with torch.no_grad():
        losses = F.cross_entropy(tuner.model(X), y, reduction="none")

    history = tuner.fit((X, y), (X, y), batch_size=20, lr=1e-9, callbacks=[ClassWeights(weights)])

    assert history[0]["loss"] == pytest.approx((by_class[y] * losses).mean().item(), rel=1e-4)
    assert history[0]["val_loss"] == pytest.approx(losses.mean().item(), rel=1e-4)
    assert 0 < history[0]["accuracy"] < 1


def test_balanced_weights_let_a_rare_class_be_learned(net) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0] * 95 + [1] * 5)
    X = torch.randn(100, 4, generator=generator) + y[:, None]
    recall = []
    for added in ([], [ClassWeights()]):
        tuner = FineTuner(nn.Linear(4, 2), device="cpu")
        tuner.fit((X, y), epochs=30, lr=1e-2, callbacks=added)
        recall.append((tuner.predict(X[95:]).argmax(1) == 1).float().mean())
    assert recall[1] > recall[0]


def test_class_weights_that_cannot_be_are_refused(net, blobs) -> None:
    loader = DataLoader(TensorDataset(*blobs()), 8)
    with pytest.raises(ArgumentError, match="2 weights, but the model 3 classes"):
        FineTuner(net(), device="cpu").fit(blobs(), callbacks=[ClassWeights([1.0, 2.0])])
    with pytest.raises(ArgumentError, match="'balanced' or a number"):
        ClassWeights("balance")
    with pytest.raises(ArgumentError, match="known only as it is read"):
        FineTuner(net(), device="cpu").fit(loader, callbacks=[ClassWeights()])


def test_label_smoothing_is_an_argument_of_the_loss(net, blobs) -> None:
    tuner = FineTuner(net(dropout=0.0), device="cpu", loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    tuner.fit(blobs(), blobs(9), lr=1e-3)
    X, y = blobs(9)

    smoothed = F.cross_entropy(tuner.predict(X), y, label_smoothing=0.1).item()

    assert tuner.history[0]["val_loss"] == pytest.approx(smoothed, rel=1e-5)
    assert "val_accuracy" in tuner.history[0]


# ---------------------------------------------------------------------- L2-SP


def test_l2sp_pulls_to_the_start_and_the_head_to_zero(net, blobs) -> None:
    start = {name: value.detach().clone() for name, value in net().named_parameters()}

    class Level(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            return 0 * self.model(batch[0]).sum()

    class Push(Callback):
        """Move the weights away before the first update."""

        @torch.no_grad()
        def on_phase_begin(self, run: Any) -> None:
            for parameter in run.model.parameters():
                parameter.add_(1.0)

    tuner = Level(net(), device="cpu", optimizer="sgd", weight_decay=0.5).freeze("4")
    tuner.fit(
        blobs(8), batch_size=4, lr={"*": 0.1, "6": 0.2}, schedule=lambda progress: 1.0,
        callbacks=[L2SP(0.5), Push()],
    )  # fmt: skip

    now = dict(tuner.model.named_parameters())
    for name, value in start.items():
        expected = value + (1.0 if name.startswith("4") else 0.95**2)
        if name.startswith("6"):
            expected = (value + 1) * (0.9**2 if name == "6.weight" else 1.0)
        torch.testing.assert_close(now[name].detach(), expected)


def test_a_run_with_l2sp_resumes_bit_for_bit(net, blobs, state_of, same, tmp_path) -> None:
    whole, resumed = FineTuner(net(), device="cpu"), FineTuner(net(seed=7), device="cpu")
    whole.fit(blobs(), epochs=3, callbacks=[L2SP(1.0)], lr=1e-2, batch_size=8)
    part = FineTuner(net(), device="cpu")

    class Stop(Callback):
        def on_epoch_begin(self, run: Any) -> None:
            if run.epoch == 1:
                raise KeyError

    with pytest.raises(KeyError):
        part.fit(blobs(), epochs=3, callbacks=[L2SP(1.0), Stop()], lr=1e-2, batch_size=8, checkpoint_dir=tmp_path)
    resumed.fit(blobs(), epochs=3, callbacks=[L2SP(1.0)], lr=1e-2, batch_size=8, resume_from=tmp_path)

    assert same(state_of(whole.model), state_of(resumed.model))


def test_recipes_go_together(tmp_path: Path) -> None:
    tuner = FineTuner(small(), device="cpu", loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    added = [Mixup(0.4, 1.0), ClassWeights(), L2SP(), EMA(), EarlyStopping(patience=2)]

    history = tuner.fit(pictures(), pictures(), strategy="lp_ft", epochs=4, batch_size=4, callbacks=added)

    assert len(history) == 4
    assert all(torch.isfinite(value).all() for value in tuner.model.state_dict().values())
    assert set(callbacks.__all__) >= {"EMA", "L2SP", "SWA", "ClassWeights", "Mixup"}
