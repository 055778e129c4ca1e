"""Models with a frozen prefix, and training from its stored activations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finetune.caching.declined import Declined
from finetune.caching.prefix.cut import cut_prefix
from finetune.caching.prefix.prefix import Prefix
from finetune.model.freezing import train_mode, train_only
from finetune.model.outputs import call
from finetune.nested import tensors_of

WIDTH = 6


class Applied(nn.Module):
    """A model made of `parts`, with the given forward function."""

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
    """Train for two epochs, from stored activations if given a prefix; return the model's and the random state."""
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
            losses = [(out.square() / 2 + out).mean() for out in tensors_of(output) if out.requires_grad]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {**model.state_dict(), "the random state": torch.get_rng_state()}


def unequal(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Return the names of tensors that differ in any bit. Training that diverges ends in NaN either way."""
    return [name for name in one if not torch.allclose(one[name], other[name], rtol=0, atol=0, equal_nan=True)]


def same_training(model: nn.Module, train: Sequence[str], batches: Sequence[Any]) -> Prefix:
    """Check that training from stored activations equals plain training, and return the prefix."""
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


def frozen_then(head: Callable[[Any, Tensor], Any], **parts: nn.Module | nn.Parameter) -> Applied:
    return Applied(head, body=nn.Sequential(linear(), nn.ReLU(inplace=True)), head=linear(), **parts)


def whole(m: Any, x: Tensor) -> Any:
    return m.head(m.body(x))
