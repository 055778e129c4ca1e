"""Tensors in nested containers are mapped, moved and counted."""

from __future__ import annotations

import copy
from collections import OrderedDict, UserDict, defaultdict
from types import MappingProxyType
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from finetune.data.loading.lazy_tensor import LazyTensor
from finetune.nested import as_plain, described, is_group, map_tensors, pinned, same_values, tensors_of, to_device
from tests.helpers.containers import Pair, Record


class Encoding(UserDict[str, Any]):
    """Like transformers' BatchEncoding, a mapping with attributes beside its items."""

    extra = "kept"


class Mover:
    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def to(self, device: torch.device) -> Mover:
        return Mover(str(device))


def nested() -> dict[str, Any]:
    t = torch.ones(2)
    return {
        "list": [t, "text"], "tuple": (t, 1), "named": Pair(t, {"z": t}), "record": Record(t, "n"),
        "ordered": OrderedDict(a=t), "default": defaultdict(list, a=t), "encoding": Encoding(a=t),
        "frozen": MappingProxyType({"a": t}), "none": None, "class": Record,
    }  # fmt: skip


def test_to_device_reaches_every_tensor_and_keeps_every_type() -> None:
    before = nested()
    kept = copy.copy(before["encoding"])
    after = to_device(before, "meta")
    for key, value in before.items():
        assert type(after[key]) is type(value) or key == "frozen"
    reached = [
        after["list"][0], after["tuple"][0], after["named"].x, after["named"].y["z"], after["record"].x,
        after["ordered"]["a"], after["default"]["a"], after["encoding"]["a"], after["frozen"]["a"],
    ]  # fmt: skip
    assert all(t.device.type == "meta" for t in reached)
    assert before["encoding"]["a"].device.type == "cpu"
    assert after["encoding"].extra == kept.extra
    assert after["default"].default_factory is list
    assert after["record"].note == "n"
    assert to_device(Mover(), "meta").device == "meta"


class Dressed(Tensor):
    """A subclass that refuses to meet another one."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind not in (cls, Tensor) for kind in types):
            return NotImplemented
        return super().__torch_function__(func, [], args, kwargs or {})


def test_copies_from_and_to_a_gpu_arrive(accelerator: torch.device) -> None:
    x = torch.arange(10_000.0)
    there = to_device({"x": pinned([x])}, accelerator)["x"][0]
    assert there.device.type == accelerator.type
    for _ in range(3):
        assert to_device([there * 2], "cpu")[0].equal(2 * x)  # the host waits for it


def test_only_what_the_host_holds_is_pinned(accelerator: torch.device) -> None:
    host, there = pinned((torch.ones(2), torch.ones(2, device=accelerator)))
    assert host.is_pinned()
    assert there.device.type == accelerator.type


def test_subclasses_become_plain_but_not_those_that_wrap_tensors() -> None:
    lazy = LazyTensor((2,), torch.zeros(1), lambda: torch.ones(2))
    plain = torch.ones(2)
    assert as_plain([plain, lazy])[1] is lazy
    assert as_plain(plain) is plain
    found = as_plain({"a": torch.ones(2).as_subclass(Dressed), "b": (plain, 3)})
    assert type(found["a"]) is Tensor
    assert found["b"][0] is plain


def test_a_packed_sequence_is_one_value() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.zeros(3, 2), torch.zeros(1, 2)])
    assert not is_group(packed)
    assert is_group(Pair(plain := torch.zeros(2), plain))
    assert is_group([1])
    assert described(packed).startswith("float32 [4, 2]")
    assert described("x") == "a str"


leaves = st.sampled_from([torch.zeros(2), torch.ones(3, 1), 1, "text", None])
nestings = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@given(nestings)
def test_map_tensors_reaches_the_tensors_that_tensors_of_returns(nesting: Any) -> None:
    mapped = map_tensors(lambda tensor: tensor + 1, nesting, None)

    for before, after in zip(tensors_of(nesting), tensors_of(mapped), strict=True):
        assert torch.equal(before + 1, after)


def test_objects_with_a_to_method_are_left_alone_without_a_device() -> None:
    mover = Mover()

    assert map_tensors(lambda tensor: tensor, [mover], None)[0] is mover


def test_same_values_counts_nan_as_equal() -> None:
    nan = torch.tensor([1.0, float("nan")])

    assert same_values(nan, nan.clone())
    assert not same_values(nan, torch.tensor([float("nan"), 1.0]))
    assert not same_values(torch.zeros(2), torch.zeros(1, 2))
