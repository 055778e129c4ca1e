from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import TensorDataset

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
