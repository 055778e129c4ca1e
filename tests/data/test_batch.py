from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from finetune.data.batch import (
    check_pair,
    first_samples,
    join_batch,
    label_key_of,
    num_samples_of,
    split_batch,
    target_of,
)
from finetune.errors import DataError
from tests.helpers.containers import Graph, Pair, Record


def test_a_batch_divides_into_inputs_and_targets() -> None:
    x, y = torch.zeros(2), torch.ones(2)
    assert split_batch((x, y)) == (x, y)
    assert split_batch([x]) == (x, None)
    assert split_batch(x)[1] is None
    assert split_batch({"a": x, "labels": y}) == ({"a": x}, y)
    assert split_batch({"a": x}) == ({"a": x}, None)
    assert split_batch(())[1] is None


def test_a_joined_batch_has_the_structure_of_the_first() -> None:
    for batch in ((1, 2), (1, 2, "more"), {"a": 1, "label": 2}):
        assert target_of(batch) == 2
        inputs, targets = split_batch(batch)
        joined = join_batch(batch, inputs, targets)
        assert joined == batch
    assert join_batch("inputs alone", 3, None) == 3


def test_the_label_is_found_by_its_usual_names() -> None:
    assert label_key_of(["id", "target", "x"]) == "target"
    assert label_key_of(["id", "x"]) is None
    assert target_of({"x": 1}) is target_of((1,)) is None


SEVEN = torch.zeros(7, dtype=torch.int64)
SEQUENCES = [torch.zeros(k, 2) for k in (3, 5, 1, 2, 2, 9, 4)]
PACKED = nn.utils.rnn.pack_sequence(SEQUENCES, enforce_sorted=False)


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(9, 7, 4), SEVEN),  # time-major
        (PACKED, SEVEN),
        (PACKED, None),
        PACKED,
        (SEQUENCES, SEVEN),
        (tuple(SEQUENCES), list(range(7))),
        (SEQUENCES, [torch.zeros(k, 4) for k in range(7)]),
        ((torch.zeros(40), SEVEN), SEVEN),  # all tokens, and where each sample begins
        (Graph(), SEVEN),
        (SEQUENCES, [{"boxes": torch.zeros(2, 4)}] * 7),
        (torch.zeros(9, 3), {"a": SEVEN, "b": SEVEN}),
        {"x": torch.zeros(9, 7), "label": SEVEN},
        (torch.zeros(7, 2), torch.tensor(1.0)),
        torch.zeros(7, 2),
        (torch.zeros(7, 2), 1),
        Pair(torch.zeros(7), None),
        Record(torch.zeros(7)),
    ],
)
def test_a_batch_has_as_many_samples_as_targets_or_else_as_inputs(batch: Any) -> None:
    assert num_samples_of(batch) == 7


def test_a_batch_without_tensors_has_no_known_size() -> None:
    for batch in (1, "text", [], {"a": 1}, torch.tensor(1.0), Record):
        with pytest.raises(DataError, match="has no tensor"):
            num_samples_of(batch)


def test_only_rows_that_are_samples_are_cut() -> None:
    x = torch.zeros(7, 4)
    assert first_samples(x, 7, 2).shape == (2, 4)
    assert first_samples({"a": x, "b": x}, 7, 2)["b"].shape == (2, 4)
    for whole in (torch.zeros(9, 7), (torch.zeros(40), SEVEN), SEQUENCES, [torch.zeros(7, 3)] * 7):
        assert first_samples(whole, 7, 2) is whole
    assert first_samples(PACKED, 7, 2) is PACKED


X, LABELS = torch.randn(6, 5), torch.arange(6) % 3
LENGTHS = torch.tensor([5, 1, 2, 3, 4, 2])


@pytest.mark.parametrize(
    "batch",
    [
        (X, torch.ones(6, 3), LABELS),
        (X, X > 9, X),
        (X, torch.ones(6, 5), X[:, 0]),
        (X, torch.arange(5) < LENGTHS[:, None], LABELS),
        (X[:, :3], (torch.arange(5) < LENGTHS[:, None]).long(), LABELS),
        [X, X.clone(), LABELS, LABELS],
    ],
)
def test_a_mask_or_second_input_is_not_taken_for_the_target(batch: Any) -> None:
    with pytest.raises(DataError, match=r"taken as its target, .*\(\(input, second\), target\)"):
        check_pair(batch)
    check_pair((batch[:2], batch[2]))  # the advice


@pytest.mark.parametrize(
    "batch",
    [
        (X, LABELS, X[:, 0]),
        (X, torch.ones(6, dtype=torch.int64), LABELS),  # one class in the first batch
        (X, torch.ones(6, 1), X[:, 0]),
        (X, (X[:, :3] > 0).float(), LABELS),
        (X, torch.randn(6, 2), ["a"] * 6),
        ((X, X), LABELS, LABELS),
    ],
)
def test_the_parts_after_the_target_are_said_to_be_left_aside(batch: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="finetune"):
        check_pair(batch)
        assert not caplog.records
        check_pair(batch, say=True)
    assert "Samples have 3 parts" in caplog.text
    assert "override training_step" in caplog.text
