"""Lazy tensors load their values on first use, and behave like an ordinary tensor."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from finetune.data.loading.lazy_tensor import LazyTensor

VALUES = torch.arange(12, dtype=torch.float32).reshape(4, 3) - 5


def lazy() -> tuple[LazyTensor, list[int]]:
    """Return a lazy tensor of `VALUES`, and a list that grows by one item per load."""
    loads: list[int] = []

    def load() -> Tensor:
        loads.append(1)
        return VALUES.clone()

    return LazyTensor((4, 3), VALUES[:0], load), loads


def test_shape_dtype_and_device_are_known_without_loading():
    inputs, loads = lazy()
    assert (inputs.shape, inputs.dtype, inputs.device) == (VALUES.shape, VALUES.dtype, VALUES.device)
    assert (len(inputs), inputs.dim(), inputs.size(1), inputs.numel()) == (4, 2, 3, 12)
    assert isinstance(inputs, Tensor)
    assert not inputs.requires_grad
    assert inputs._version == 0
    assert inputs.to("cpu") is inputs
    assert not loads


READS: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda x: (x * 2 + 1).tolist(),
    "a slice": lambda x: x[1:3].tolist(),
    "a loop": lambda x: [row.sum().item() for row in x],
    "numpy": lambda x: x.numpy().tolist(),
    "asarray": lambda x: np.asarray(x).tolist(),
    "tolist": lambda x: x.tolist(),
    "repr": repr,
    "comparison": lambda x: bool((x == x.clone()).all()),
    "cat": lambda x: torch.cat([x, x.flip(0)]).tolist(),
    "collate": lambda x: default_collate([x, x]).tolist(),
    "another type": lambda x: x.to(torch.float16).tolist(),
    "copy": lambda x: copy.deepcopy(x).tolist(),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)).tolist(),
    "save": lambda x: torch.save(x, io.BytesIO()),
    "vmap": lambda x: torch.vmap(lambda row: row.sum())(x).tolist(),
    "dlpack": lambda x: torch.from_dlpack(x).tolist(),
    "data": lambda x: x.data.tolist(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reading_loads_once_and_equals_the_ordinary_tensor(read):
    inputs, loads = lazy()
    assert read(inputs) == read(VALUES.clone())
    assert read(inputs) == read(VALUES.clone())
    assert len(loads) == 1


CHANGES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda x: x.mul_(2),
    "an item": lambda x: x.__setitem__(0, 7.0),
    "a view": lambda x: x.view(12).add_(1),
    "a row": lambda x: x[0].add_(1),
    "detached": lambda x: x.detach().add_(1),
    "copied into": lambda x: x.copy_(torch.ones(4, 3)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_stays_and_shows_in_the_version(change):
    inputs, _ = lazy()
    other = VALUES.clone()
    change(inputs), change(other)
    assert torch.equal(inputs + 0, other)
    assert inputs._version == other._version == 1


def test_gradients_reach_it():
    inputs, _ = lazy()
    other = VALUES.clone().requires_grad_()
    layer = nn.Linear(3, 2)
    layer(inputs.requires_grad_()).square().sum().backward()
    layer(other).square().sum().backward()
    assert torch.equal(inputs.grad, other.grad)
    assert type(layer(lazy()[0])) is Tensor
