"""An exported file gives the answers of the tuner, which stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from finetune import ArgumentError, ExportError, FineTuner, NonFiniteError, Preprocessing
from finetune.export.deployed import Deployed, Input
from finetune.export.destination import SUFFIXES
from finetune.export.export import _at_other_sizes
from finetune.interpret.calibration import Calibration
from tests.helpers.models import modes, plain_cnn, small_mlp, states

transformers = pytest.importorskip("transformers")

X = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


class TwoInputs(nn.Module):
    """A model of two named inputs that returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layer(torch.cat([left, right], 1))}


class OfTwo(nn.Module):
    """A model that works only for the number of samples it was traced with, and for it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.stack([self.layer(row) for row in x])
        return out


def tuner_of(model: nn.Module, **settings: Any) -> FineTuner:
    return FineTuner(model, device="cpu", **{"loss": "cross_entropy", **settings})


@pytest.mark.parametrize("format", SUFFIXES)
def test_the_model_stays_as_it_was(format: str, tmp_path: Path, same: Callable[[Any, Any], bool]) -> None:
    if format == "pretrained":
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3)
        tuner, data = tuner_of(transformers.ViTForImageClassification(config)), torch.zeros(3, 3, 8, 8)
    else:
        tuner, data = tuner_of(small_mlp()), X
    tuner.freeze()
    tuner.model.train()
    hooked: list[Any] = []
    handle = tuner.model.register_forward_hook(lambda *call: hooked.append(None))
    before, frozen, mode = (
        {k: v.clone() for k, v in tuner.model.state_dict().items()},
        states(tuner.model),
        modes(tuner.model),
    )
    predicted, known = tuner.predict(data), tuner._known
    tuner.export(tmp_path / "model", format, verify=data)
    handle.remove()
    assert same(before, dict(tuner.model.state_dict()))
    assert (states(tuner.model), modes(tuner.model)) == (frozen, mode)
    assert all(parameter.grad is None for parameter in tuner.model.parameters())
    assert tuner.predict(data).equal(predicted)
    assert tuner._known.calibration == known.calibration


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_several_named_inputs(format: str, tmp_path: Path) -> None:
    data = {"left": torch.randn(7, 2), "right": torch.randn(7, 4)}
    made = tuner_of(TwoInputs()).export(tmp_path / "model", format, verify=(data, torch.zeros(7).long()))
    assert [each.name for each in made.inputs] == ["left", "right"]
    assert all(line[9] == " " != line[10] for line in str(made).splitlines()[1:])
    assert made.agreement.same == made.agreement.samples == 7


def test_the_metadata_tells_the_meaning(tmp_path: Path) -> None:
    preprocessing = Preprocessing(8, mean=(0.5,) * 3, std=(0.25,) * 3)
    tuner = tuner_of(plain_cnn(), loss="bce", preprocessing=preprocessing)
    tuner.classes = ("cat", "dog", "남")
    tuner._learn(calibration=Calibration(1.5, (0.2, 0.5, 0.7)))
    tuner.export(tmp_path / "model.onnx")
    tuner.export(tmp_path / "model.safetensors", "state_dict")
    model = onnx.load(tmp_path / "model.onnx")
    facts = {each.key: each.value for each in model.metadata_props}
    assert json.loads(facts["classes"]) == ["cat", "dog", "남"]
    assert json.loads(facts["thresholds"]) == [0.2, 0.5, 0.7]
    assert Preprocessing.from_dict(json.loads(facts["preprocessing"])) == preprocessing
    assert (facts["task"], facts["temperature"], facts["output"]) == ("multilabel", "1.5", "probabilities")
    beside = json.loads((tmp_path / "model.json").read_text())
    assert (beside["classes"], beside["thresholds"]) == (["cat", "dog", "남"], [0.2, 0.5, 0.7])
    (entry,) = model.graph.input
    sizes = [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim]
    assert (entry.name, sizes, model.graph.output[0].name) == ("images", ["N", 8, 8, 3], "probabilities")


def test_data_of_the_user_is_verified_in_every_form(tmp_path: Path) -> None:
    tuner = tuner_of(small_mlp())
    dataset = [(x, 0) for x in X]
    for data in (
        X,
        X.numpy(),
        (X, torch.zeros(20).long()),
        dataset,
        torch.utils.data.DataLoader(dataset, batch_size=3),
    ):
        made = tuner.export(tmp_path / "model.pth", "state_dict", verify=data)
        assert (made.agreement.samples, made.given) == (20, True)
    assert "20 of 20 classes agree" in str(made)
    assert "synthetic" in str(tuner.export(tmp_path / "model.pth", "state_dict"))


def test_labels_give_the_accuracy_and_data_without_says_why_there_is_none(tmp_path: Path) -> None:
    tuner, y = tuner_of(small_mlp()), torch.arange(20) % 3
    tuner.classes = ("a", "b", "c")
    accuracy = tuner.evaluate((X, y))["accuracy"]
    for labels in (y, [tuner.classes[label] for label in y]):
        made = tuner.export(tmp_path / "model.pth", "state_dict", verify=(X, labels))
        assert made.agreement.right == made.agreement.right_before == round(20 * accuracy)
        assert f"accuracy  {100 * accuracy:.2f}%, of the model {100 * accuracy:.2f}% (0.00 points lost)" in str(made)
    for unlabeled, why in ((X, "X alone has no labels"), ((X, ["zebra"] * 20), "'zebra'")):
        made = tuner.export(tmp_path / "model.pth", "state_dict", verify=unlabeled)
        assert made.agreement.accuracy is None
        assert why in made.notes[0]
    assert not tuner.export(tmp_path / "model.pth", "state_dict").notes


def test_images_of_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    images = torch.randn(6, 3, 9, 9)
    tuner = tuner_of(plain_cnn())
    tuner.fit((images, torch.arange(6) % 3), progress=False)
    assert str(tuner.export(tmp_path / "model.pt2", "torch").inputs[0]) == "inputs float32 [N, 3, 9, 9]"


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_model_for_one_number_of_samples_is_refused_and_leaves_nothing(format: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="number of samples"):
        tuner_of(OfTwo()).export(tmp_path / "new" / "model", format, verify=X)
    assert not any(tmp_path.iterdir())


def test_weights_that_are_nan_are_not_exported(tmp_path: Path) -> None:
    model = small_mlp()
    next(model.parameters()).data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="Nothing was written"):
        tuner_of(model).export(tmp_path / "model.pth", "state_dict", verify=X)
    assert not any(tmp_path.iterdir())


def test_another_answer_keeps_the_existing_file(tmp_path: Path) -> None:
    tuner = tuner_of(small_mlp())
    tuner.export(tmp_path / "model.pth", "state_dict")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tuner.predict_step = lambda batch: FineTuner.predict_step(tuner, batch) + 1e9 * torch.eye(3)[0]  # type: ignore[method-assign]
    with pytest.raises(ExportError, match="gives other answers"):
        tuner.export(tmp_path / "model.pth", "state_dict", verify=X)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_names_that_are_wrong_are_refused_before_any_work(tmp_path: Path) -> None:
    tuner = tuner_of(small_mlp())
    with pytest.raises(ArgumentError, match=r"ends in .onnx .* or format='torch', but"):
        tuner.export(tmp_path / "model.pt2")
    with pytest.raises(ArgumentError, match=r"no format 'onx'. Did you mean 'onnx'"):
        tuner.export(tmp_path / "model", "onx")
    with pytest.raises(ArgumentError, match="no quantization 'int4'"):
        tuner.export(tmp_path / "model", quantize="int4")
    assert not any(tmp_path.iterdir())


def test_lora_is_merged(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tuner = tuner_of(small_mlp())
    tuner.fit((X, torch.arange(20) % 3), strategy="lora", epochs=2, progress=False)
    names = {*tuner.model.state_dict()}
    tuner.export(tmp_path / "model.pth", "state_dict", verify=X)
    plain = small_mlp()
    plain.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
    assert tuner_of(plain).predict(X).allclose(tuner.predict(X), atol=1e-6)
    assert {*tuner.model.state_dict()} == names


def test_a_file_is_tried_on_a_sample_alone_and_on_shorter_ones() -> None:
    tokens = torch.randint(11, (6, 8))
    deployed = Deployed(
        nn.Sequential(nn.Embedding(11, 3), nn.AdaptiveAvgPool2d((1, 3)), nn.Flatten()), tokens, torch.sigmoid
    )
    cases = _at_other_sizes(deployed, [tokens], [Input("tokens", "int64", ("N", "T"))], 6)
    (alone,), (shorter,) = (tensors for tensors, _ in cases)
    assert alone.equal(tokens[:1])
    assert shorter.equal(tokens[:, 2:])
    assert all(answers.allclose(deployed(*tensors)) for tensors, answers in cases)
