"""Steps, callbacks and models with side effects: stale activations are never served."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from finetune import FineTuner
from finetune.caching.prefix.cut import cut_prefix
from finetune.caching.prefix.prefix import Prefix
from finetune.callbacks import Callback
from finetune.model.freezing import eval_mode, train_mode, train_only

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3


class Around(nn.Module):
    """A layer with custom code before and after."""

    def __init__(self, layer: nn.Module, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.layer, self.before, self.after, self.factor = layer, before, after, 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.before is None else self.before(self, x)
        x = self.layer(x) * self.factor
        return x if self.after is None else self.after(self, x)


class Net(nn.Module):
    def __init__(self, before: Any = None, after: Any = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), Around(nn.Linear(6, 6), before, after))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.body(x))
        return out


def fitted(cache: Any, cls: Any = FineTuner, callbacks: Any = (), make: Callable[[], nn.Module] = Net) -> FineTuner:
    torch.manual_seed(0)
    tuner: FineTuner = cls(make(), device="cpu").freeze("body")
    data = (X.clone(), Y)
    made = [callback(data) for callback in callbacks]
    tuner.fit(data, data, epochs=3, batch_size=8, lr=1e-2, cache=cache, callbacks=made, progress=False)
    return tuner


def assert_the_same(**arguments: Any) -> None:
    plain, cached = (fitted(cache, **arguments) for cache in (False, "memory"))
    theirs = cached.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in plain.model.state_dict().items())
    assert [row["val_loss"] for row in plain.history] == [row["val_loss"] for row in cached.history]


def hooked(self: Any, x: Tensor, y: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = self.model.body[0].register_forward_hook(lambda module, args, out: seen.append(out))
    loss = cross_entropy(self.model(x), y) * (1 + seen[0].mean())
    handle.remove()
    return loss


def hooked_everywhere(self: Any, x: Tensor, y: Tensor) -> Tensor:
    def doubled(module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        return out * 2 if module is self.model.body[0] else None

    handle = nn.modules.module.register_module_forward_hook(doubled)
    loss = cross_entropy(self.model(x), y)
    handle.remove()
    return loss


def with_other_weights(self: Any, x: Tensor, y: Tensor) -> Tensor:
    weights = {"body.0.weight": self.model.body[0].weight * 2}
    return cross_entropy(torch.func.functional_call(self.model, weights, (x,)), y)


def perturbed(self: Any, x: Tensor, y: Tensor) -> Tensor:
    weight = self.model.body[0].weight
    with torch.no_grad():
        weight.mul_(2)
    loss = cross_entropy(self.model(x), y)
    with torch.no_grad():
        weight.div_(2)
    return loss


def asks_for_a_frozen_gradient(self: Any, x: Tensor, y: Tensor) -> Tensor:
    weight = self.model.body[0].weight.requires_grad_(True)
    loss = cross_entropy(self.model(x), y)
    (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
    weight.requires_grad_(False)
    return loss * (1 + gradient.norm())


def in_train_mode(self: Any, x: Tensor, y: Tensor) -> Tensor:
    nn.Module.train(self.model)
    return cross_entropy(self.model(x), y)


def through_data(self: Any, x: Tensor, y: Tensor) -> Tensor:
    x.data.mul_(0.5)
    return cross_entropy(self.model(x), y)


def with_other_data(self: Any, x: Tensor, y: Tensor) -> Tensor:
    x.data = x.data * 0.5
    return cross_entropy(self.model(x), y)


def through_numpy(self: Any, x: Tensor, y: Tensor) -> Tensor:
    x.numpy()[:] *= 0.5
    return cross_entropy(self.model(x), y)


def through_its_storage(self: Any, x: Tensor, y: Tensor) -> Tensor:
    x.untyped_storage().fill_(0)
    return cross_entropy(self.model(x), y)


def flipped_through_data(self: Any, x: Tensor, y: Tensor) -> Tensor:
    x.data = x.data.flip(1)
    return cross_entropy(self.model(x), y)


def flipped_through_numpy(self: Any, x: Tensor, y: Tensor) -> Tensor:
    x.numpy()[:] = x.numpy()[:, ::-1].copy()
    return cross_entropy(self.model(x), y)


STEPS = [
    hooked,
    hooked_everywhere,
    with_other_weights,
    perturbed,
    asks_for_a_frozen_gradient,
    in_train_mode,
    through_data,
    with_other_data,
    through_numpy,
    through_its_storage,
    flipped_through_data,
    flipped_through_numpy,
]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_trap_43_a_step_that_changes_the_model_or_its_inputs_is_not_served(step: Any) -> None:
    class Own(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            loss: Tensor = step(self, *batch)
            return loss

    assert_the_same(cls=Own)


def looked_at_before(self: Any, x: Tensor, y: Tensor) -> Tensor:
    with torch.inference_mode():
        share = (self.model(x).argmax(1) == y).float().mean()
    return cross_entropy(self.model(x), y) * float(1 + share)


def in_a_transform(self: Any, x: Tensor, y: Tensor) -> Tensor:
    head = {name: value.detach() for name, value in self.model.named_parameters() if value.requires_grad}

    def loss(head: Any) -> Tensor:
        return cross_entropy(torch.func.functional_call(self.model, head, (x,)), y)

    norms = [gradient.norm() for gradient in torch.func.grad(loss)(head).values()]
    return cross_entropy(self.model(x), y) * (1 + torch.stack(norms).sum().detach())


@pytest.mark.parametrize("step", [looked_at_before, in_a_transform], ids=lambda step: step.__name__)
def test_a_step_may_call_the_model_in_other_modes(step: Any) -> None:
    class Own(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            loss: Tensor = step(self, *batch)
            return loss

    assert_close(fitted(False, cls=Own), fitted("memory", cls=Own))


def assert_close(one: FineTuner, other: FineTuner) -> None:
    """Compare with a tolerance: small matrix products round a sample by its position in the batch."""
    losses = [[row["loss"] for row in tuner.history] for tuner in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_step_that_changes_a_weight_temporarily_spoils_no_other_run(tmp_path: Path) -> None:
    class Perturbs(FineTuner):
        def training_step(self, batch: Any) -> Tensor:
            self.model.body[0].weight.data.mul_(2)
            loss = cross_entropy(self.model(batch[0]), batch[1])
            self.model.body[0].weight.data.div_(2)
            return loss

    fitted(str(tmp_path), cls=Perturbs)
    assert_close(fitted(False), fitted(str(tmp_path)))


def weight_in_place(run: Any, data: Any) -> None:
    with torch.no_grad():
        run.model.body[0].weight.mul_(1.5)


def weight_through_data(run: Any, data: Any) -> None:
    run.model.body[0].weight.data.mul_(-1)


def mode(run: Any, data: Any) -> None:
    run.model.body[1].train()


def setting(run: Any, data: Any) -> None:
    run.model.body[2].factor = 2.0


def hook(run: Any, data: Any) -> None:
    run.model.body[0].register_forward_hook(lambda module, args, out: out * 2)


def samples(run: Any, data: Any) -> None:
    data[0].mul_(1.2)


def samples_through_numpy(run: Any, data: Any) -> None:
    data[0].numpy()[:] = data[0].numpy()[:, ::-1].copy()  # a flip keeps every sum


CHANGES = {
    "on_step_end": [weight_in_place, mode, setting, hook],
    "on_epoch_begin": [
        weight_in_place, weight_through_data, mode, setting, hook, samples, samples_through_numpy,
    ],
    "on_evaluate_begin": [weight_in_place, weight_through_data, setting],
}  # fmt: skip


@pytest.mark.parametrize(("when", "change"), [(when, change) for when, those in CHANGES.items() for change in those])
def test_trap_42_a_callback_that_changes_the_model_or_data_ends_the_cache(
    when: str, change: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Own(Callback):
        def __init__(self, data: Any) -> None:
            self.data, self.times = data, 0

    def at_the_second_time(self: Any, run: Any) -> None:
        self.times += 1
        if self.times == 2:
            change(run, self.data)

    setattr(Own, when, at_the_second_time)
    with caplog.at_level(logging.WARNING, logger="finetune"):
        assert_the_same(callbacks=[Own])
    assert "have changed since they were stored" in caplog.text


def keeps(self: Any, x: Tensor) -> Tensor:
    self.seen = [x]
    return x


def by_size(self: Any, x: Tensor) -> Tensor:
    return x * 2 if len(x) > 6 else x


def by_place(self: Any, x: Tensor) -> Tensor:
    return x * (torch.arange(len(x)) % 2)[:, None]


def by_value(self: Any, x: Tensor) -> Tensor:
    return x / 2 if x.max() > 2.5 else x


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (keeps, "keeps a result of its forward pass in 'body.2.seen'"),
        (by_size, "depends on its position or on the batch size"),
        (by_place, "depends on its position or on the batch size"),
        (by_value, "the forward pass branches on the values of a batch in 'body'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_results_that_depend_on_more_than_the_sample_are_declined(
    does: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="finetune"):
        assert_the_same(make=lambda: Net(before=does))
    assert reason in caplog.text


def test_branching_on_values_before_the_boundary_is_declined() -> None:
    class Decides(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x / 2 if x.max() > 2.5 else x)

    assert_the_same(make=Decides)


@pytest.mark.parametrize(("acts", "holds"), [(False, True), (True, False)])
def test_evaluation_is_served_if_eval_mode_makes_no_difference(acts: bool, holds: bool) -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if acts and self.training else x

    model = nn.Sequential(nn.Linear(6, 6), Layer(), nn.Linear(6, 3))
    train_only(model, "2")
    train_mode(model)
    prefix = cut_prefix(model, X)
    assert isinstance(prefix, Prefix)
    assert prefix.share > 0.5
    eval_mode(model)
    assert prefix.holds() is holds
