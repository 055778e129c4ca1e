"""Targets that a task accepts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION, TargetRule
from finetune.errors import DataError

NAN = torch.nan


def check(rule: TargetRule, targets: Any) -> None:
    rule.check(targets if isinstance(targets, Tensor) else torch.tensor(targets), "sample {}".format)


@pytest.mark.parametrize(
    ("rule", "targets"),
    [
        (TargetRule(CLASSIFICATION, 3), [0, 2, 1]),
        (TargetRule(CLASSIFICATION, 3), [[0], [2]]),
        (TargetRule(CLASSIFICATION, 3), [0.0, 2.0]),
        (TargetRule(CLASSIFICATION, 3), [[0.2, 0.8, 0.0]]),
        (TargetRule(CLASSIFICATION, 3), [[0, 1, 0], [1, 0, 0]]),
        (TargetRule(CLASSIFICATION, 3, ignored=-1), [0, -1, 2]),
        (TargetRule(CLASSIFICATION, 3), [[[0, 2], [-100, 1]]]),
        (TargetRule(CLASSIFICATION, None), [0, 99]),
        (TargetRule(BINARY, 1), [0, 1]),
        (TargetRule(BINARY, 1), [0.0, 0.3]),
        (TargetRule(BINARY, 1, soft=False), [0.0, 1.0]),
        (TargetRule(MULTILABEL, 2), [[True, False]]),
        (TargetRule(REGRESSION, 1), [-7.5, 1e6]),
        (TargetRule(None, 3), [7, -2]),
    ],
)
def test_targets_that_fit_pass(rule: TargetRule, targets: Any) -> None:
    check(rule, targets)


@pytest.mark.parametrize(
    ("rule", "targets", "message"),
    [
        (
            TargetRule(CLASSIFICATION, 3),
            [1, 2, 3],
            r"1 of 3 labels is out of range.*sample 2: 3.*begin at 1\. Subtract 1",
        ),
        (TargetRule(CLASSIFICATION, 3), [0, 7], r"Expected 0 to 2, because the model has 3 outputs.*replace_head\(8\)"),
        (TargetRule(CLASSIFICATION, 2), [-1, 1], r"-1 and 1\. Pass 0 and 1: \(y > 0\)"),
        (TargetRule(CLASSIFICATION, 3), [0, -100, 2], r"CrossEntropyLoss\(ignore_index=-100\)"),
        (TargetRule(CLASSIFICATION, 3), [0, -1, 2], r"CrossEntropyLoss\(ignore_index=-1\)"),
        (TargetRule(CLASSIFICATION, 3), [0, 255, 2], r"replace_head\(256\).*CrossEntropyLoss\(ignore_index=255\)"),
        (TargetRule(CLASSIFICATION, 3), [0, 255, 9], r"call `replace_head\(256\)`\.$"),
        (TargetRule(CLASSIFICATION, 3), [0, 1j, 2], "3 of 3 targets are complex.*real"),
        (TargetRule(REGRESSION, 1), [1j], "1 of 1 targets is complex"),
        (TargetRule(CLASSIFICATION, 3, ignored=-1), [0, -1, -2], "sample 2: -2"),
        (TargetRule(CLASSIFICATION, 3), [[1], [3]], "sample 1"),
        (TargetRule(CLASSIFICATION, 3), [[[0, 3], [1, 1]]], "1 of 1 labels is out of range"),
        (TargetRule(CLASSIFICATION, 3), [0.5, 1.0], "not a whole number.*loss='mse'"),
        (TargetRule(CLASSIFICATION, 3), [[0.5, 0.5, 1.5]], "not probabilities"),
        (TargetRule(CLASSIFICATION, 3), [[1, 1, 0], [0, 1, 0]], "1 of 2 rows is of several classes.*loss='bce'"),
        (TargetRule(BINARY, 1), [0, 2], "neither 0 nor 1.*sample 1: 2"),
        (TargetRule(BINARY, 1), [-1.0, 1.0], r"Pass 0 and 1: \(y > 0\)"),
        (TargetRule(BINARY, 1, soft=False), [0.0, 0.3], "loss='mse'"),
        (TargetRule(MULTILABEL, 2), [[0, -1], [1, 1]], "-1 marks unknown labels"),
        (TargetRule(MULTILABEL, 2), [[0.0, 1.5]], "out of range"),
        (TargetRule(REGRESSION, 1), [1.0, NAN], "1 of 2 targets is not finite; the first is that of sample 1"),
        (TargetRule(None), [torch.inf, 0.0], "not finite"),
    ],
)
def test_targets_that_do_not_fit_name_the_first_sample_and_the_fix(
    rule: TargetRule, targets: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check(rule, targets)


@pytest.mark.parametrize(
    "targets", [None, "text", [9, 9], torch.tensor(9), torch.empty(0), torch.empty(3, dtype=torch.int64, device="meta")]
)
def test_targets_of_other_types_are_left_to_the_loss(targets: Any) -> None:
    TargetRule(CLASSIFICATION, 2).check(targets, "sample {}".format)


@given(st.lists(st.integers(-3, 6), min_size=1, max_size=20), st.integers(2, 5), st.none() | st.just(-1))
def test_class_indices_pass_if_all_are_in_range_or_ignored(
    labels: list[int], classes: int, ignored: int | None
) -> None:
    rule, fine = TargetRule(CLASSIFICATION, classes, ignored), [0 <= k < classes or k == ignored for k in labels]

    if all(fine):
        check(rule, labels)
    else:
        with pytest.raises(DataError, match=f"sample {fine.index(False)}: "):
            check(rule, labels)


def test_a_loss_that_ignores_a_label_accepts_it() -> None:
    from torch import nn

    from finetune import FineTuner

    X, y = torch.randn(12, 4), torch.tensor([0, 1, 2, -100] * 3)
    with pytest.raises(DataError, match="ignore_index=-100"):
        FineTuner(nn.Linear(4, 3)).fit((X, y), progress=False)
    tuner = FineTuner(nn.Linear(4, 3), loss=nn.CrossEntropyLoss(ignore_index=-100))
    assert tuner.fit((X, y), progress=False)[0]["loss"] > 0
