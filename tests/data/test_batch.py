from __future__ import annotations

import torch

from finetune.data.batch import join_batch, label_key_of, split_batch, target_of


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
