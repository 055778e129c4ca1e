"""Nearest neighbors equal a search over all pairs."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data_check import neighbors
from finetune.data_check.neighbors import directions, nearest_neighbors


@given(st.integers(2, 30), st.integers(1, 6), st.integers(1, 12), st.integers(1, 200), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_neighbors_are_the_nearest_of_all_pairs(samples: int, width: int, count: int, at_once: int, seed: int) -> None:
    vectors = torch.randn(samples, width, generator=torch.Generator().manual_seed(seed))
    before, neighbors._DISTANCES_AT_ONCE = neighbors._DISTANCES_AT_ONCE, at_once
    try:
        distances, indices = nearest_neighbors(vectors, count)
    finally:
        neighbors._DISTANCES_AT_ONCE = before
    whole = torch.cdist(vectors.double(), vectors.double())
    whole.fill_diagonal_(torch.inf)
    expected = whole.sort(1).values[:, : min(count, samples - 1)]
    assert torch.allclose(distances.double(), expected, atol=1e-2)
    assert torch.allclose(whole.gather(1, indices), expected, atol=1e-2)


def test_one_sample_has_no_neighbors() -> None:
    distances, indices = nearest_neighbors(torch.zeros(1, 3), 5)
    assert distances.shape == indices.shape == (1, 0)


def test_directions_have_unit_length_or_none() -> None:
    found = directions(torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]]))
    assert found.norm(dim=1).tolist() == [1, 1, 0]
