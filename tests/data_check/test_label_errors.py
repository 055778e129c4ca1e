"""Wrong labels and classes that cannot be told apart, in features whose classes are known."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finetune.data_check.label_errors import (
    cleaned_probe,
    confusable_pairs,
    suspects,
    wrong_labels,
)
from finetune.data_check.neighbors import directions, nearest_neighbors


def clusters(count: int = 300, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features [N, 8] in a cluster per class, and the classes in random order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    means = 4 * torch.eye(8)[:classes]
    return means[labels] + torch.randn(count, 8, generator=generator), labels


def found_in(features: Tensor, labels: Tensor) -> list[int]:
    _, neighbors = nearest_neighbors(directions(features), 10)
    return [found.row for found in wrong_labels(cleaned_probe(features, labels), labels, neighbors)]


def test_planted_wrong_labels_are_found_and_hardly_any_others() -> None:
    features, labels = clusters()
    assert len(found_in(features, labels)) <= 1
    wrong = torch.randperm(300, generator=torch.Generator().manual_seed(1))[:15]
    given = labels.clone()
    given[wrong] = (labels[wrong] + 1) % 3
    found = found_in(features, given)
    assert len({*found} & {*wrong.tolist()}) >= 14
    assert len({*found} - {*wrong.tolist()}) <= 1


def test_a_wrong_label_names_the_class_that_fits() -> None:
    features, labels = clusters()
    given = labels.clone()
    given[5] = (labels[5] + 1) % 3
    _, neighbors = nearest_neighbors(directions(features), 10)
    first = wrong_labels(cleaned_probe(features, given), given, neighbors)[0]
    assert (first.row, first.suggested) == (5, int(labels[5]))
    assert first.probability > 0.8
    assert first.margin < -0.8


def test_the_surest_come_first() -> None:
    features, labels = clusters()
    given = labels.clone()
    given[:20] = (labels[:20] + 1) % 3
    _, neighbors = nearest_neighbors(directions(features), 10)
    margins = [found.margin for found in wrong_labels(cleaned_probe(features, given), given, neighbors)]
    assert margins == sorted(margins)


def test_random_labels_do_not_beat_guessing() -> None:
    features, labels = clusters()
    shuffled = labels[torch.randperm(300, generator=torch.Generator().manual_seed(2))]
    assert cleaned_probe(features, labels).beats_guessing(labels)
    assert not cleaned_probe(features, shuffled).beats_guessing(shuffled)


@given(st.integers(2, 4), st.integers(1, 25), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_suspects_follow_their_definition(classes: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(count, classes, generator=generator).softmax(1)
    labels = torch.randint(0, classes, (count,), generator=generator)
    expected = []
    for row, label in enumerate(labels.tolist()):
        confident = []
        for other in range(classes):
            own = probabilities[labels == other, other]
            if len(own) and probabilities[row, other] >= own.mean() - 1e-7:
                confident.append((float(probabilities[row, other]), other))
        expected.append(bool(confident) and max(confident)[1] != label)
    assert suspects(probabilities, labels).tolist() == expected


def test_two_classes_alike_are_found_and_no_others() -> None:
    features, labels = clusters(classes=3)
    torn = torch.where(labels == 2, 2 + torch.arange(300) % 2, labels)
    probabilities = cleaned_probe(features, torn).first
    assert [(pair.first, pair.second) for pair in confusable_pairs(probabilities, torn)] == [(2, 3)]
    assert confusable_pairs(cleaned_probe(features, labels).first, labels) == []


@given(st.integers(2, 4), st.integers(40, 90), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_accuracy_of_a_pair_is_that_of_the_two_classes_alone(classes: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(count, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (count,), generator=generator)
    for pair in confusable_pairs(probabilities, labels):
        shares = []
        for own, other in ((pair.first, pair.second), (pair.second, pair.first)):
            rows = probabilities[labels == own]
            shares.append(float((rows[:, own] > rows[:, other]).double().mean()))
        assert abs(sum(shares) / 2 - pair.accuracy) < 1e-12


def test_samples_of_which_all_others_are_suspects_are_still_judged() -> None:
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.1, 1.0], [1.0, 0.1]])
    probe = cleaned_probe(features, torch.tensor([0, 1, 1, 0]))
    assert probe.cleaned.sum(1).allclose(torch.ones(4, dtype=torch.float64))
