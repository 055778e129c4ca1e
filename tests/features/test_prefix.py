"""The frozen prefix: training on stored activations is training, bit for bit, or it is declined."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from finetune.features.prefix import DivergedError, Prefix, cut_prefix
from finetune.model.calling import call, tensors_in
from finetune.model.freezing import train_mode, train_only

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


def cut(model: nn.Module, train: Sequence[str], inputs: Any) -> Prefix | str:
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
            loss = sum((tensor.square() / 2 + tensor).mean() for tensor in tensors_in(output) if tensor.requires_grad)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {**model.state_dict(), "the random state": torch.get_rng_state()}


def same_training(model: nn.Module, train: Sequence[str], batches: Sequence[Any]) -> Prefix:
    """Check that training from stored activations is training."""
    prefix = split(model, train, batches[0])
    twin = copy.deepcopy(model)
    before = torch.get_rng_state()
    plain = trained(twin, batches, None)
    torch.set_rng_state(before)
    cached = trained(model, batches, prefix)
    unequal = [name for name, value in plain.items() if not torch.equal(value, cached[name])]
    assert not unequal
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
            lambda: nn.Identity(),
            lambda: nn.GELU(),
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


@settings(max_examples=120)
@given(model=models(), seed=st.integers(0, 100))
def test_training_from_stored_activations_is_training(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    data = batches(WIDTH)
    prefix = cut_prefix(model, data[0])
    if isinstance(prefix, str):
        assert "before anything that is frozen" in prefix
        return
    plain = trained(copy.deepcopy(model), data, None)
    cached = trained(model, data, prefix)
    assert not [name for name, value in plain.items() if not torch.equal(value, cached[name])]
