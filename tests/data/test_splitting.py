from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.sources.arrays import Arrays
from finetune.data.sources.open_source import open_source
from finetune.data.splitting import few_shot, split
from finetune.errors import ArgumentError, DataError
from tests.helpers.datasets import Items, Numbers


def test_few_shot_draws_n_samples_per_class_reproducibly() -> None:
    targets = torch.tensor([0, 1, 2] * 8)
    source = Arrays(torch.arange(24.0), targets)
    few, rest = few_shot(source, 3, seed=1)
    assert few.targets.bincount().tolist() == [3, 3, 3]
    assert sorted([*few.inputs[few.indices].tolist(), *rest.inputs[rest.indices].tolist()]) == list(range(24))
    assert torch.equal(few.indices, few_shot(source, 3, seed=1)[0].indices)
    assert not torch.equal(few.indices, few_shot(source, 3, seed=2)[0].indices)


@pytest.mark.parametrize(
    ("targets", "shots", "error", "message"),
    [
        (torch.tensor([0, 1, 1]), 1, DataError, "Class 0 has 1 samples"),
        (torch.tensor([0.5, 1.0]), 1, DataError, "needs class targets"),
        (torch.tensor([0, 1]), 0, ArgumentError, "Expected shots to be a whole number of at least 1, but got 0"),
    ],
)
def test_few_shot_errors(targets: torch.Tensor, shots: int, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        few_shot(Arrays(torch.zeros(len(targets)), targets), shots)


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=200),
    st.sampled_from([0.01, 0.1, 0.2, 0.5, 0.9, 0.99]),
    st.integers(0, 5),
)
def test_split_is_stratified_complete_and_keeps_every_class(labels: list[int], fraction: float, seed: int) -> None:
    source = open_source((torch.arange(len(labels)), labels))
    if max(np.bincount(labels)) < 2:
        with pytest.raises(DataError, match="too few"):
            split(source, fraction, seed)
        return
    train, val = split(source, fraction, seed)
    assert isinstance(train, Arrays)
    assert isinstance(val, Arrays)
    assert sorted([*train.indices.tolist(), *val.indices.tolist()]) == list(range(len(labels)))
    assert train.indices.tolist() == sorted(train.indices.tolist())
    assert set(train.targets.tolist()) == set(labels)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        given_up = int((val.targets == label).sum())
        assert given_up <= count * fraction + 1.5
        assert given_up >= min(int(count * fraction), count - 1)
    again = split(source, fraction, seed)[1]
    assert isinstance(again, Arrays)
    assert torch.equal(val.indices, again.indices)


def test_split_of_many_small_classes_reaches_the_fraction() -> None:
    source = open_source((torch.zeros(300), np.repeat(np.arange(100), 3)))
    train, val = split(source, 0.2)
    assert (len(train), len(val)) == (240, 60)
    assert not torch.equal(val.targets, split(source, 0.2, seed=1)[1].targets)


def test_split_of_regression_and_its_errors() -> None:
    source = open_source((torch.zeros(10, 1), torch.rand(10)))
    assert [len(part) for part in split(source, 0.3)] == [7, 3]
    for fraction in (0.0, 1.0, -1):
        with pytest.raises(ArgumentError, match="fraction"):
            split(source, fraction)
    with pytest.raises(DataError, match="no length"):
        split(open_source(Numbers()))
    with pytest.raises(DataError, match="too few"):
        split(open_source((torch.zeros(1), [0])))
    with pytest.raises(DataError, match="too few"):
        split(open_source(Items([])))
