"""Copy a model's structure without copying its tensors."""

from __future__ import annotations

import torch
from torch import nn

from finetune.model.surgery.copies import meta_copy, shared_copy
from tests.helpers.models import TiedLanguageModel, small_cnn


def test_a_shared_copy_has_its_own_modules_and_the_same_tensors() -> None:
    model = small_cnn()
    model.note = torch.ones(2)  # a tensor outside of parameters and buffers
    twin = shared_copy(model)
    assert {*map(id, twin.modules())}.isdisjoint(map(id, model.modules()))
    assert [*map(id, twin.parameters())] == [*map(id, model.parameters())]
    assert [*map(id, twin.buffers())] == [*map(id, model.buffers())]
    assert twin.note is model.note
    twin[6] = nn.Linear(4, 2)
    assert model[6].out_features == 5


def test_a_meta_copy_keeps_shapes_dtypes_freeze_state_and_ties() -> None:
    model = TiedLanguageModel().half()
    model.mix.weight.requires_grad_(False)
    twin = meta_copy(model)
    assert {parameter.device.type for parameter in twin.parameters()} == {"meta"}
    assert twin.out.weight is twin.embed.weight
    assert [(p.shape, p.dtype, p.requires_grad) for p in twin.parameters()] == [
        (p.shape, p.dtype, p.requires_grad) for p in model.parameters()
    ]
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
