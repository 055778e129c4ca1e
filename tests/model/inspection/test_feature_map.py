"""The deepest layer with positions, in layouts of every kind."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from finetune.model.inspection.feature_map import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    TOKENS,
    TOKENS_FIRST,
    FeatureMap,
    find_feature_map,
)


class Shaped(nn.Module):
    """A convolution, a layer whose output has any form, and a mean over all positions."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.last, self.change = nn.Conv2d(3, 5, 4, 4), nn.Identity(), change

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.change(self.conv(x)))
        return made.flatten().square().mean().expand(len(x))


class ClassToken(nn.Module):
    """Patches, extra tokens before them, two attentions, and a head on the first token."""

    def __init__(self, extra: int = 1) -> None:
        super().__init__()
        self.patches, self.extra = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, extra, 8))
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.norm(self.blocks(torch.cat([self.extra.expand(len(x), -1, -1), tokens], 1)))
        scores: Tensor = self.head(tokens[:, 0])
        return scores.amax(1)


def found_in(model: nn.Module, height: int, width: int, layer: str | None = None) -> FeatureMap | None:
    images = torch.rand(2, 3, height, width) + torch.zeros(2, 3, height, width, requires_grad=True)
    return find_feature_map(model.eval(), lambda: model(images), (height, width), 2, layer)


def cls(count: int) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat([torch.ones(len(x), count, 5), x.flatten(2).transpose(1, 2)], 1)


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (20, 60)])
@pytest.mark.parametrize(
    ("form", "change"),
    [
        (CHANNELS_FIRST, lambda x: x),
        (CHANNELS_LAST, lambda x: x.permute(0, 2, 3, 1)),
        (TOKENS, cls(0)),
        (TOKENS, cls(1)),
        (TOKENS, cls(5)),
        (TOKENS_FIRST, lambda x: x.flatten(2).permute(2, 0, 1)),
    ],
)
def test_positions_are_read_in_every_form(form: str, change: Callable[[Tensor], Tensor], size: tuple[int, int]) -> None:
    grid = size[0] // 4, size[1] // 4
    found, features = found_in(Shaped(change), *size, layer="last"), torch.rand(2, 5, *grid)
    assert found == FeatureMap("last", form, grid)
    assert torch.equal(found.of(change(features)), features)


@pytest.mark.parametrize("extra", [1, 2, 5])
def test_the_grid_of_tokens_without_an_earlier_grid_has_the_shape_of_the_image(extra: int) -> None:
    class Unfolded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Linear(48, 8), nn.LayerNorm(8)

        def forward(self, x: Tensor) -> Tensor:
            patches = nn.functional.unfold(x, 4, stride=4).transpose(1, 2)
            tokens = torch.cat([torch.zeros(len(x), extra, 8), self.embed(patches)], 1)
            return self.norm(tokens).square().mean((1, 2))

    for size in ((32, 32), (32, 48)):
        found = found_in(Unfolded(), *size)
        assert found is not None
        assert found.grid == (size[0] // 4, size[1] // 4)


@pytest.mark.parametrize("extra", [1, 3])
def test_a_class_token_is_explained_before_the_last_attention(extra: int) -> None:
    model = ClassToken(extra)
    found = found_in(model, 32, 32)
    assert found == FeatureMap("blocks.0", TOKENS, (8, 8))
    assert found_in(model, 32, 32, layer="norm") is None  # only the first token matters there


def test_a_convolution_that_is_pooled_and_enlarged_again_has_no_positions_after_that() -> None:
    vgg = nn.Sequential(
        nn.Conv2d(3, 4, 4, 4), nn.MaxPool2d(8), nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(196, 1), nn.Flatten(0)
    )
    found = found_in(vgg, 32, 32)
    assert found is not None
    assert found.layer == "0"


def test_a_fine_layer_comes_before_a_coarse_one() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 4, 4), nn.Flatten(), nn.Linear(16, 1), nn.Flatten(0))
    fine, coarse = found_in(model, 32, 32), found_in(model, 32, 32, layer="1")
    assert fine is not None
    assert coarse is not None
    assert (fine.layer, fine.grid, coarse.grid) == ("0", (8, 8), (2, 2))


def test_a_head_of_zeros_has_a_layer_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), nn.Linear(256, 1), nn.Flatten(0))
    nn.init.zeros_(model[2].weight)
    found = found_in(model, 32, 32)
    assert found is not None
    assert found.layer == "0"


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(math.prod((3, 32, 32)), 1), nn.Flatten(0)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 1, 1), nn.Flatten(0)),
        nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(0)),
    ],
)
def test_models_without_positions(model: nn.Module) -> None:
    assert found_in(model, 32, 32) is None
