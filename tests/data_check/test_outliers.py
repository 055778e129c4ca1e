"""Outliers by the distance to their nearest neighbors."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.data_check.neighbors import directions, nearest_neighbors
from finetune.data_check.outliers import outliers, robust_scores


def test_a_sample_far_from_all_others_is_found_alone() -> None:
    features = torch.randn(200, 16, generator=torch.Generator().manual_seed(0)) * 0.2 + torch.eye(16)[0]
    features[42] = -3 * torch.eye(16)[1]
    distances, _ = nearest_neighbors(features, 10)
    assert [row for row, _ in outliers(distances)] == [42]


def test_a_small_class_of_its_own_is_no_outlier() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 16, generator=generator)
    features[:12] = 9 * torch.eye(16)[1] + torch.randn(12, 16, generator=generator)
    distances, _ = nearest_neighbors(directions(features), 10)
    assert outliers(distances) == []


def test_few_samples_have_no_usual_distance() -> None:
    assert outliers(torch.tensor([[1.0]] * 9 + [[100.0]])) == []
    assert outliers(torch.empty(40, 0)) == []


@given(st.lists(st.floats(-100, 100, width=32), min_size=3, max_size=30).filter(lambda values: len(values) % 2 == 1))
def test_robust_scores_follow_their_definition(values: list[float]) -> None:
    median = statistics.median(values)
    spread = 1.4826 * statistics.median(abs(value - median) for value in values)
    found = robust_scores(torch.tensor(values, dtype=torch.float64)).tolist()
    assert found == pytest.approx([(value - median) / max(spread, 1e-9) for value in values], rel=1e-6)


def test_unknown_values_have_no_score() -> None:
    assert robust_scores(torch.tensor([1.0, torch.nan, 2.0, 3.0]))[1] == 0
    assert robust_scores(torch.tensor([torch.nan] * 3)).tolist() == [0, 0, 0]
