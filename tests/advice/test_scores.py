"""Scores of features, compared to direct implementations of their definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.advice.scores import best_penalty, h_score, held_out, knn_accuracy, log_me, probe_accuracies, spectrum


def drawn(samples: int, width: int, classes: int, seed: int, distance: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return features [N, D] drawn around class means, and labels [N]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    means = distance * torch.randn(classes, width, generator=generator, dtype=torch.float64)
    scales = torch.rand(width, generator=generator, dtype=torch.float64) + 0.2
    return (means[labels] + torch.randn(samples, width, generator=generator, dtype=torch.float64)) * scales + 3, labels


def standardized(features: Tensor) -> Tensor:
    centred = features - features.mean(0)
    return centred / centred.square().mean(0).sqrt() / features.shape[1] ** 0.5


shapes = st.tuples(st.integers(8, 40), st.integers(2, 60), st.integers(2, 4), st.integers(0, 10**6))


@given(shapes)
@settings(max_examples=25, deadline=None)
def test_the_spectrum_reconstructs_the_standardized_features(shape):
    samples, width, classes, seed = shape
    features, _ = drawn(samples, width, classes, seed)

    found = spectrum(features)

    wanted = standardized(features)
    assert torch.allclose(found.vectors * found.values @ found.vectors.T, wanted @ wanted.T, atol=1e-8)
    assert torch.allclose(found.vectors.T @ found.vectors, torch.eye(len(found.values), dtype=torch.float64), atol=1e-6)


@given(shapes, st.sampled_from([1e-3, 1.0, 30.0]), st.floats(0.1, 0.8))
@settings(max_examples=25, deadline=None)
def test_held_out_predictions_match_a_ridge_regression_without_those_rows(shape, penalty, share):
    samples, width, classes, seed = shape
    features, labels = drawn(samples, width, classes, seed)
    rows = torch.arange(samples)[: max(1, int(share * samples))]
    kept = torch.arange(samples)[len(rows) :]
    found = spectrum(features)
    targets = torch.nn.functional.one_hot(labels).double()

    predictions = held_out(found, targets, rows, penalty)

    x = standardized(features)
    mean, offset = x[kept].mean(0), targets[kept].mean(0)
    total = penalty * found.values.mean()  # in the units of the fit to all rows
    gram = (x[kept] - mean).T @ (x[kept] - mean) + total * torch.eye(width, dtype=torch.float64)
    weights = torch.linalg.solve(gram, (x[kept] - mean).T @ (targets[kept] - offset))
    assert torch.allclose(predictions, (x[rows] - mean) @ weights + offset, atol=1e-6)


@given(shapes)
@settings(max_examples=25, deadline=None)
def test_the_h_score_matches_its_definition_with_ledoit_wolf_shrinkage(shape):
    samples, width, classes, seed = shape
    features, labels = drawn(samples, width, classes, seed)

    x = standardized(features)
    covariance = x.T @ x / samples
    identity = torch.eye(width, dtype=torch.float64)
    mean = covariance.trace() / width
    distance = (covariance - mean * identity).square().sum()
    spread = sum((torch.outer(row, row) - covariance).square().sum() for row in x) / samples**2
    shrinkage = (spread / distance).clamp(max=1) if distance > 1e-12 else torch.ones(())
    means = torch.stack([x[labels == label].mean(0) for label in labels])
    between = means.T @ means / samples
    shrunk = (1 - shrinkage) * covariance + shrinkage * mean * identity
    wanted = (1 - shrinkage) * torch.linalg.solve(shrunk, between).trace()

    assert h_score(spectrum(features), labels) == pytest.approx(float(wanted), rel=1e-6, abs=1e-9)


@given(shapes)
@settings(max_examples=4, deadline=None)
def test_log_me_is_the_maximum_evidence_over_both_precisions(shape):
    samples, width, classes, seed = shape
    features, labels = drawn(samples, width, classes, seed)
    x = standardized(features)
    targets = torch.nn.functional.one_hot(labels).double()
    constant = torch.ones(samples, 1, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([constant, torch.eye(samples, dtype=torch.float64)], 1)).Q[:, 1:]
    x, targets, left = basis.T @ x, basis.T @ targets, samples - 1  # project out the mean

    def evidence(target: Tensor, alpha: float, beta: float) -> float:
        covariance = torch.eye(left, dtype=torch.float64) / beta + x @ x.T / alpha
        normal = torch.distributions.MultivariateNormal(torch.zeros(left, dtype=torch.float64), covariance)
        return float(normal.log_prob(target)) / left

    grid = [10 ** (k / 3) for k in range(-9, 13)]
    largest = [max(evidence(target, alpha, beta) for alpha in grid for beta in grid) for target in targets.T]
    assert log_me(spectrum(features), labels) == pytest.approx(sum(largest) / len(largest), abs=0.05)


def test_neighbors_vote_by_cosine_similarity_without_the_sample_itself():
    features, labels = drawn(60, 5, 3, seed=4, distance=0.8)
    centred = features - features.mean(0)
    right = 0
    for index in range(60):
        similarity = torch.nn.functional.cosine_similarity(centred[index], centred, dim=1)
        similarity[index] = -math.inf
        nearest = similarity.topk(5).indices
        votes = torch.zeros(3, dtype=torch.float64)
        for other in nearest:
            votes[labels[other]] += 1 + similarity[other]
        right += int(votes.argmax() == labels[index])

    assert knn_accuracy(features, labels) == right / 60
    assert 0.5 < right / 60 < 1


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_scores_are_invariant_to_feature_scale_and_offset_and_sample_order(seed):
    features, labels = drawn(40, 12, 4, seed)
    generator = torch.Generator().manual_seed(seed)
    factors = torch.rand(12, generator=generator, dtype=torch.float64) + 0.1
    order = torch.randperm(40, generator=generator)
    other = (features * factors + 5)[order]

    for score in (h_score, log_me):
        assert score(spectrum(other), labels[order]) == pytest.approx(score(spectrum(features), labels), rel=1e-4)


def test_separated_classes_score_high_and_random_labels_low():
    features, labels = drawn(200, 20, 4, seed=1, distance=6)
    by_chance = labels[torch.randperm(200, generator=torch.Generator().manual_seed(0))]
    folds = list(torch.arange(200).split(40))
    found = spectrum(features)

    def probe(of: Tensor) -> float:
        return sum(probe_accuracies(found, of, folds, best_penalty(found, of, folds))) / 5

    assert (probe(labels), knn_accuracy(features, labels)) == (1.0, 1.0)
    assert max(probe(by_chance), knn_accuracy(features, by_chance)) < 0.4
    assert h_score(found, labels) > h_score(found, by_chance) + 2.3
    assert log_me(found, labels) > log_me(found, by_chance) + 0.5


def test_a_constant_feature_is_ignored():
    features, _ = drawn(40, 6, 3, seed=2)
    with_constant = torch.cat([features, torch.full((40, 1), 7.0, dtype=torch.float64)], 1)

    assert torch.allclose(spectrum(with_constant).values, spectrum(features).values)


def test_matrices_have_equal_weight_whatever_their_width():
    wide, _ = drawn(30, 50, 3, seed=1)
    narrow, _ = drawn(30, 2, 3, seed=2)

    both = spectrum(wide, narrow)

    gram = standardized(wide) @ standardized(wide).T + standardized(narrow) @ standardized(narrow).T
    assert torch.allclose(both.vectors * both.values @ both.vectors.T, gram, atol=1e-8)
