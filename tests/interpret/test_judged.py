"""The worst mistakes are the worst, the surest answers are right, and names are those of the data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from finetune.errors import DataError, NonFiniteError
from finetune.interpret.calibration import Calibration
from tests.helpers.answers import interpreted, random_answers

SEEDS = st.integers(0, 2**31 - 1)
KINDS = ("classification", "binary", "multilabel", "regression")


def brute_force(found: Any, temperature: float) -> list[tuple[float, float, bool]]:
    """Return the loss and the probability of the answer of each sample, and whether it is right, one by one."""
    facts = []
    for output, target in zip(found.predictions.outputs.double(), found.predictions.targets, strict=True):
        logits = output / temperature
        if found.task == "regression":
            facts.append((float(F.mse_loss(output, target.double())), 0.0, False))
        elif found.task == "classification":
            chances = logits.softmax(0)
            answer = int(chances.argmax())
            facts.append((float(F.cross_entropy(logits, target)), float(chances[answer]), answer == int(target)))
        else:
            chances, answers = logits.sigmoid(), logits > 0
            loss = float(F.binary_cross_entropy_with_logits(logits, target.double()))
            sure = float(torch.where(answers, chances, 1 - chances).prod())
            facts.append((loss, sure, bool((answers == target.bool()).all())))
    return facts


@given(SEEDS, st.integers(1, 50), st.integers(2, 6), st.sampled_from(KINDS), st.integers(1, 60))
def test_the_worst_are_the_worst_and_the_surest_are_right(
    seed: int, samples: int, count: int, kind: str, n: int
) -> None:
    temperature = 1.5
    count = 1 if kind in ("binary", "regression") else count
    found = random_answers(kind, samples, count, seed, Calibration(temperature))
    facts = brute_force(found, temperature)
    wrong = sorted((loss for loss, _, right in facts if not right), reverse=True)
    rows = found.mistakes(n)
    assert [row.loss for row in rows] == pytest.approx(wrong[:n], rel=1e-6)
    assert all(row.loss == pytest.approx(facts[row.index][0], rel=1e-6) for row in rows)
    assert all(row.true != row.answer for row in rows)
    if kind != "regression":
        sure = sorted((chance for _, chance, right in facts if right), reverse=True)
        best = found.surest(n)
        assert [facts[row.index][1] for row in best] == pytest.approx(sure[:n], rel=1e-6)
        assert all(row.true == row.answer for row in best)


def test_surety_tells_apart_probabilities_of_one() -> None:
    outputs = torch.tensor([[100.0, 0.0], [300.0, 0.0], [200.0, 0.0], [0.0, 150.0], [0.0, 250.0]])
    found = interpreted("classification", outputs, torch.tensor([1, 1, 1, 1, 1]))
    assert [row.index for row in found.mistakes()] == [1, 2, 0]
    assert [row.loss for row in found.mistakes()] == [300, 200, 100]
    assert {row.index for row in found.surest()} == {3, 4}


def test_the_classes_that_matter_are_named_with_their_probabilities() -> None:
    outputs = torch.tensor([[7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
    found = interpreted("classification", outputs, torch.tensor([6]), "abcdefg").mistakes()[0]
    assert (found.true, found.answer, found.sample, found.index) == ("g", "a", "sample 0", 0)
    assert list(found.probabilities) == ["a", "b", "c", "d", "e", "g"]
    assert found.probabilities["g"] == pytest.approx(float(outputs.softmax(1)[0, 6]))

    outputs, targets = torch.tensor([[-2.0, 3.0, -1.0, 1.0]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    labels = interpreted("multilabel", outputs, targets, "abcd").mistakes()[0]
    assert (labels.true, labels.answer) == (("a", "b"), ("b", "d"))
    assert list(labels.probabilities) == ["b", "d", "a"]

    targets = torch.tensor([[31.0, 2.0]])
    values = interpreted("regression", torch.tensor([[30.0, 2.5]]), targets, ("age", "size")).mistakes()[0]
    assert (values.true, values.answer) == ({"age": 31, "size": 2}, {"age": 30, "size": 2.5})
    assert values.probabilities == {}


@pytest.mark.parametrize(("threshold", "answers"), [(0.5, [0, 1]), (0.2, [1, 1]), (0.9, [0, 0])])
def test_the_threshold_decides_for_one_output(threshold: float, answers: list[int]) -> None:
    outputs, targets = torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1])
    found = interpreted("binary", outputs, targets, ("no", "yes"), calibration=Calibration(1.0, (threshold,)))
    assert found.confusion.tolist() == [[1 - answers[0], answers[0]], [1 - answers[1], answers[1]]]
    assert found.top1 == (answers[0] == 0) / 2 + (answers[1] == 1) / 2
    assert found.per_class[1].support == 1
    assert found.labels == ("no", "yes")


def test_samples_that_the_loss_ignores_do_not_count() -> None:
    outputs, targets = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([9, 1, 0, 9])
    loss = nn.CrossEntropyLoss(ignore_index=9)
    found = interpreted("classification", outputs, targets, loss=loss)
    assert (len(found), found.top1, found.confusion.sum().item()) == (2, 0.5, 2)
    assert [(row.index, row.sample) for row in found.mistakes()] == [(2, "sample 2")]
    with pytest.raises(DataError, match="ignores every target"):
        interpreted("classification", outputs, torch.full((4,), 9), loss=loss)


def test_rows_of_probabilities_are_compared_with_their_likeliest_class() -> None:
    outputs = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    targets = torch.tensor([[0.1, 0.2, 0.7], [0.2, 0.5, 0.3]])
    found = interpreted("classification", outputs, targets)
    assert found.confusion.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    expected = float(F.cross_entropy(outputs[:1].double(), targets[:1].double()))
    assert found.mistakes()[0].loss == pytest.approx(expected)


def test_outputs_that_are_nan_are_an_error() -> None:
    outputs = torch.tensor([[0.0, 1.0], [math.nan, 1.0], [math.nan, 0.0]])
    with pytest.raises(NonFiniteError, match="NaN for 2 of 3 samples; the first is sample 1"):
        interpreted("classification", outputs, torch.tensor([0, 1, 0]))


def test_targets_of_another_size_are_an_error() -> None:
    with pytest.raises(DataError, match=r"shape \[4, 2\], but the targets have shape \[4, 3\]"):
        interpreted("regression", torch.zeros(4, 2), torch.zeros(4, 3))


@given(st.integers(0, 99), st.sampled_from([1e-3, 1.0, 1e4]), st.integers(0, 2))
def test_the_largest_errors_depend_on_no_unit(seed: int, unit: float, output: int) -> None:
    found = random_answers("regression", 30, 3, seed)
    outputs, targets = found.predictions.outputs.clone(), found.predictions.targets
    assert targets is not None
    targets = targets.clone()
    outputs[:, output], targets[:, output] = outputs[:, output] * unit, targets[:, output] * unit
    changed = interpreted("regression", outputs, targets)
    assert [row.index for row in changed.mistakes(10)] == [row.index for row in found.mistakes(10)]


def test_errors_of_constant_targets_count_too() -> None:
    outputs, targets = torch.zeros(4, 2), torch.ones(4, 2)
    targets[:, 1], outputs[2, 0] = torch.arange(4.0), -9.0
    outputs[:, 1] = targets[:, 1]
    assert interpreted("regression", outputs, targets).mistakes(1)[0].index == 2
    assert interpreted("regression", torch.ones(4, 2), torch.ones(4, 2)).mistakes(9)[0].loss == 0
