"""The frozen prefix: training on stored activations is training, bit for bit, or it is declined."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.caching.declined import Declined
from finetune.caching.prefix.cut import cut_prefix
from finetune.caching.prefix.prefix import Prefix
from finetune.caching.prefix.replay import DivergedError
from finetune.model.freezing import train_mode, train_only
from finetune.model.outputs import call
from finetune.nested import tensors_of

WIDTH = 6


class Applied(nn.Module):
    """A model of the layers in `parts`, used as `forward` says."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._forward(self, *args, **kwargs)


def linear(inputs: int = WIDTH, outputs: int = WIDTH) -> nn.Linear:
    return nn.Linear(inputs, outputs)


def cut(model: nn.Module, train: Sequence[str], inputs: Any) -> Prefix | Declined:
    train_only(model, train)
    train_mode(model)
    return cut_prefix(model, inputs)


def split(model: nn.Module, train: Sequence[str], inputs: Any) -> Prefix:
    prefix = cut(model, train, inputs)
    assert isinstance(prefix, Prefix), prefix
    return prefix


def trained(model: nn.Module, batches: Sequence[Any], prefix: Prefix | None) -> dict[str, Tensor]:
    """Train two epochs by hand, from stored activations if there is a prefix; return all that the model is."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    store = [prefix.compute(batch) for batch in batches] if prefix else []
    for _ in range(2):
        for position, batch in enumerate(batches):
            if prefix:
                with prefix.serving(batch, store[position]):
                    output = call(model, batch)
            else:
                output = call(model, batch)
            loss = sum((tensor.square() / 2 + tensor).mean() for tensor in tensors_of(output) if tensor.requires_grad)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {**model.state_dict(), "the random state": torch.get_rng_state()}


def unequal(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Return the names of what is not the same bit for bit; training that blows up ends in NaN either way."""
    return [name for name in one if not torch.allclose(one[name], other[name], rtol=0, atol=0, equal_nan=True)]


def same_training(model: nn.Module, train: Sequence[str], batches: Sequence[Any]) -> Prefix:
    """Check that training from stored activations is training."""
    prefix = split(model, train, batches[0])
    twin = copy.deepcopy(model)
    before = torch.get_rng_state()
    plain = trained(twin, batches, None)
    torch.set_rng_state(before)
    cached = trained(model, batches, prefix)
    assert not unequal(plain, cached)
    assert "forward" not in model.__dict__
    return prefix


def batches(*shape: int, sizes: Sequence[int] = (4, 3)) -> list[Tensor]:
    return [torch.randn(size, *shape) for size in sizes]


# Random modules. Each maps [N, WIDTH] to [N, WIDTH]; which parts train is drawn too.


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
    """Two ways that meet, in a dictionary."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other, self.join = one, other, nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        ways = self._ways(x.clone())
        return self.join(torch.cat([ways["one"], ways["other"]], dim=1))

    def _ways(self, x: Tensor) -> dict[str, Tensor]:
        return {"one": self.one(x.clone()), "other": self.other(x)}


class Twice(nn.Module):
    """One layer that is called twice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.tanh(self.inner(x)))


class Bare(nn.Module):
    """Parameters of no layer, views, and a slice that is written in place."""

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
    """Two tensors out, one of them its input."""

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
    """A random model whose last layer trains, and every other part as drawn: mostly the later ones."""
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


@given(model=models(), seed=st.integers(0, 100))
def test_training_from_stored_activations_is_training(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    data = batches(WIDTH)
    try:
        plain = trained(copy.deepcopy(model), data, None)
    except RuntimeError:  # autograd's own refusal: two in-place layers in a row
        reject()
    prefix = cut_prefix(model, data[0])
    if isinstance(prefix, Declined):
        assert "before any frozen layer" in prefix.reason
        return
    torch.manual_seed(0)
    cached = trained(model, data, prefix)
    assert not unequal(plain, cached)


# What the boundary may cut through.


def frozen_then(head: Callable[[Any, Tensor], Any], **parts: nn.Module | nn.Parameter) -> Applied:
    return Applied(head, body=nn.Sequential(linear(), nn.ReLU(inplace=True)), head=linear(), **parts)


def test_only_what_is_read_past_the_boundary_is_stored() -> None:
    tokens = Applied(lambda m, x: m.head(m.body(x)[:, 0]), body=nn.LayerNorm(WIDTH), head=linear())
    prefix = same_training(tokens, ["head.*"], batches(5, WIDTH))
    assert [spec.shape for spec in prefix.specs] == [(WIDTH,)]  # the class token, and not all five
    assert prefix.bytes_per_sample == 4 * WIDTH
    assert prefix.modules == ("body",)
    assert not prefix.reads_inputs
    assert prefix.cause.startswith("the trainable parameter 'head.")


def test_several_tensors_cross_it() -> None:
    def forward(m: Any, x: Tensor) -> dict[str, Tensor]:
        early = m.stem(x)
        return {"logits": m.head(m.body(early)) + early, "skip": m.head(early)}

    model = Applied(forward, stem=linear(), body=linear(), head=linear())
    assert len(same_training(model, ["head.*"], batches(WIDTH)).specs) == 2


def test_a_tensor_that_is_returned_twice_is_stored_once() -> None:
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


def test_a_keyword_model_with_a_mask_that_is_read_again() -> None:
    def forward(m: Any, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = m.body(m.table(ids))
        return m.head((hidden * mask[..., None]).sum(1))

    model = Applied(forward, table=nn.Embedding(9, WIDTH), body=linear(), head=linear())
    data = [{"ids": torch.randint(9, (n, 5)), "mask": torch.ones(n, 5)} for n in (4, 3)]
    prefix = same_training(model, ["head.*"], data)
    assert [spec.shape for spec in prefix.specs] == [(WIDTH,)]
    assert not prefix.reads_inputs


def test_inputs_that_are_read_past_it_are_handed_on() -> None:
    model = Applied(lambda m, x: m.head(m.body(x)) + m.head(x), body=linear(), head=linear())
    prefix = same_training(model, ["head.*"], batches(WIDTH))
    assert prefix.reads_inputs
    assert len(prefix.specs) == 1


def test_tied_weights_that_train_are_a_boundary_wherever_they_are() -> None:
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


def test_channels_last_stays() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), linear(4 * 16, 2))
    model = layers.to(memory_format=torch.channels_last)
    data = [batch.to(memory_format=torch.channels_last) for batch in batches(3, 8, 8)]
    prefix = same_training(model, ["1.*", "3.*"], data)
    assert prefix.specs[0].shape == (6, 6, 4)  # in the order in which it lies in memory


def test_what_is_written_in_place_past_it_does_not_damage_what_is_stored() -> None:
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


def test_a_value_that_decides_is_read_for_real() -> None:
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
def test_whether_a_mask_hides_anything_is_no_decision(padding: tuple[int, int], train: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, intermediate_size=16))
    masks = [torch.ones(4, 6, dtype=torch.int64) for _ in padding]
    for mask, hidden in zip(masks, padding, strict=True):
        mask[:, 6 - hidden :] = 0
    same_training(model, [train], [{"input_ids": torch.randint(20, (4, 6)), "attention_mask": mask} for mask in masks])


def test_frozen_modules_are_not_run_in_a_replay() -> None:
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


# Trap 43: stored activations serve the untouched batch and nothing else.


def head_only() -> tuple[Applied, Prefix, Tensor, tuple[Tensor, ...]]:
    model = frozen_then(lambda m, x: m.head(m.body(x)))
    prefix = split(model, ["head.*"], x := torch.randn(4, WIDTH))
    wrong = tuple(tensor + 1 for tensor in prefix.compute(x))  # to tell a replay from a whole pass
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


def test_trap_43_another_autocast_runs_whole() -> None:
    model, prefix, x, wrong = head_only()
    with prefix.serving(x, wrong), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x), model.head(model.body(x)))


def test_a_prefix_is_cut_and_used_within_autocast() -> None:
    model, x = nn.Sequential(linear(), nn.ReLU(), linear()), torch.rand(4, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        model(x)  # leaves copies of weights behind
        prefix = split(model, ["2"], x)
        (stored,) = prefix.compute(x)
        plain = model(x)
        with prefix.serving(x, (stored,)):
            served = model(x)
        assert served.requires_grad
    assert stored.dtype == served.dtype == torch.bfloat16
    assert torch.equal(served, plain)


def test_the_model_is_itself_again_also_after_an_exception() -> None:
    model, prefix, x, stored = head_only()
    before = {name: module.__dict__.copy() for name, module in model.named_modules()}
    with pytest.raises(KeyError), prefix.serving(x, stored):
        raise KeyError
    model.head.forward = lambda *args: 1 / 0
    with pytest.raises(ZeroDivisionError), prefix.serving(x, stored):
        model(x)
    del model.head.forward
    assert {name: module.__dict__ for name, module in model.named_modules()} == before


def test_trap_42_a_prefix_knows_when_it_no_longer_holds() -> None:
    model, prefix, _, _ = head_only()
    assert prefix.holds()
    with torch.no_grad():
        model.body[0].weight.mul_(2)
    assert not prefix.holds()
    model, prefix, _, _ = head_only()
    train_only(model, ["*"])
    assert not prefix.holds()


def test_a_batch_of_another_kind_is_refused() -> None:
    _, prefix, x, _ = head_only()
    assert prefix.accepts(torch.randn(9, WIDTH))
    for other in (x.double(), torch.randn(4, 2, WIDTH), (x, x), {"x": x}):
        assert not prefix.accepts(other)
        with pytest.raises(DivergedError):
            prefix.compute(other)


# What is declined, and why.


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def whole(m: Any, x: Tensor) -> Tensor:
    return m.head(m.body(x))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (nn.Sequential(nn.Dropout(0.5)), "before any frozen layer"),
        (nn.Sequential(linear(), Centred()), "mix the samples"),
        (nn.Identity(), "'head.weight' comes before any frozen layer"),
        (Applied(lambda m, x: m.inner(F.dropout(x, 0.5)), inner=linear()), "a random draw in 'body'"),
        (Applied(lambda m, x: m.inner(x.mul_(2)), inner=linear()), "changes its input in place"),
    ],
    ids=["no parameters", "mixing", "nothing", "random", "input changed"],
)
def test_declined(body: nn.Module, reason: str) -> None:
    said = cut(Applied(whole, body=body, head=linear()), ["head.*"], torch.randn(4, WIDTH))
    assert isinstance(said, Declined)
    assert reason in said.reason


def test_declined_train_mode_norms() -> None:
    norm = nn.BatchNorm1d(WIDTH)
    model = Applied(whole, body=nn.Sequential(norm, linear()), head=linear())
    train_only(model, ["head.*"])
    norm.train()
    said = cut_prefix(model, torch.randn(4, WIDTH))
    assert isinstance(said, Declined)
    assert said.reason.startswith("a batch norm in 'body.0' that runs on the statistics of the batch comes before")


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_declined_hooks_of_the_user(register: str) -> None:
    model = frozen_then(whole)
    getattr(model.body[0], register)(lambda *args: None)
    said = cut(model, ["head.*"], torch.randn(4, WIDTH))
    assert isinstance(said, Declined)
    assert said.reason.startswith("a forward hook watches")


def test_hooks_past_the_boundary_are_welcome() -> None:
    model = frozen_then(whole)
    seen: list[Any] = []
    model.head.register_forward_hook(lambda module, args, output: seen.append(type(args[0])))
    same_training(model, ["head.*"], batches(WIDTH))
    assert set(seen) == {Tensor}


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (torch.randn(1, WIDTH), "one sample"),
        ("words", "are not tensors"),
        ((torch.randn(4, WIDTH), torch.randn(3, WIDTH)), "share a first dimension"),
        (torch.randn(4, WIDTH, requires_grad=True), "inputs require a gradient"),
    ],
)
def test_declined_inputs(inputs: Any, reason: str) -> None:
    said = cut(frozen_then(whole), ["head.*"], inputs)
    assert isinstance(said, Declined)
    assert reason in said.reason


def test_what_picks_samples_by_their_values_runs_again() -> None:
    model = frozen_then(lambda m, x: m.head(m.body(x)[x[:, 0] > 0]).sum(0, keepdim=True))
    same_training(model, ["head.*"], batches(WIDTH))
