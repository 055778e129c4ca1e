"""Agreements count decisions, and find the largest difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from finetune.export.agreement import Agreement
from finetune.export.subject import Subject
from finetune.interpret.calibration import Calibration
from finetune.training.tasks import task_of_kind


def subject(kind: str, calibration: Calibration | None = None) -> Subject:
    return Subject(nn.Identity(), task_of_kind(None, kind), calibration=calibration or Calibration())


def test_batches_add_up() -> None:
    ours = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    theirs = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.2, 0.8]])
    found = Agreement()
    for index in range(3):
        found = found.with_batch(subject("classification"), ours[index : index + 1], theirs[index : index + 1])
    assert (found.samples, found.same) == (3, 2)
    assert found.difference == pytest.approx(0.2)
    assert found.fraction == pytest.approx(2 / 3)


def test_labels_agree_by_their_thresholds() -> None:
    labels = subject("multilabel", Calibration(1.0, (0.3, 0.7)))
    found = Agreement().with_batch(
        labels, torch.tensor([[0.31, 0.6], [0.4, 0.8]]), torch.tensor([[0.29, 0.6], [0.5, 0.9]])
    )
    assert (found.samples, found.same) == (2, 1)


def test_values_are_compared_by_their_scale() -> None:
    found = Agreement().with_batch(subject("regression"), torch.tensor([[1000.0]]), torch.tensor([[1001.0]]))
    assert (found.same, found.difference) == (None, pytest.approx(0.001))


@pytest.mark.parametrize(
    "wrong", [torch.tensor([[torch.nan, 1.0]]), torch.tensor([[torch.inf, 1.0]]), torch.zeros(1, 3)]
)
def test_nan_and_another_shape_never_agree(wrong: torch.Tensor) -> None:
    assert Agreement().with_batch(subject("classification"), torch.tensor([[0.0, 1.0]]), wrong).difference == torch.inf


@pytest.mark.parametrize(
    ("task", "expected", "found", "targets", "counts"),
    [
        (
            subject("classification"),
            [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]],
            [[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]],
            [0, 1, 0],
            (3, 1, 2),
        ),
        (subject("binary", Calibration(1.0, (0.7,))), [[0.6], [0.8]], [[0.8], [0.8]], [0, 1], (2, 1, 2)),
        (subject("multilabel"), [[0.9, 0.1], [0.9, 0.9]], [[0.9, 0.6], [0.9, 0.9]], [[1, 0], [1, 0]], (2, 0, 1)),
        (subject("classification"), [[[0.9, 0.2], [0.1, 0.8]]], [[[0.9, 0.8], [0.1, 0.2]]], [[0, -100]], (1, 1, 1)),
    ],
    ids=["classes", "threshold", "all labels", "ignored elements"],
)
def test_labels_tell_the_accuracy_of_file_and_model(
    task: Subject, expected: Any, found: Any, targets: Any, counts: tuple[int, int, int]
) -> None:
    made = Agreement().with_batch(task, torch.tensor(expected), torch.tensor(found), torch.tensor(targets))
    assert (made.labeled, made.right, made.right_before) == counts


def test_a_regression_has_no_accuracy() -> None:
    values = torch.zeros(2, 1)
    assert Agreement().with_batch(subject("regression"), values, values, values).accuracy is None
