"""Training from stored activations equals plain training, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from torch import Tensor, nn

from finetune.caching.declined import Declined
from finetune.caching.prefix.cut import cut_prefix
from finetune.caching.prefix.prefix import Prefix
from finetune.caching.prefix.replay import DivergedError
from finetune.model.freezing import train_mode, train_only
from tests.helpers.prefixes import (
    WIDTH,
    Applied,
    batches,
    frozen_then,
    linear,
    same_training,
    split,
    trained,
    unequal,
    whole,
)

# Random modules. Each maps [N, WIDTH] to [N, WIDTH]; their trainable parts are random too.


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, in_place: bool) -> None:
        super().__init__()
        self.inner, self.in_place = inner, in_place

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x.clone() if self.in_place else x)
        if self.in_place:
            out += x
            return out
        return out + x


class Branches(nn.Module):
    """Two branches that meet, in a dictionary."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other, self.join = one, other, nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        ways = self._ways(x.clone())
        return self.join(torch.cat([ways["one"], ways["other"]], dim=1))

    def _ways(self, x: Tensor) -> dict[str, Tensor]:
        return {"one": self.one(x.clone()), "other": self.other(x)}


class Twice(nn.Module):
    """A layer called twice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.tanh(self.inner(x)))


class Bare(nn.Module):
    """Parameters outside of layers, views, and a slice written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        left, right = x.chunk(2, dim=1)
        out = torch.zeros_like(x)
        out[:, : WIDTH // 2] = right
        out[:, WIDTH // 2 :] = left.relu()
        return out + self.shift


class Pair(nn.Module):
    """Two outputs, one of them the input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleList([inner, Passing()])

    def forward(self, x: Tensor) -> Tensor:
        kept, x = self.inner[1](x, self.inner[0])
        return kept.mul(0.5) + x


class Passing(nn.Module):
    def forward(self, x: Tensor, inner: nn.Module) -> tuple[Tensor, Tensor]:
        return x, inner(x.clone())


def modules() -> st.SearchStrategy[nn.Module]:
    leaves = st.sampled_from(
        [
            lambda: nn.Linear(WIDTH, WIDTH),
            lambda: nn.Linear(WIDTH, WIDTH),
            lambda: nn.BatchNorm1d(WIDTH),
            lambda: nn.LayerNorm(WIDTH),
            lambda: nn.ReLU(inplace=True),
            lambda: nn.Dropout(0.3),
            lambda: nn.Dropout(0.3, inplace=True),
            nn.Identity,
            nn.GELU,
            Bare,
        ]
    ).map(lambda make: make())
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=4).map(lambda parts: nn.Sequential(*parts)),
            st.builds(Residual, inner, st.booleans()),
            st.builds(Branches, inner, inner),
            st.builds(Twice, inner),
            st.builds(Pair, inner),
        ),
        max_leaves=8,
    )


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    """A random model with a trainable last layer; of the other parameters, mostly later ones are trainable."""
    body = nn.Sequential(nn.Linear(WIDTH, WIDTH), *draw(st.lists(modules(), min_size=1, max_size=4)))
    shared = body[0] if draw(st.booleans()) else nn.Identity()
    model = nn.Sequential(body, shared, nn.Linear(WIDTH, 3))
    names = [name for name, _ in model.named_parameters()]
    first = draw(st.integers(0, len(names) - 1))
    chosen = [name for name in names[first:] if draw(st.integers(0, 3))]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen or name.startswith("2."))
    train_mode(model)
    return model


@pytest.mark.no_cover
@given(model=models(), seed=st.integers(0, 100))
def test_training_from_stored_activations_equals_plain_training(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    data = batches(WIDTH)
    try:
        plain = trained(copy.deepcopy(model), data, None)
    except RuntimeError:  # autograd refuses two in-place layers in a row
        reject()
    prefix = cut_prefix(model, data[0])
    if isinstance(prefix, Declined):
        assert "before any frozen layer" in prefix.reason
        return
    torch.manual_seed(0)
    cached = trained(model, data, prefix)
    assert not unequal(plain, cached)


# Boundaries in all kinds of places.


def test_only_tensors_read_past_the_boundary_are_stored() -> None:
    tokens = Applied(lambda m, x: m.head(m.body(x)[:, 0]), body=nn.LayerNorm(WIDTH), head=linear())
    prefix = same_training(tokens, ["head.*"], batches(5, WIDTH))
    assert [spec.shape for spec in prefix.specs] == [(WIDTH,)]  # the class token only, not all five tokens
    assert prefix.bytes_per_sample == 4 * WIDTH
    assert prefix.modules == ("body",)
    assert not prefix.reads_inputs
    assert prefix.cause.startswith("the trainable parameter 'head.")


def test_several_tensors_cross_the_boundary() -> None:
    def forward(m: Any, x: Tensor) -> dict[str, Tensor]:
        early = m.stem(x)
        return {"logits": m.head(m.body(early)) + early, "skip": m.head(early)}

    model = Applied(forward, stem=linear(), body=linear(), head=linear())
    assert len(same_training(model, ["head.*"], batches(WIDTH)).specs) == 2


def test_a_tensor_returned_twice_is_stored_once() -> None:
    class Output(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            out = super().forward(x)
            return {"last": out, "all": (x, out)}

    def forward(m: Any, x: Tensor) -> Tensor:
        given = m.body(x)
        return m.head(given["last"] + given["all"][1])

    model = Applied(forward, body=Output(WIDTH, WIDTH), head=linear())
    assert len(same_training(model, ["head.*"], batches(WIDTH)).specs) == 1


def test_a_boundary_inside_a_block() -> None:
    block = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.2, batch_first=True)
    model = nn.Sequential(linear(), block, nn.Flatten(), linear(4 * WIDTH, 3))
    prefix = same_training(model, ["1.linear1.*", "1.linear2.*", "3.*"], batches(4, WIDTH))
    assert prefix.modules[0] == "0"


def test_keyword_inputs_with_a_mask_that_is_read_past_the_boundary() -> None:
    def forward(m: Any, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = m.body(m.table(ids))
        return m.head((hidden * mask[..., None]).sum(1))

    model = Applied(forward, table=nn.Embedding(9, WIDTH), body=linear(), head=linear())
    data = [{"ids": torch.randint(9, (n, 5)), "mask": torch.ones(n, 5)} for n in (4, 3)]
    prefix = same_training(model, ["head.*"], data)
    assert [spec.shape for spec in prefix.specs] == [(WIDTH,)]
    assert not prefix.reads_inputs


def test_inputs_read_past_the_boundary_are_passed_on() -> None:
    model = Applied(lambda m, x: m.head(m.body(x)) + m.head(x), body=linear(), head=linear())
    prefix = same_training(model, ["head.*"], batches(WIDTH))
    assert prefix.reads_inputs
    assert len(prefix.specs) == 1


def test_tied_trainable_weights_are_a_boundary_wherever_they_are() -> None:
    model = Applied(lambda m, x: m.tied(torch.tanh(m.body(m.first(x)))), first=linear(), body=linear())
    model.tied = model.body
    assert same_training(model, ["body.*"], batches(WIDTH)).modules == ("first",)


def test_dimensions_of_samples_and_windows() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        windows = m.body(x.reshape(len(x) * 2, 2, WIDTH))  # as in a Swin transformer: [N * 2, 2, WIDTH]
        first = m.head(windows).reshape(len(x), 4, WIDTH)
        last = m.head(m.body(x).transpose(0, 1).contiguous().relu())  # [4, N, WIDTH]
        return first + last.transpose(0, 1)

    model = Applied(forward, body=linear(), head=linear())
    same_training(model, ["head.*"], batches(4, WIDTH))


def test_channels_last_is_kept() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), linear(4 * 16, 2))
    model = layers.to(memory_format=torch.channels_last)
    data = [batch.to(memory_format=torch.channels_last) for batch in batches(3, 8, 8)]
    prefix = same_training(model, ["1.*", "3.*"], data)
    assert prefix.specs[0].shape == (6, 6, 4)  # in memory order


def test_writing_in_place_past_the_boundary_leaves_the_store_unchanged() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        out = m.body(x)
        out += m.head(out.clone())
        return out.relu_()

    model = frozen_then(forward)
    prefix = split(model, ["head.*"], x := torch.randn(4, WIDTH))
    stored = prefix.compute(x)
    before = [tensor.clone() for tensor in stored]
    with prefix.serving(x, stored):
        model(x)
    assert all(map(torch.equal, stored, before))
    same_training(model, ["head.*"], batches(WIDTH))


def test_a_value_that_decides_the_path_is_read_in_a_replay() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        out = m.body(x)
        return m.head(out) if bool((x > -100).all()) else m.head(-out)

    model = frozen_then(forward)
    prefix = same_training(model, ["head.*"], batches(WIDTH))
    x = torch.full((4, WIDTH), -200.0)  # takes the other path
    stored = prefix.compute(x)
    with prefix.serving(x, stored):
        assert torch.equal(model(x), model.head(-model.body(x)))


@pytest.mark.parametrize("padding", [(0, 0), (2, 2), (0, 2)], ids=["none", "in all", "in some batches"])
@pytest.mark.parametrize("train", ["classifier.*", "bert.encoder.layer.1.*"])
def test_whether_a_mask_hides_anything_decides_nothing(padding: tuple[int, int], train: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, intermediate_size=16))
    masks = [torch.ones(4, 6, dtype=torch.int64) for _ in padding]
    for mask, hidden in zip(masks, padding, strict=True):
        mask[:, 6 - hidden :] = 0
    same_training(model, [train], [{"input_ids": torch.randint(20, (4, 6)), "attention_mask": mask} for mask in masks])


def test_a_replay_skips_frozen_modules() -> None:
    ran = []

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            ran.append(self)
            return super().forward(x)

    model = nn.Sequential(Counted(WIDTH, WIDTH), Counted(WIDTH, WIDTH), linear())
    prefix = split(model, ["2.*"], x := torch.randn(4, WIDTH))
    stored = prefix.compute(x)
    ran.clear()
    with prefix.serving(x, stored):
        model(x)
    assert not ran
    assert prefix.share == pytest.approx(2 / 3)


# Trap 43: stored activations are served for the unmodified batch only.


def head_only(device: torch.device | str = "cpu") -> tuple[Applied, Prefix, Tensor, tuple[Tensor, ...]]:
    model = frozen_then(lambda m, x: m.head(m.body(x))).to(device)
    prefix = split(model, ["head.*"], x := torch.randn(4, WIDTH).to(device))
    wrong = tuple(tensor + 1 for tensor in prefix.compute(x))  # tells a replay from a whole pass
    return model, prefix, x, wrong


@pytest.mark.parametrize(
    "changed",
    [
        lambda x: x.clone(),
        lambda x: x.flip(0),
        lambda x: 0.5 * x + 0.5 * x.flip(0),
        lambda x: x[:2],
        lambda x: x.add_(0.1),
        lambda x: x.requires_grad_(),
    ],
    ids=["copied", "another view", "mixed", "a part", "changed in place", "attacked"],
)
def test_trap_43_a_step_that_changes_its_inputs_is_not_served(changed: Callable[[Tensor], Tensor]) -> None:
    model, prefix, x, wrong = head_only()
    with prefix.serving(x, wrong):
        assert not torch.equal(model(x), model.head(model.body(x)))  # served
        other = changed(x)
        assert torch.equal(model(other), model.head(model.body(other)))


def test_trap_43_another_autocast_runs_whole(accelerator: torch.device) -> None:
    for device in ("cpu", accelerator.type):
        model, prefix, x, wrong = head_only(device)
        with prefix.serving(x, wrong), torch.autocast(device, torch.bfloat16):
            assert torch.equal(model(x), model.head(model.body(x)))


def test_a_prefix_within_autocast() -> None:
    model, x = nn.Sequential(linear(), nn.ReLU(), linear()), torch.rand(4, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        model(x)  # leaves casts of weights in autocast's cache
        prefix = split(model, ["2"], x)
        (stored,) = prefix.compute(x)
        plain = model(x)
        with prefix.serving(x, (stored,)):
            served = model(x)
        assert served.requires_grad
    assert stored.dtype == served.dtype == torch.bfloat16
    assert torch.equal(served, plain)


def test_the_model_is_restored_after_an_exception() -> None:
    model, prefix, x, stored = head_only()
    before = {name: module.__dict__.copy() for name, module in model.named_modules()}
    with pytest.raises(KeyError), prefix.serving(x, stored):
        raise KeyError
    model.head.forward = lambda *args: 1 / 0
    with pytest.raises(ZeroDivisionError), prefix.serving(x, stored):
        model(x)
    del model.head.forward
    assert {name: module.__dict__ for name, module in model.named_modules()} == before


def test_trap_42_a_prefix_detects_changes_of_the_model() -> None:
    model, prefix, _, _ = head_only()
    assert prefix.holds()
    with torch.no_grad():
        model.body[0].weight.mul_(2)
    assert not prefix.holds()
    model, prefix, _, _ = head_only()
    train_only(model, ["*"])
    assert not prefix.holds()


def test_a_batch_of_another_dtype_shape_or_structure_is_refused() -> None:
    _, prefix, x, _ = head_only()
    assert prefix.accepts(torch.randn(9, WIDTH))
    for other in (x.double(), torch.randn(4, 2, WIDTH), (x, x), {"x": x}):
        assert not prefix.accepts(other)
        with pytest.raises(DivergedError):
            prefix.compute(other)


def test_hooks_past_the_boundary_run() -> None:
    model = frozen_then(whole)
    seen: list[Any] = []
    model.head.register_forward_hook(lambda module, args, output: seen.append(type(args[0])))
    same_training(model, ["head.*"], batches(WIDTH))
    assert set(seen) == {Tensor}


def test_selecting_samples_by_their_values_runs_in_every_step() -> None:
    model = frozen_then(lambda m, x: m.head(m.body(x)[x[:, 0] > 0]).sum(0, keepdim=True))
    same_training(model, ["head.*"], batches(WIDTH))
