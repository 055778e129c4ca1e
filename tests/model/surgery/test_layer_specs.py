"""Convert standard layers to plain data and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from finetune.model.surgery.layer_specs import STANDARD_LAYERS, build, describe

flag, size = st.booleans(), st.integers(1, 4)
small = st.floats(0.01, 0.9)


def pairs(n: int, numbers: st.SearchStrategy[int] = size) -> st.SearchStrategy[Any]:
    return st.one_of(numbers, st.tuples(*[numbers] * n))


def convolution(n: int) -> dict[str, st.SearchStrategy[Any]]:
    return {
        "in_channels": st.just(4), "out_channels": st.sampled_from([2, 4]), "kernel_size": pairs(n),
        "stride": st.just(1), "padding": st.one_of(st.sampled_from(["same", "valid"]), pairs(n)), "dilation": pairs(n),
        "groups": st.sampled_from([1, 2]), "bias": flag,
        "padding_mode": st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    }  # fmt: skip


batch_norm = {
    "num_features": size, "eps": small, "momentum": st.none() | small, "affine": flag, "track_running_stats": flag,
}  # fmt: skip
shape = st.one_of(size, st.lists(size, min_size=1, max_size=2))
dropout = {"p": small, "inplace": flag}
inplace = {"inplace": flag}
ARGUMENTS: dict[type[nn.Module], dict[str, st.SearchStrategy[Any]]] = {
    nn.Linear: {"in_features": size, "out_features": size, "bias": flag},
    nn.Bilinear: {"in1_features": size, "in2_features": size, "out_features": size, "bias": flag},
    nn.Identity: {},
    nn.Flatten: {"start_dim": size, "end_dim": st.sampled_from([-1, 5])},
    nn.Conv1d: convolution(1), nn.Conv2d: convolution(2), nn.Conv3d: convolution(3),
    nn.BatchNorm1d: batch_norm, nn.BatchNorm2d: batch_norm, nn.BatchNorm3d: batch_norm,
    nn.LayerNorm: {"normalized_shape": shape, "eps": small, "elementwise_affine": flag, "bias": flag},
    nn.GroupNorm: {"num_groups": st.sampled_from([1, 2]), "num_channels": st.just(4), "eps": small, "affine": flag},
    nn.RMSNorm: {"normalized_shape": shape, "eps": st.none() | small, "elementwise_affine": flag},
    nn.Dropout: dropout, nn.Dropout1d: dropout, nn.Dropout2d: dropout, nn.Dropout3d: dropout, nn.AlphaDropout: dropout,
    nn.ReLU: inplace, nn.ReLU6: inplace, nn.SELU: inplace, nn.SiLU: inplace, nn.Mish: inplace, nn.Hardswish: inplace,
    nn.LeakyReLU: {"negative_slope": small, **inplace}, nn.ELU: {"alpha": small, **inplace},
    nn.GELU: {"approximate": st.sampled_from(["none", "tanh"])},
    nn.Tanh: {}, nn.Sigmoid: {}, nn.Softplus: {"beta": small, "threshold": small},
    nn.AdaptiveAvgPool1d: {"output_size": size},
    nn.AdaptiveAvgPool2d: {"output_size": st.one_of(size, st.tuples(st.none() | size, size))},
    nn.AdaptiveMaxPool2d: {"output_size": st.one_of(size, st.tuples(st.none() | size, size)), "return_indices": flag},
}  # fmt: skip

standard = st.sampled_from(sorted(ARGUMENTS, key=lambda layer: layer.__name__)).flatmap(
    lambda layer: st.builds(layer, **ARGUMENTS[layer])
)


def sequential(children: list[nn.Module], names: list[str]) -> nn.Sequential:
    made = nn.Sequential()
    for name, child in zip(names, children, strict=False):
        made.add_module(name, child)
    return made


nested = st.recursive(
    standard,
    lambda inner: st.builds(
        sequential,
        st.lists(inner, max_size=4),
        st.lists(st.text("abc1", min_size=1, max_size=3), min_size=4, max_size=4, unique=True),
    ),
    max_leaves=8,
)


def facts(module: nn.Module) -> list[Any]:
    """Return a module's type and attributes, with weights as shapes and lists as tuples."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return list(value.shape), str(value.dtype)
        if isinstance(value, nn.Module):
            return facts(value)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return tuple(value) if isinstance(value, (list, tuple)) else value

    return [type(module), {key: plain(value) for key, value in vars(module).items()}]


@given(nested)
def test_a_described_module_is_rebuilt_even_through_json(module: nn.Module) -> None:
    description = describe(module)
    assert description is not None
    for again in (build(description), build(json.loads(json.dumps(description)))):
        assert facts(again) == facts(module)
        again.load_state_dict(module.state_dict())
    assert repr(build(description)) == repr(module)


@pytest.mark.parametrize("layer", ARGUMENTS, ids=lambda layer: layer.__name__)
@given(data=st.data())
def test_every_standard_layer_keeps_its_arguments(layer: type[nn.Module], data: st.DataObject) -> None:
    module = data.draw(st.builds(layer, **ARGUMENTS[layer]))
    again = build(describe(module) or {})
    assert facts(again) == facts(module)
    assert repr(again) == repr(module)


def test_every_standard_layer_is_tested() -> None:
    assert set(STANDARD_LAYERS.values()) == set(ARGUMENTS)


def test_a_layer_used_twice_keeps_both_places() -> None:
    relu = nn.ReLU()
    module = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
    again = build(describe(module) or {})
    assert repr(again) == repr(module)
    again.load_state_dict(module.state_dict())
    x = torch.randn(5, 2)
    assert torch.equal(again(x), module(x))


class Mine(nn.Linear):
    """A custom layer."""


def tied() -> nn.Sequential:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.weight = a.weight
    return nn.Sequential(a, b)


def shared() -> nn.Sequential:
    layer = nn.Linear(2, 2)
    return nn.Sequential(layer, nn.ReLU(), layer)


@pytest.mark.parametrize(
    "module",
    [
        Mine(2, 2),
        nn.Sequential(nn.ReLU(), Mine(2, 2)),
        nn.Sequential(nn.Sequential(nn.Softmax(1))),
        nn.ModuleList([nn.Linear(2, 2)]),
        type("Sequential", (nn.Sequential,), {})(nn.ReLU()),
        type("Linear", (nn.Module,), {})(),
        parametrizations.weight_norm(nn.Linear(2, 2)),
        nn.GRU(2, 2),
        tied(),
        shared(),
    ],
)
def test_a_custom_layer_is_not_described(module: nn.Module) -> None:
    assert describe(module) is None


def test_a_custom_layer_is_not_built() -> None:
    with pytest.raises(KeyError, match="GRU"):
        build({"type": "GRU", "arguments": {}})
