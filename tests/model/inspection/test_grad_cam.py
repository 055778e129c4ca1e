"""Grad-CAM on networks whose evidence is known."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.model.inspection.feature_map import CHANNELS_FIRST, TOKENS, FeatureMap
from finetune.model.inspection.grad_cam import evidence, heat, token_evidence


class Network(nn.Module):
    """Convolutions, a global average and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(x).mean((2, 3)))
        return scores


LAYER = FeatureMap("features", CHANNELS_FIRST, (8, 8))


@pytest.mark.parametrize("frozen", [False, True])
def test_after_a_global_average_it_is_the_class_activation_map(frozen: bool) -> None:
    model, images, labels = Network().eval(), torch.randn(5, 3, 10, 10), torch.tensor([0, 3, 1, 1, 2])
    model.requires_grad_(not frozen)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        found = evidence(model, lambda: model(images).gather(1, labels[:, None])[:, 0], LAYER)
        features = model.features(images)
        cam = (features * model.head.weight[labels][:, :, None, None]).sum(1).relu()
        assert not torch.is_grad_enabled()
    assert torch.allclose(heat(found, (10, 10)), heat(cam, (10, 10)), atol=1e-5)
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_before_a_head_that_reads_positions_the_evidence_adds_up_to_the_score() -> None:
    """The weights of a class have a mean of zero over the positions, so that Grad-CAM would be zero everywhere."""
    model, images = (
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 1, bias=False)),
        torch.randn(5, 3, 10, 10),
    )
    weight = torch.randn(1, 2, 64)
    model[3].weight.data = (weight - weight.mean(2, keepdim=True)).flatten(1)
    for sign in (1, -1):
        found = evidence(model, lambda sign=sign: sign * model(images)[:, 0], FeatureMap("1", CHANNELS_FIRST, (8, 8)))
        each = model[1](model[0](images)).flatten(2) * model[3].weight.reshape(2, 64) * sign
        assert torch.allclose(found.flatten(1), each.sum(1).relu(), atol=1e-5)
        assert (found > 0).any((1, 2)).all()


def test_samples_are_independent() -> None:
    model, images = Network().eval(), torch.randn(4, 3, 10, 10)
    together = evidence(model, lambda: model(images)[:, 1], LAYER)
    alone = torch.cat([evidence(model, lambda one=one: model(one)[:, 1], LAYER) for one in images.split(1)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_a_token_is_evidence_if_the_score_would_fall_without_it() -> None:
    tokens, attention = torch.randn(3, 4, 5, 5), torch.rand(3, 1, 5, 5)
    weight = torch.randn(4)
    gradient = (weight[:, None, None] * attention).expand(3, 4, 5, 5)
    found = token_evidence(tokens, gradient)
    for row in range(5):
        replaced = tokens.clone()
        replaced[:, :, row, 2] = tokens.mean((2, 3))
        fall = ((tokens - replaced) * gradient).sum((1, 2, 3))  # the score is linear in the tokens
        assert torch.allclose(found[:, row, 2], F.relu(fall), atol=1e-5)


def test_tokens_before_the_patches_are_left_out() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            tokens: Tensor = self.embed(torch.cat([torch.full((len(x), 1, 2), 9.0), x], 1))
            return tokens[..., 0].sum(1)

    model, patches = Tokens(), torch.zeros(1, 6, 2)
    patches[0, 4, 0] = 1
    found = evidence(model, lambda: model(patches), FeatureMap("embed", TOKENS, (2, 3)))
    assert torch.equal(found[0].nonzero(), torch.tensor([[1, 1]]))


def test_maps_reach_one_unless_they_are_zero() -> None:
    maps = heat(torch.stack([torch.rand(7, 7), torch.zeros(7, 7)]), (32, 48))
    assert maps.shape == (2, 32, 48)
    assert maps.amax((1, 2)).tolist() == [1.0, 0.0]
    assert float(maps.min()) >= 0
