"""Adapt models to images with another number of channels."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision import models

from finetune.errors import ArgumentError
from finetune.model.outputs import logits_of
from finetune.model.surgery.input_channels import adapt_input, normalization_within
from tests.helpers.models import TokenTransformer, small_cnn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return logits_of(model.eval()(inputs))


def assert_grey_is_its_rgb_copy(model: nn.Module, grey: Tensor, axis: int = 1) -> nn.Module:
    """Adapt a copy to one channel, compare its outputs, and return it."""
    torch.manual_seed(3)
    with torch.no_grad():  # heads initialized to zero would hide differences
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    adapted = copy.deepcopy(model)
    adapt_input(adapted, 1)
    expected = outputs(model, grey.repeat_interleave(3, axis))
    assert expected.std() > 0
    torch.testing.assert_close(outputs(adapted, grey), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    return adapted


class Patches(nn.Module):
    """Cuts `[N, 3, H, W]` into patches for a linear layer, laid out as in `form`."""

    def __init__(self, form: str = "channel by channel", channels: int = 3) -> None:
        super().__init__()
        self.form = form
        self.embed = nn.Linear(channels * 16, 8)
        self.head = nn.Linear(8, 5)
        self.example_input_array = torch.zeros(2, channels, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        patches = nn.functional.unfold(x, 4, stride=4).transpose(1, 2)  # [N, 4, channels * 16]
        if self.form == "pixel by pixel":
            patches = patches.unflatten(2, (-1, 16)).transpose(2, 3).flatten(2)
        if self.form == "mixed":
            patches = patches.roll(5, 2) + patches
        return self.head(self.embed(patches).tanh().mean(1))


class Branches(nn.Module):
    """Two layers read the image, one of them a smaller copy."""

    def __init__(self) -> None:
        super().__init__()
        self.num_channels = 3
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 5, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.num_channels
        small = nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear")
        parts = [self.fine(x).relu().mean((2, 3)), self.coarse(small).relu().mean((2, 3))]
        return self.head(torch.cat(parts, 1))


class Standardized(nn.Conv2d):
    """Standardizes its filters at each call, as in BiT."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-6), self.bias)


class Video(nn.Module):
    """Reads `[N, T, C, H, W]`, as Hugging Face video models do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv3d(3, 4, 2), nn.Linear(4, 5)
        self.example_input_array = torch.zeros(2, 6, 3, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.transpose(1, 2)).relu().mean((2, 3, 4)))


def beginning_with(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(layer, nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


@pytest.mark.parametrize(
    ("build", "size"),
    [
        pytest.param(small_cnn, (9, 9), id="convolution"),
        pytest.param(Branches, (12, 12), id="two branches"),
        pytest.param(Patches, (8, 8), id="linear, channel by channel"),
        pytest.param(lambda: Patches("pixel by pixel"), (8, 8), id="linear, pixel by pixel"),
        pytest.param(lambda: beginning_with(nn.Conv2d(3, 6, 3, groups=3, padding=1)), (9, 9), id="groups"),
        pytest.param(lambda: beginning_with(Standardized(3, 6, 3)), (9, 9), id="standardized weights"),
        pytest.param(
            lambda: nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 6, 3, padding=1), *beginning_with(nn.ReLU())[1:]),
            (16, 16),
            id="space to depth",
        ),
    ],
)  # fmt: skip
def test_a_grey_image_has_the_output_of_its_rgb_copy(build: Callable[[], nn.Module], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = build()
    if isinstance(model[0] if isinstance(model, nn.Sequential) else None, nn.PixelUnshuffle):
        model.example_input_array = torch.zeros(2, 3, 16, 16)
    assert_grey_is_its_rgb_copy(model, torch.randn(2, 1, *size))


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("resnet18", 64), ("squeezenet1_1", 64), ("mobilenet_v3_small", 64), ("shufflenet_v2_x0_5", 64),
        ("convnext_tiny", 64), ("googlenet", 64), ("densenet121", 64),
    ],
)  # fmt: skip
def test_torchvision(name: str, side: int) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False, "transform_input": False} if name == "googlenet" else {}
    assert_grey_is_its_rgb_copy(models.get_model(name, weights=None, **options), torch.randn(2, 1, side, side))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_nfnet", "crossvit_9_240"])
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name)
    size = model.pretrained_cfg["input_size"][1:]
    adapted = assert_grey_is_its_rgb_copy(model, torch.randn(2, 1, *size))
    assert adapted.pretrained_cfg["input_size"] == (1, *size) == adapted.default_cfg["input_size"]
    assert model.pretrained_cfg["input_size"] == (3, *size)
    if hasattr(model, "in_chans"):
        assert (model.in_chans, adapted.in_chans) == (3, 1)
    assert timm.data.resolve_model_data_config(adapted)["input_size"] == (1, *size)


TINY = {
    "ViT": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
            "image_size": 32, "patch_size": 8},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]},
    "ConvNext": {"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2},
    "Swin": {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4},
    "Bit": {"embedding_size": 32, "hidden_sizes": [128, 128], "depths": [1, 1]},
}  # fmt: skip


@pytest.mark.parametrize("family", list(TINY))
def test_hugging_face(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**TINY[family])
    model = getattr(transformers, f"{family}ForImageClassification")(config)
    adapted = assert_grey_is_its_rgb_copy(model, torch.randn(2, 1, 32, 32))
    assert adapted.config.num_channels == 1
    with pytest.raises((ValueError, RuntimeError), match="channel"):
        adapted(torch.randn(2, 3, 32, 32))
    again = type(adapted)(type(config).from_dict(adapted.config.to_dict()))  # as after save_pretrained
    if family != "Bit":  # keeps its weight; a hook repeats the channel
        again.load_state_dict(adapted.state_dict())


def test_videos_with_frames_first() -> None:
    torch.manual_seed(0)
    adapted = assert_grey_is_its_rgb_copy(Video(), torch.randn(2, 6, 1, 8, 8), axis=2)
    assert adapted.conv.in_channels == 1


@given(old=st.integers(1, 5), new=st.integers(1, 7), dims=st.integers(1, 3), bias=st.booleans())
def test_equal_channels_give_the_same_output_for_any_number(old: int, new: int, dims: int, bias: bool) -> None:
    model = nn.Sequential(CONVOLUTIONS[dims](old, 4, 3, bias=bias), nn.Flatten(2))
    adapted = copy.deepcopy(model)
    picture = torch.randn(2, 1, *(5,) * dims)
    adapt_input(adapted, new, torch.zeros(2, old, *(5,) * dims))
    assert adapted[0].in_channels == new == adapted[0].weight.shape[1]
    if new == 1 or new % old == 0:  # else the repeated channels weigh more
        expected = outputs(model, picture.expand(-1, old, *picture.shape[2:]))
        torch.testing.assert_close(outputs(adapted, picture.expand(-1, new, *picture.shape[2:])), expected)


def test_more_channels_repeat_the_filters_as_in_timm() -> None:
    helpers = pytest.importorskip("timm.models._manipulate")
    model = small_cnn()
    weight = model[0].weight.detach().clone()
    adapt_input(model, 5)
    torch.testing.assert_close(model[0].weight.detach(), helpers.adapt_input_conv(5, weight))


def test_the_layer_keeps_its_class_and_settings() -> None:
    class Own(nn.Conv2d):
        pass

    layer = Own(3, 6, 3, stride=2, padding=1, padding_mode="reflect", dtype=torch.float64)
    layer.note, layer.weight.requires_grad = "mine", False
    model = beginning_with(layer).double()
    adapt_input(model, 1)
    assert model[0] is layer
    assert layer.note == "mine"
    assert (layer.in_channels, layer.stride, layer.padding_mode) == (1, (2, 2), "reflect")
    assert layer.weight.dtype == torch.float64
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad


def test_the_same_number_of_channels_changes_nothing() -> None:
    model = small_cnn()
    weight = model[0].weight
    adapt_input(model, 3)
    assert model[0].weight is weight


def test_adapting_twice_is_adapting_once() -> None:
    torch.manual_seed(0)
    for build in (small_cnn, lambda: beginning_with(Standardized(3, 6, 3))):
        model = build()
        adapt_input(model, 1)
        grey = torch.randn(2, 1, 9, 9)
        once = outputs(model, grey)
        adapt_input(model, 1)
        assert torch.equal(outputs(model, grey), once)
        assert torch.equal(outputs(pickle.loads(pickle.dumps(model)) if build is small_cnn else model, grey), once)


def test_a_model_that_normalizes_its_input_no_longer_does() -> None:
    model = models.googlenet(weights=None, transform_input=True, aux_logits=False, init_weights=False)
    assert normalization_within(model) == (0.5, 0.5)
    original = copy.deepcopy(model)
    adapt_input(model, 1)
    assert normalization_within(model) is None
    grey = torch.rand(2, 1, 64, 64)  # in [0, 1]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = outputs(original, (grey - mean) / std)
    torch.testing.assert_close(outputs(model, (grey - 0.5) / 0.5), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "channels", "why"),
    [
        pytest.param(TokenTransformer(), 1, "linear|guessed images", id="tokens"),
        pytest.param(
            nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2)), 1, "none of the guessed images", id="no image"
        ),
        pytest.param(nn.Sequential(nn.BatchNorm2d(3), small_cnn()), 1, r"0 \(BatchNorm2d\) reads", id="a norm first"),
        pytest.param(Patches("mixed"), 1, "mixed before embed", id="mixed"),
        pytest.param(beginning_with(nn.Conv2d(3, 6, 3, groups=3)), 2, "3 groups", id="groups"),
        pytest.param(small_cnn(), 0, "a whole number of at least 1", id="none"),
        pytest.param(small_cnn(), True, "a whole number of at least 1", id="a flag"),
        pytest.param(small_cnn(), 1.0, "a whole number of at least 1", id="a float"),
    ],
)
def test_a_model_that_cannot_be_adapted_is_an_error_and_unchanged(model: nn.Module, channels: Any, why: str) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ArgumentError, match=why):
        adapt_input(model, channels)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_fails_when_adapted_is_restored() -> None:
    class Insisting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_chans = 3
            self.conv = Standardized(3, 6, 3)
            self.other = nn.Conv2d(3, 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (self.conv(x) + self.other(x)) * x[:, 2].mean()

    model = Insisting()
    weight = model.other.weight
    with pytest.raises(ArgumentError, match="it fails with adapted first layers: index 2 is out of bounds"):
        adapt_input(model, 1)
    assert model.other.weight is weight
    assert model.other.in_channels == model.in_chans == 3
    assert not model.conv._forward_pre_hooks


def test_modes_statistics_and_the_random_state_are_kept() -> None:
    model = small_cnn().train()
    statistics = [buffer.clone() for buffer in model.buffers()]
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    adapt_input(model, 1)
    assert torch.rand(()) == expected
    assert model.training
    assert model[1].training
    assert all(torch.equal(now, then) for now, then in zip(model.buffers(), statistics, strict=True))
