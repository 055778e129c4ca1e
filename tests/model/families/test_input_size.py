"""What a module states about the images that it was built for."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from finetune.model.families import family_of
from finetune.model.families.input_size import InputSize, sides, stated_input_size
from finetune.model.inspection.probing import accepted_example


class Positions(nn.Module):
    """A vision transformer that states its size only by its position table."""

    def __init__(self, side: int, channels: int = 3, tokens: int = 1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, 8, 8, stride=8)
        self.tokens = nn.Parameter(torch.zeros(1, tokens, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, (side // 8) ** 2 + tokens, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        found: Tensor = torch.cat([self.tokens.expand(len(patches), -1, -1), patches], 1) + self.pos_embed
        output: Tensor = self.head(found.mean(1))
        return output


class Attribute(nn.Module):
    def __init__(self, **attributes: object) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        vars(self).update(attributes)


def volume(side: int) -> nn.Module:
    module = nn.Sequential(nn.Conv3d(2, 4, 3))
    module.img_size = side
    return module


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Positions(32), (3, (32, 32))),
        (Positions(48, channels=1, tokens=0), (1, (48, 48))),
        (Positions(40, tokens=2), (3, (40, 40))),
        (Attribute(image_size=64), (1, (64, 64))),
        (Attribute(img_size=(64, 32)), (1, (64, 32))),
        (Attribute(image_size="large"), (1, None)),
        (Attribute(img_size=True), (1, None)),
        (Attribute(img_size=None), (1, None)),
        (volume(16), (2, (16, 16, 16))),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), (3, None)),
        (nn.Linear(4, 2), (None, None)),
        (torchvision.models.VisionTransformer(32, 8, 1, 2, 16, 16), (3, (32, 32))),
        (torchvision.models.resnet18(), (3, None)),
    ],
)
def test_a_model_states_its_images(model: nn.Module, expected: tuple[int | None, tuple[int, ...] | None]) -> None:
    assert stated_input_size(model) == InputSize(*expected)
    assert family_of(model).built_for(model) == InputSize(*expected)


@pytest.mark.parametrize("model", [Positions(32), Positions(40, channels=1), Positions(48, tokens=2)])
def test_a_model_of_one_size_runs_without_data(model: nn.Module) -> None:
    example = accepted_example(model)
    assert isinstance(example, Tensor)
    assert example.shape[1:] == (model.patches.in_channels, *stated_input_size(model).size)  # type: ignore[union-attr,misc]


def test_a_size_has_one_length_per_dimension() -> None:
    assert sides(8, 3) == (8, 8, 8)
    assert sides([4, 6], 2) == (4, 6)
    assert [sides(value, 2) for value in (0, (4,), (4, -1), None, 2.5, True)] == [None] * 6
