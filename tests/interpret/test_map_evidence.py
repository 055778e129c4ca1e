"""`FineTuner.heatmaps`: the right place, label and layer, for every task, without a trace in the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer

from finetune import FineTuner
from finetune.errors import ArgumentError
from tests.helpers.squares import peaks_inside, squares

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "cnn": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    ),
    "torchvision ViT": lambda: VisionTransformer(24, 3, 2, 4, 32, 64, num_classes=4),
    "timm Swin": lambda: timm.models.SwinTransformer(
        img_size=24, patch_size=3, window_size=4, embed_dim=16, depths=(2,), num_heads=(2,), num_classes=4
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_evidence_is_in_the_square_that_decides(name: str) -> None:
    torch.manual_seed(0)
    (X, y, _), (others, labels, inside) = squares(1024, 0), squares(100, 1)
    tuner = FineTuner(NETWORKS[name](), device="cpu")
    tuner.fit((X, y), epochs=4, lr=3e-3, progress=False, cache=False, augment=False)
    assert tuner.evaluate((others, labels))["accuracy"] > 0.9
    chance = float(inside.float().mean())
    least = 0.95 if name == "cnn" else 4 * chance
    assert peaks_inside(tuner.heatmaps(others).maps, inside) > least > 3 * chance


def network(outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, outputs),
    )  # fmt: skip


def cam(model: nn.Sequential, X: Tensor, weights: Tensor) -> Tensor:
    """Return class activation maps for weights [N, C] of the features, scaled to 1."""
    with torch.no_grad():
        maps = (copy.deepcopy(model[:3]).eval()(X) * weights[:, :, None, None]).sum(1, keepdim=True).relu()
    maps = nn.functional.interpolate(maps, X.shape[2:], mode="bilinear")[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


X = torch.randn(7, 3, 12, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch_size", [3, 32])
def test_the_answer_of_each_sample_is_explained(batch_size: int) -> None:
    model = network(4)
    tuner = FineTuner(model, device="cpu", loss="cross_entropy").freeze()
    tuner.classes = "a", "b", "c", "d"
    found, answers = tuner.heatmaps(X, batch_size=batch_size), tuner.predict(X).argmax(1)
    assert found.answers == tuple("abcd"[answer] for answer in answers)
    assert found.names == tuple(f"sample {index}" for index in range(7))
    assert torch.allclose(found.maps, cam(model, X, model[5].weight[answers]), atol=1e-4)


@pytest.mark.parametrize("of", ["c", 2, torch.tensor(2), [2] * 7, ["c", 2] * 3 + ["c"], torch.full((7,), 2)])
def test_a_label_is_explained_by_name_and_number(of: Any) -> None:
    model = network(4)
    tuner = FineTuner(model, device="cpu", loss="cross_entropy")
    tuner.classes = "a", "b", "c", "d"
    found = tuner.heatmaps(X, of=of, batch_size=2)
    assert found.answers == ("c",) * 7
    assert torch.allclose(found.maps, cam(model, X, model[5].weight[[2] * 7]), atol=1e-4)


def test_one_output_of_two_classes_speaks_for_either() -> None:
    model = network(1)
    tuner = FineTuner(model, device="cpu", loss="bce")
    tuner.classes = "no", "yes"
    signs = tuner.predict(X).sign()
    found = tuner.heatmaps(X)
    assert found.answers == tuple("yes" if sign > 0 else "no" for sign in signs[:, 0])
    assert torch.allclose(found.maps, cam(model, X, signs * model[5].weight), atol=1e-4)
    assert torch.allclose(tuner.heatmaps(X, of="no").maps, cam(model, X, -model[5].weight.expand(7, 6)), atol=1e-4)


def test_several_labels_and_values() -> None:
    model = network(3)
    labels = FineTuner(model, device="cpu", loss="bce")
    assert labels.heatmaps(X).answers == tuple(map(str, labels.predict(X).argmax(1).tolist()))
    value = FineTuner(network(1), device="cpu", loss="mse")
    assert value.heatmaps(X).answers == ("value",) * 7
    values = FineTuner(model, device="cpu", loss="mse")
    with pytest.raises(ArgumentError, match="Name the one"):
        values.heatmaps(X)
    assert torch.allclose(values.heatmaps(X, of=1).maps, labels.heatmaps(X, of=1).maps)


class Auxiliary(nn.Module):
    """Frozen features without gradients, a head, and an auxiliary one in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head, self.other = network(1)[:3], nn.Conv2d(6, 4, 1), nn.Linear(6, 4)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            features = self.features(pixel_values)
        return {"logits": self.head(features).mean((2, 3)), "aux": self.other(features.mean((2, 3)))}


def test_logits_in_an_object_after_features_without_gradients() -> None:
    model = Auxiliary()
    tuner = FineTuner(model, device="cpu", loss="cross_entropy")
    found = tuner.heatmaps(DataLoader(TensorDataset(X), 2))  # features themselves have no gradient
    assert found.layer == "head"
    assert found.maps.shape == (7, 12, 10)


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"compile": "eager"}])
def test_the_model_is_as_before(settings: dict[str, Any]) -> None:
    model = network(4).train()
    model[0].requires_grad_(False)
    tuner = FineTuner(model, device="cpu", loss="cross_entropy", **settings)
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    with torch.inference_mode():
        found = tuner.heatmaps(X.clone())
    plain = FineTuner(copy.deepcopy(model), device="cpu", loss="cross_entropy").heatmaps(X)
    assert torch.allclose(found.maps, plain.maps, atol=0.05)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, False, *[True] * 4]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_that_the_user_compiled() -> None:
    model = network(4)
    expected = FineTuner(model, device="cpu", loss="cross_entropy").heatmaps(X)
    wrapped = FineTuner(torch.compile(model, backend="eager"), device="cpu", loss="cross_entropy")
    wrapped.predict(X)
    assert torch.equal(wrapped.heatmaps(X).maps, expected.maps)


@pytest.mark.parametrize(
    ("model", "data", "options", "message"),
    [
        (nn.Linear(4, 2), torch.zeros(3, 4), {}, r"Heatmaps are for images, but .* float32 \[3, 4\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(360, 2)), X, {}, "Sequential has no layer with positions"),
        (network(2), X, {"layer": "5"}, "The layer '5' has no heatmap"),
        (network(2), X, {"layer": "convolution"}, "has no layer 'convolution'"),
        (network(2), X, {"of": 2}, "There is no class 2 .* Expected one of 0, 1"),
        (network(2), X, {"of": "dog"}, "There is no class 'dog'"),
        (network(2), X, {"of": [0, 1]}, "got 2 for 7 samples"),
    ],
)
def test_errors_say_what_to_do(model: nn.Module, data: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        FineTuner(model, device="cpu").heatmaps(data, **options)


def test_interpret_shows_the_evidence_for_the_wrong_answers() -> None:
    model = network(3)
    targets = torch.arange(7) % 3
    tuner = FineTuner(model, device="cpu")
    found = tuner.interpret((X, targets), heatmaps=True)
    wrong = found.mistakes()
    assert len(wrong) > 1
    assert found.heatmaps is not None
    assert found.heatmaps.answers == tuple(row.answer for row in wrong)
    alone = tuner.heatmaps(X[[row.index for row in wrong]], of=[row.answer for row in wrong])
    assert torch.equal(found.heatmaps.maps, alone.maps)
    figure = found.plot_mistakes(2)
    assert np.array_equal(figure.axes[0].images[0].get_array(), np.asarray(alone.overlay(0)))
    assert found._repr_html_() != tuner.interpret((X, targets))._repr_html_()
    assert "nowhere" not in found._repr_html_() + figure.axes[0].get_title(loc="left")
    found.heatmaps.maps[0] = 0
    assert found._repr_html_().count("evidence: nowhere") == 1
    captions = [axes.get_title(loc="left") for axes in found.plot_mistakes(2).axes]
    assert [caption.endswith("\nevidence: nowhere") for caption in captions] == [True, False]
    right = tuner.interpret((X, tuner.predict(X).argmax(1)), heatmaps=True)
    assert right.heatmaps is None
