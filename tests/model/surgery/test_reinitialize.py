"""Reinitialize a pretrained model. Its use as a strategy is in tests/test_strategies.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finetune import ArgumentError
from finetune.model.surgery.reinitialize import fresh_weights
from tests.helpers.models import Functional, small_cnn


def test_fresh_weights_are_random_and_leave_the_model_alone() -> None:
    model = small_cnn()
    with torch.no_grad():
        for value in (*model.parameters(), model[1].running_mean):
            value.fill_(7)
    torch.manual_seed(0)
    state = fresh_weights(model)
    torch.manual_seed(0)
    assert all(torch.equal(value, state[name]) for name, value in fresh_weights(model).items())
    assert state.keys() == model.state_dict().keys()
    assert not any((value == 7).any() for value in state.values())
    assert state["1.running_mean"].eq(0).all()
    assert all((parameter == 7).all() for parameter in model.parameters())


def test_weights_of_the_same_architecture_are_preferred_where_they_fit() -> None:
    model, like = small_cnn(), small_cnn(classes=3)
    nn.init.constant_(like[0].weight, 0.5)
    nn.init.constant_(like[6].weight, 0.5)
    state = fresh_weights(model, like)
    assert state["0.weight"].eq(0.5).all()
    assert state["6.weight"].shape == (5, 4)
    assert state["6.weight"].ne(0.5).all()


def test_a_parameter_that_nothing_resets_is_an_error() -> None:
    with pytest.raises(ArgumentError, match=r"1 parameters cannot be reinitialized, the first is 'weight' of a Functi"):
        fresh_weights(Functional())
