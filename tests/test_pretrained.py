"""Load a model, and adapt it to grayscale images and other numbers of channels, up to the checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from finetune import ArgumentError, CheckpointError, FineTuner, Preprocessing
from finetune.model.surgery.changes import InputAdaptation
from finetune.pretrained import load_pretrained

SMALL = {"crop_size": 48, "resize_size": 48}
HALVES = {**SMALL, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
Y = torch.arange(6) % 3


class Standardized(nn.Conv2d):
    """Keeps its weight when it is adapted, so its weight does not reveal the number of channels."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.std((1, 2, 3), keepdim=True), self.bias)


def net(convolution: type[nn.Conv2d] = nn.Conv2d) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(convolution(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder of grayscale images in three classes."""
    draw = np.random.default_rng(0)
    for name in "abc":
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(2):
            values = draw.integers(0, 256, (48, 48), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


def built(name: str, **settings: Any) -> FineTuner:
    return FineTuner(name, **{"weights": None, "preprocessing": HALVES, "device": "cpu", **settings})


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_grayscale_images_have_the_outputs_of_their_rgb_copies(name: str, pictures: Path) -> None:
    rgb, grey = built(name).predict(pictures), built(name, in_channels=1).predict(pictures)
    torch.testing.assert_close(grey, rgb, rtol=1e-3, atol=1e-4 * float(rgb.abs().max()))


def test_with_imagenets_mean_only_a_constant_tint_is_lost(pictures: Path) -> None:
    grey = built("resnet18", preprocessing=SMALL, in_channels=1)
    rgb = Preprocessing.from_dict(SMALL)
    bytes_ = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256)
    three = rgb.normalize(bytes_.expand(-1, 3, -1, -1))
    one = grey.preprocessing.normalize(bytes_)
    torch.testing.assert_close(one, three.mean(1, keepdim=True))
    assert (three - one).abs().max() < 0.25  # of a channel's standard deviation; the whole range is 4.4 of them
    assert grey.predict(pictures).shape == (6, 1000)


def test_a_model_that_normalizes_its_own_input(tmp_path: Path, pictures: Path) -> None:
    torch.manual_seed(0)
    model = models.googlenet(weights=None, aux_logits=False, init_weights=False)
    torch.save(model.state_dict(), tmp_path / "googlenet.pth")
    settings = {"weights": tmp_path / "googlenet.pth", "preprocessing": SMALL}
    rgb, grey = built("googlenet", **settings), built("googlenet", in_channels=1, **settings)
    assert rgb.model.transform_input
    assert not grey.model.transform_input
    expected = rgb.predict(pictures)
    torch.testing.assert_close(grey.predict(pictures), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    again = FineTuner.load_checkpoint(grey.save_checkpoint(tmp_path / "grey"), device="cpu")
    assert torch.equal(again.predict(pictures), grey.predict(pictures))


def test_a_named_grayscale_model_trains_and_loads(pictures: Path, tmp_path: Path) -> None:
    tuner = built("squeezenet1_1", in_channels=1).replace_head(3).freeze()
    tuner.fit(pictures, val=False, epochs=1, progress=False)
    again = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "grey"), device="cpu")
    assert again.preprocessing == tuner.preprocessing
    assert again.preprocessing.channels == 1
    assert torch.equal(again.predict(pictures), tuner.predict(pictures))
    once_more = FineTuner.load_checkpoint(again.save_checkpoint(tmp_path / "again"), device="cpu")
    assert torch.equal(once_more.predict(pictures), tuner.predict(pictures))


@pytest.mark.parametrize("convolution", [nn.Conv2d, Standardized])
def test_a_custom_module_is_adapted_again_when_loaded(
    convolution: type[nn.Conv2d], pictures: Path, tmp_path: Path
) -> None:
    tuner = FineTuner(net(convolution), in_channels=1, preprocessing=SMALL, device="cpu").replace_head(3)
    tuner.fit(pictures, val=False, epochs=1, progress=False)
    file = tuner.save_checkpoint(tmp_path / "grey")
    fresh = net(convolution)
    again = FineTuner.load_checkpoint(file, fresh, device="cpu")
    assert again.model is fresh
    assert torch.equal(again.predict(pictures), tuner.predict(pictures))
    adapted = FineTuner(net(convolution), in_channels=1, device="cpu").model
    loaded = FineTuner.load_checkpoint(file, adapted, device="cpu")
    assert torch.equal(loaded.predict(pictures), again.predict(pictures))
    with pytest.raises(CheckpointError, match="belong"):
        FineTuner.load_checkpoint(file, nn.Sequential(nn.Linear(3, 3)), device="cpu")


def test_five_channels_work_with_tensors(tmp_path: Path) -> None:
    tuner = FineTuner(net(), in_channels=5, device="cpu").replace_head(3).freeze()
    x = torch.randn(6, 5, 9, 9)
    tuner.fit((x, Y), progress=False)
    assert tuner.preprocessing is None
    again = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "five"), net(), device="cpu")
    assert torch.equal(again.predict(x), tuner.predict(x))


def test_a_wrapped_model_is_adapted_inside() -> None:
    tuner = FineTuner(nn.DataParallel(net()), in_channels=1, device="cpu")
    assert tuner.inner[0].in_channels == 1
    assert tuner.predict(torch.zeros(2, 1, 9, 9)).shape == (2, 5)


def test_none_and_three_channels_change_nothing() -> None:
    for channels in (None, 3):
        model = net()
        weight = model[0].weight
        assert FineTuner(model, in_channels=channels, device="cpu").model[0].weight is weight
    with pytest.raises(ArgumentError, match="a whole number of at least 1"):
        FineTuner(net(), in_channels=0)


def test_a_name_gives_a_model_with_its_origin_and_preprocessing() -> None:
    loaded = load_pretrained("squeezenet1_1", weights=None, in_channels=1)
    assert loaded.origin == {"family": "torchvision", "name": "squeezenet1_1", "options": {}}
    assert loaded.preprocessing.channels == 1
    assert loaded.changes == (InputAdaptation(1),)
    assert loaded.classes is None


def test_a_module_is_taken_as_it_is_or_with_weights_from_a_file(tmp_path: Path) -> None:
    model, other = net(), net()
    nn.init.zeros_(other[4].weight)
    torch.save(other.state_dict(), tmp_path / "w.pth")
    loaded = load_pretrained(nn.DataParallel(model), weights=tmp_path / "w.pth")
    assert loaded.model.module is model
    assert not model[4].weight.any()
    assert (loaded.origin, loaded.classes, loaded.preprocessing, loaded.changes) == (None, None, None, ())
    with pytest.raises(ArgumentError, match=r"Expected model to be an nn.Module or a name, but got 3"):
        load_pretrained(3)


# ---------------------------------------------------------------------- a checkpoint as a start


class Tanh(nn.Sequential):
    """A head that a checkpoint cannot build."""

    def __init__(self, features: int) -> None:
        super().__init__(nn.Linear(features, 3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)  # type: ignore[no-any-return]


def stage_one(path: Path, **head: Any) -> FineTuner:
    tuner = FineTuner("squeezenet1_1", weights=None, preprocessing=SMALL, device="cpu").replace_head(3, **head)
    tuner.classes = ("ant", "bee", "cat")
    tuner.freeze()
    tuner.save_checkpoint(path)
    return tuner


def test_a_checkpoint_is_a_start_with_its_head_classes_and_preprocessing(tmp_path: Path) -> None:
    first = stage_one(tmp_path / "1.safetensors")
    second = FineTuner("squeezenet1_1", weights=tmp_path / "1.safetensors", device="cpu")
    images = [Image.new("RGB", (50, 60), (level, 9, 99)) for level in (0, 200)]
    assert torch.equal(second.predict(images), first.predict(images))
    assert (second.classes, second.preprocessing) == (first.classes, first.preprocessing)
    assert all(parameter.requires_grad for parameter in second.model.parameters())

    third = FineTuner.load_checkpoint(second.save_checkpoint(tmp_path / "2.safetensors"), device="cpu")
    assert torch.equal(third.predict(images), first.predict(images))


@pytest.mark.parametrize(("outputs", "kept"), [(5, True), (2, False)])
def test_a_checkpoint_is_a_start_for_a_module(
    outputs: int, kept: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = FineTuner(net(), device="cpu")
    first.save_checkpoint(tmp_path / "1")
    model = net()
    model[4] = nn.Linear(4, outputs)
    own = model[4].weight.clone()
    second = FineTuner(model, weights=tmp_path / "1", device="cpu")
    assert torch.equal(second.model[0].weight, first.model[0].weight)
    assert torch.equal(second.model[4].weight, first.model[4].weight if kept else own)
    assert ("does not fit this Sequential, which keeps its own 4" in caplog.text) != kept


def test_a_head_that_cannot_be_built_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    first = FineTuner("resnet18", weights=None, device="cpu").replace_head(3, head=Tanh)
    first.save_checkpoint(tmp_path / "1")
    second = FineTuner("resnet18", weights=tmp_path / "1", device="cpu")
    assert torch.equal(second.model.conv1.weight, first.model.conv1.weight)
    assert second.head.out_features == 1000
    assert "keeps its own fc; the other 120 weights are loaded" in caplog.text


def test_weights_that_do_not_fit_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"The weights in .*w\.safetensors do not fit Linear: 0 of 2 matched"):
        FineTuner(nn.Linear(4, 2), weights=tmp_path / "w.safetensors", device="cpu")


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    stage_one(tmp_path / "1")
    for model in ("squeezenet1_0", net(), nn.Linear(4, 2)):
        with pytest.raises(CheckpointError, match="does not belong to this"):
            FineTuner(model, weights=tmp_path / "1", device="cpu")


def test_a_head_resized_for_a_state_dict_is_in_the_next_checkpoint(tmp_path: Path) -> None:
    model = FineTuner("squeezenet1_1", weights=None, device="cpu").replace_head(4).model
    torch.save(model.state_dict(), tmp_path / "w.pth")
    started = FineTuner("squeezenet1_1", weights=tmp_path / "w.pth", device="cpu")
    loaded = FineTuner.load_checkpoint(started.save_checkpoint(tmp_path / "1"), device="cpu")
    assert torch.equal(loaded.model.classifier[1].weight, model.classifier[1].weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": True}, "'DEFAULT' for the best published ones.*got True"),
        ({"weights": False}, "None for random ones.*got False"),
        ({"weights": {}}, "got a dict"),
        ({"weights": 3}, "got a int"),
    ],
)
def test_weights_of_other_libraries_get_a_hint(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        FineTuner("resnet18", device="cpu", **arguments)


def test_a_member_of_torchvisions_enumeration_names_weights() -> None:
    with pytest.raises(CheckpointError, match="There are no weights 'IMAGENET1K_V2' for resnet18"):
        FineTuner("resnet18", weights=models.ResNet50_Weights.IMAGENET1K_V2, device="cpu")


def _on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(4, 2)


def _in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(4, 2)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (_on_meta, "weight is on the meta device"),
        (_in_inference_mode, "weight was made under torch.inference_mode"),
        (lambda: nn.Linear(4, 2).state_dict(), "got a OrderedDict with the keys 'weight', 'bias', as of a state dict"),
        (lambda: torch.ones(1000), "an nn.Module or a name, but got tensor"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(made: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as raised:
        FineTuner(made(), device="cpu")
    assert len(str(raised.value)) < 400


def test_a_frozen_script_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on TorchScript
        frozen = torch.jit.freeze(torch.jit.script(nn.Linear(4, 2).eval()))
    with pytest.raises(ArgumentError, match=r"frozen by torch\.jit\.freeze"):
        FineTuner(frozen, device="cpu")
