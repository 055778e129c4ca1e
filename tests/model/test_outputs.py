"""Which tensors of an output are the logits, and which are auxiliary."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from finetune.errors import HeadError
from finetune.model.outputs import auxiliary_of, check_logits, logits_of, results_of
from finetune.nested import tensors_of


def test_results_are_found_in_any_form() -> None:
    a, b = torch.zeros(1), torch.ones(1)
    output = models.GoogLeNetOutputs(a, b, None)
    assert logits_of(output) is a
    assert auxiliary_of(output) == [b]
    assert logits_of({"features": b, "logits": a}) is a
    assert auxiliary_of({"logits": a, "aux": b, "aux_loss": 3, 0: b}) == [b]
    assert logits_of(a) is a
    assert logits_of([None, (b, a)]) is b
    assert logits_of("nothing") == "nothing"
    assert logits_of({"logits": torch.zeros(2, 1, 7)}).shape == (2, 7)  # as VideoPrism gives them
    assert logits_of({"logits": torch.zeros(2, 3, 7)}).shape == (2, 3, 7)
    assert auxiliary_of((a, b), heads=1) == []
    assert auxiliary_of((a, b, torch.zeros(2)), heads=2) == [b]
    assert auxiliary_of(a) == []
    assert results_of(output) == [a, b]
    assert results_of([a, b]) == [a, b]
    assert results_of((a, [b, b], None)) == [a]  # logits and hidden states
    assert results_of(([a], b)) == [a, b]
    assert tensors_of({"x": [a, {"y": (b,)}], "z": 3}) == [a, b]
    assert tensors_of(None) == []


def test_logits_are_checked_only_where_several_results_differ_in_shape() -> None:
    model, features, logits = nn.Linear(1, 1), torch.zeros(2, 8), torch.zeros(2, 3)
    for output, outputs in (
        (logits, 5),
        ((logits, logits), 5),
        ((logits, features), 3),
        ((features, logits), None),
        ((logits, features), 1),
    ):
        check_logits(model, output, outputs)
    for output, outputs in (((features, logits), 3), ((logits, features), 0)):
        with pytest.raises(
            HeadError, match=r"Linear returns several results, .* may not be the logits: their shapes are"
        ):
            check_logits(model, output, outputs)
