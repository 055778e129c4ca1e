from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from torch.utils.data import TensorDataset

from finetune.data.audit import audit
from finetune.data.sources.arrays import Arrays
from finetune.data.sources.datasets import MapDataset
from finetune.data.sources.open_source import open_source
from finetune.errors import DataError


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list, pd.Series])
def test_pairs_of_every_kind(kind: Callable[..., Any]) -> None:
    inputs, labels = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [1, 0, 1]
    pair = (inputs if kind is pd.Series else kind(inputs), kind(labels))
    source = open_source(pair)
    assert isinstance(source, Arrays)
    assert source.gather(torch.tensor([2, 0]))[0].tolist() == [[5.0, 6.0], [1.0, 2.0]]
    assert source.gather(torch.tensor([2, 0]))[0].dtype == torch.float32
    assert source.targets is not None
    assert source.targets.dtype == torch.int64
    value, target = source[1]
    assert (value.tolist(), int(target)) == ([3.0, 4.0], 0)
    part = source.subset([2, 1]).subset([1])
    assert part.name(0) == "sample 1"
    assert part[0][0].tolist() == [3.0, 4.0]
    alone = open_source(pair, labeled=False)
    assert alone.targets is None
    assert alone[2].tolist() == [5.0, 6.0]


def test_labels_of_arrays() -> None:
    x = np.zeros((3, 2), dtype=np.float32)
    for names in (
        ["b", "a", "b"],
        np.array(["b", "a", "b"]),
        np.array([b"b", b"a", b"b"]),
        pd.Series(list("bab")),
    ):
        source = open_source((x, names))
        assert source.classes == ("a", "b")
        assert source.targets is not None
        assert source.targets.tolist() == [1, 0, 1]
    assert open_source((x, np.array(["a", "c", "b"])), classes=["c", "b", "a"]).targets.tolist() == [2, 0, 1]
    assert open_source((x, np.ones((3, 2)))).targets.dtype == torch.float32
    assert open_source((x, torch.ones(3, dtype=torch.float64))).targets.dtype == torch.float64
    assert open_source((x, [True, False, True])).targets.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="sample 2 has the class 'z'"):
        open_source((x, ["a", "a", "z"]), classes=["a"])
    with pytest.raises(DataError, match="3 inputs and 2 labels"):
        open_source((x, [0, 1]))
    with pytest.raises(DataError, match="do not form an array"):
        open_source((x, [[1], [1, 2], [3]]))


def test_memory_maps_stay_on_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(6, 2))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    source = open_source((mapped, np.arange(6)))
    assert isinstance(source, Arrays)
    assert source.inputs is mapped
    assert source.gather(torch.tensor([5, 1]))[0].tolist() == [[10.0, 11.0], [2.0, 3.0]]
    backwards = open_source((np.arange(12.0).reshape(6, 2)[::-1], np.arange(6)))
    assert backwards[0][0].tolist() == [10.0, 11.0]


def test_arrays_share_the_users_memory() -> None:
    x = np.zeros((4, 2), dtype=np.float32)
    source = open_source((x, [0, 1, 0, 1]))
    x[3] = 7
    assert source[3][0].tolist() == [7, 7]


def test_tensor_datasets_are_arrays() -> None:
    data = TensorDataset(torch.arange(3.0), torch.tensor([0, 1, 0]))
    assert isinstance(open_source(data), Arrays)
    assert open_source(data, labeled=False).targets is None
    assert isinstance(open_source(TensorDataset(torch.arange(3.0))), MapDataset)


VALUES = np.arange(12.0).reshape(6, 2)
LABELS = np.arange(6) % 2


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f8", ">i2", ">f2", np.longdouble, np.float16, np.uint8, bool])
def test_arrays_of_any_byte_order_and_precision(dtype: Any) -> None:
    values = VALUES.astype(dtype)
    x, y = open_source((values, LABELS.astype(">i8"))).gather(torch.arange(6))
    assert x.tolist() == values.astype(float).tolist()
    assert y.tolist() == LABELS.tolist()
    assert x.dtype in (torch.float32, torch.float16, torch.int16, torch.uint8, torch.bool)
    assert open_source(values, labeled=False)[1].tolist() == values[1].astype(float).tolist()


def test_memory_maps_of_another_byte_order(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VALUES.astype(">f8"))
    source = open_source((np.load(tmp_path / "x.npy", mmap_mode="r"), LABELS))
    assert source.gather(torch.tensor([1]))[0].tolist() == VALUES[[1]].tolist()


def test_float64_stays_for_a_model_in_float64() -> None:
    for values in (VALUES, VALUES.astype(">f8"), np.broadcast_to(VALUES, (6, 2)), VALUES.tolist()):
        assert open_source((values, LABELS), double=True).gather(torch.arange(6))[0].dtype == torch.float64
        assert open_source((values, LABELS)).gather(torch.arange(6))[0].dtype == torch.float32
    assert open_source((VALUES, LABELS), double=True).subset([1])[0][0].dtype == torch.float64


@pytest.mark.parametrize(
    ("X", "y", "words"),
    [
        (scipy.sparse.csr_matrix(VALUES), LABELS, r"sparse csr_matrix.*X\.toarray\(\)"),
        (scipy.sparse.coo_array(VALUES), LABELS, r"sparse coo_array"),
        (torch.tensor(VALUES).to_sparse(), LABELS, r"sparse tensor.*X\.to_dense\(\)"),
        (np.ma.masked_less(VALUES, 3), LABELS, r"3 masked values.*X\.filled\(0\)"),
        (VALUES, np.ma.masked_less(LABELS, 1), r"y has 3 masked values"),
        (LABELS.astype("datetime64[D]"), LABELS, "its dtype is datetime64"),
        (VALUES, LABELS.astype("datetime64[D]"), "labels have the dtype datetime64"),
        (VALUES, LABELS.astype("timedelta64[s]"), "labels have the dtype timedelta64"),
        (np.zeros(6, [("a", "f4")]), LABELS, "not an array of numbers"),
        (np.array(3.0), LABELS, "X is a single value"),
    ],
)
def test_what_is_no_array_of_numbers_is_an_error(X: Any, y: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_source((X, y))


def test_masked_arrays_without_masked_values_are_arrays() -> None:
    assert open_source((np.ma.masked_less(VALUES, -1), LABELS))[1][0].tolist() == VALUES[1].tolist()


@pytest.mark.parametrize(
    "X",
    [
        {"a": torch.tensor(VALUES), "b": VALUES},
        {"a": VALUES.tolist(), "b": LABELS},
        UserDict({"a": torch.tensor(VALUES), "b": torch.tensor(LABELS)}),
        (torch.tensor(VALUES), torch.tensor(LABELS)),
        [VALUES, LABELS, VALUES],
    ],
)
def test_several_arrays_are_gathered_together(X: Any) -> None:
    source = open_source((X, LABELS))
    inputs, targets = source.gather(torch.tensor([4, 1]))
    assert targets.tolist() == [0, 1]
    named = isinstance(inputs, dict)
    assert list(inputs if named else range(len(inputs))) == list(X if named else range(len(X)))
    assert (inputs["a"] if named else inputs[0]).tolist() == VALUES[[4, 1]].tolist()
    part = source.subset([5, 3]).subset([1])
    assert (len(part), part.name(0)) == (1, "sample 3")
    assert int(part[0][1]) == LABELS[3]
    assert source.keys() is None
    assert source.version(values=True) == source.version(values=True)
    assert len(list(part.describe())) == len(X)
    if named:
        assert open_source({**X, "label": LABELS}).gather(torch.tensor([0]))[1].tolist() == [0]
        assert list(open_source(dict(X), labeled=False).gather(torch.tensor([0]))) == list(X)


def test_several_arrays_are_checked() -> None:
    X = torch.tensor(VALUES)
    with pytest.raises(DataError, match=r"differ in length: \{'a': 6, 'b': 3\}"):
        open_source(({"a": X, "b": X[:3]}, LABELS))
    with pytest.raises(DataError, match="one is not numbers"):
        open_source(({"a": X, "b": ["x"] * 6}, LABELS))
    with pytest.raises(DataError, match="'a' have no labels"):
        open_source({"a": X})
    bad = {"a": X.float(), "b": X / torch.tensor([1.0, 0.0])}
    with pytest.raises(DataError, match="NaN or infinite"):
        audit(open_source((bad, LABELS)))


def test_large_arrays_are_identified_by_blocks_of_rows() -> None:
    values = torch.arange(8 * 1024.0).reshape(-1, 1)
    whole, some = Arrays(values).identify(), Arrays(values).identify(limit=values.nbytes // 2)
    assert [len(part) for part in list(whole)[1:]] == [1024] * 8
    assert [float(part[0]) for part in list(some)[1:]] == [0.0, 3 * 1024.0, 6 * 1024.0]
