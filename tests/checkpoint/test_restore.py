"""Saving and loading restores weights, head, classes, preprocessing, freeze state, history and settings."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from finetune import ArgumentError, CheckpointError, FineTuner, HeadError, Preprocessing
from finetune.checkpoint import file

NAME = "squeezenet1_1"  # small, with a convolution followed by a ReLU as its head
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, features: int = 8, outputs: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, features), nn.BatchNorm1d(features), nn.ReLU())
        self.fc = nn.Linear(features, outputs)
        self.num_classes = outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x))


class Custom(nn.Module):
    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.inner = nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.inner(x)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def net(seed: int = 0, **sizes: int) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(**sizes)


def data(n: int = 12, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)), torch.arange(n) % classes


def state(model: nn.Module) -> dict[str, Any]:
    """Copy everything that a failed load might change."""
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modules": dict(model.named_modules()),
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "num_classes": getattr(model, "num_classes", None),
        "attributes": set(vars(model)),
    }


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    weights, others = left.pop("weights"), right.pop("weights")
    assert left == right
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


# ---------------------------------------------------------------------- models by name


def test_trap_25_a_model_by_name_is_loaded_without_network_or_user_code(offline: None, tmp_path: Path) -> None:
    tuner = FineTuner(NAME, weights=None, device="cpu", seed=3).replace_head(3).freeze().unfreeze("features.12")
    path = tuner.save_checkpoint(tmp_path / "model.safetensors")
    before = torch.get_rng_state()

    loaded = FineTuner.load_checkpoint(path, device="cpu")

    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loaded.predict(IMAGES), tuner.predict(IMAGES))
    assert [p.requires_grad for p in loaded.model.parameters()] == [p.requires_grad for p in tuner.model.parameters()]
    assert type(loaded.model) is type(tuner.model)
    assert loaded.settings == tuner.settings
    assert torch.equal(loaded.save_checkpoint(tmp_path / "again") and loaded.predict(IMAGES), tuner.predict(IMAGES))


def test_trap_26_classes_preprocessing_history_and_settings_come_back(tmp_path: Path) -> None:
    from PIL import Image

    for label, colour in (("cat", 30), ("dog", 200)):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40, 40), (colour, 10 * i, 90)).save(tmp_path / "pets" / label / f"{i}.png")
    preprocessing = Preprocessing(crop_size=(32, 32), resize_size=36, mean=(0.1, 0.2, 0.3))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    tuner = FineTuner(
        model, preprocessing=preprocessing, metrics=["accuracy", "f1"], optimizer="sgd", weight_decay=0.5,
        max_grad_norm=2.0, gradient_accumulation_steps=2, seed=7, device="cpu", precision="fp32",
    ).freeze("0")  # fmt: skip
    tuner.fit(tmp_path / "pets", epochs=2, batch_size=2, progress=False)
    path = tuner.save_checkpoint(tmp_path / "pets.safetensors")

    loaded = FineTuner.load_checkpoint(path, copy.deepcopy(model), device="cpu")

    assert loaded.classes == ("cat", "dog")
    assert loaded.preprocessing == preprocessing
    assert list(loaded.history) == list(tuner.history)
    assert loaded.settings.plain() == tuner.settings.plain()
    assert (loaded.task.kind, loaded.task.ignored) == (tuner.task.kind, tuner.task.ignored)
    assert [p.requires_grad for p in loaded.model.parameters()] == [False, False, True, True]
    pictures = sorted((tmp_path / "pets").rglob("*.png"))
    assert torch.equal(loaded.predict(pictures), tuner.predict(pictures))
    assert loaded.evaluate(tmp_path / "pets") == tuner.evaluate(tmp_path / "pets")

    loaded.fit(tmp_path / "pets", val=False, epochs=1, progress=False)
    assert [row["epoch"] for row in loaded.history] == [1, 2, 3]


def test_arguments_of_load_checkpoint_override_the_saved_settings(tmp_path: Path) -> None:
    path = FineTuner(net(), weight_decay=0.5, seed=7, device="cpu").save_checkpoint(tmp_path / "f")

    loaded = FineTuner.load_checkpoint(path, net(), device="cpu", weight_decay=0.0, optimizer=torch.optim.Adam)

    assert (loaded.settings.weight_decay, loaded.settings.seed) == (0.0, 7)
    assert loaded.settings.optimizer is torch.optim.Adam


def test_classes_of_the_training_data_replace_those_of_the_weights_after_loading(tmp_path: Path) -> None:
    tuner = FineTuner(net(outputs=2), device="cpu")
    tuner.classes = ("tench", "goldfish")
    loaded = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "f"), net(outputs=2), device="cpu")
    assert loaded.classes == ("tench", "goldfish")

    loaded.fit((data()[0], ["yes", "no"] * 6), progress=False)

    assert loaded.classes == ("no", "yes")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_with_auxiliary_heads_keep_their_attributes(name: str, tmp_path: Path) -> None:
    tuner = FineTuner(name, weights=None, device="cpu").replace_head(2)
    loaded = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "f"), device="cpu")

    for attribute in ("aux_logits", "transform_input"):
        assert getattr(loaded.model, attribute) == getattr(tuner.model, attribute)
    assert loaded.model.state_dict().keys() == tuner.model.state_dict().keys()
    assert {p.shape[0] for name, p in loaded.model.named_parameters() if "fc" in name and "fc1" not in name} == {2}


# ---------------------------------------------------------------------- heads


def two_layers(features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 6), nn.LayerNorm(6), nn.GELU(), nn.Dropout(0.1), nn.Linear(6, 3))


HEADS: dict[str, Callable[[FineTuner], Any]] = {
    "none": lambda tuner: tuner,
    "fresh": lambda tuner: tuner.replace_head(3),
    "append": lambda tuner: tuner.replace_head(3, head="append"),
    "append twice": lambda tuner: tuner.replace_head(3, head="append").replace_head(4, head="append"),
    "factory": lambda tuner: tuner.replace_head(3, head=two_layers),
    "module": lambda tuner: tuner.replace_head(3, head=two_layers(8)),
    "twice": lambda tuner: tuner.replace_head(3, head=two_layers).replace_head(4),
    "append, then anew": lambda tuner: tuner.replace_head(3, head="append").replace_head(6, layer="fc"),
    "layer": lambda tuner: tuner.replace_head(3, layer="fc"),
}


@pytest.mark.parametrize("how", HEADS)
def test_every_head_is_restored_on_a_model_with_its_original_or_its_new_head(how: str, tmp_path: Path) -> None:
    tuner = FineTuner(net(), device="cpu")
    HEADS[how](tuner)
    path = tuner.save_checkpoint(tmp_path / "f")
    again = FineTuner(net(5), device="cpu", seed=4)
    HEADS[how](again)

    for model in (net(9), again.model):
        loaded = FineTuner.load_checkpoint(path, model, device="cpu")
        assert loaded.model is model
        assert torch.equal(loaded.predict(data()[0]), tuner.predict(data()[0]))
        assert loaded.head is loaded.model.get_submodule(tuner.network.required_heads()[0])

        loaded.replace_head(2)
        second = FineTuner.load_checkpoint(loaded.save_checkpoint(tmp_path / "g"), net(3), device="cpu")
        assert torch.equal(second.predict(data()[0]), loaded.predict(data()[0]))


@pytest.mark.parametrize("head", ["append", lambda features: nn.Sequential(nn.Conv2d(features, 2, 1)), None])
def test_a_model_by_name_is_rebuilt_with_any_head_of_standard_layers(head: Any, tmp_path: Path) -> None:
    tuner = FineTuner(NAME, weights=None, device="cpu").replace_head(2, head=head)
    loaded = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "f"), device="cpu")

    assert torch.equal(loaded.predict(IMAGES), tuner.predict(IMAGES))


def test_a_custom_head_needs_the_model(tmp_path: Path) -> None:
    def make() -> FineTuner:
        return FineTuner("resnet18", weights=None, device="cpu").replace_head(2, head=lambda f: Custom(f, 2))

    tuner = make()
    path = tuner.save_checkpoint(tmp_path / "f")

    with pytest.raises(CheckpointError, match=r"head in .* is a custom module.*model="):
        FineTuner.load_checkpoint(path, device="cpu")
    loaded = FineTuner.load_checkpoint(path, make().model, device="cpu")
    assert torch.equal(loaded.predict(IMAGES), tuner.predict(IMAGES))


def test_a_module_of_the_users_own_cannot_be_built_by_name(tmp_path: Path) -> None:
    path = FineTuner(net(), device="cpu").save_checkpoint(tmp_path / "f")

    with pytest.raises(CheckpointError, match=r"holds your custom Net.*model="):
        FineTuner.load_checkpoint(path)


# ---------------------------------------------------------------------- models that do not fit


@pytest.mark.parametrize("how", ["none", "fresh", "append", "factory"])
@pytest.mark.parametrize(
    "make", [lambda: net(features=9), lambda: nn.Sequential(nn.Linear(4, 3)), lambda: nn.Linear(4, 3)]
)
def test_another_model_is_an_error_and_left_unchanged(how: str, make: Callable[[], nn.Module], tmp_path: Path) -> None:
    tuner = FineTuner(net(), device="cpu").freeze("stem")
    path = HEADS[how](tuner).save_checkpoint(tmp_path / "f")
    model = make().eval()
    before = state(model)

    with pytest.raises(CheckpointError, match="does not belong to this"):
        FineTuner.load_checkpoint(path, model)

    assert_same(state(model), before)


@pytest.mark.parametrize("settings", [{"optimizer": "adamw", "max_grad_norm": -1.0}, {"nonsense": 1}, {"device": "no"}])
def test_a_wrong_argument_leaves_the_model_unchanged(settings: dict[str, Any], tmp_path: Path) -> None:
    path = FineTuner(net(), device="cpu").replace_head(3).save_checkpoint(tmp_path / "f")
    model = net(4)
    before = state(model)

    with pytest.raises((ArgumentError, TypeError)):
        FineTuner.load_checkpoint(path, model, **settings)

    assert_same(state(model), before)


def test_an_unknown_model_name_is_an_error(tmp_path: Path) -> None:
    path = FineTuner(NAME, weights=None, device="cpu").save_checkpoint(tmp_path / "f")
    content = file.read(path).content
    content["model"]["source"]["name"] = "resnet19"
    file.write(path, content)

    with pytest.raises(CheckpointError, match="'resnet19' from torchvision, which cannot be built by name here"):
        FineTuner.load_checkpoint(path)


# ---------------------------------------------------------------------- values that need care


def test_a_tuner_with_objects_in_its_settings_can_be_saved(tmp_path: Path) -> None:
    import torchmetrics

    tuner = FineTuner(
        net(outputs=3), device="cpu", loss=nn.CrossEntropyLoss(label_smoothing=0.1), optimizer=torch.optim.Adam,
        metrics={"top": torchmetrics.classification.MulticlassAccuracy(num_classes=3)}, weight_decay=0.25,
    )  # fmt: skip
    tuner.fit(DataLoader(TensorDataset(*data()), batch_size=4), progress=False, checkpoint_dir=tmp_path / "run")
    loaded = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "f"), net(outputs=3), device="cpu")

    assert torch.equal(loaded.predict(data()[0]), tuner.predict(data()[0]))
    assert loaded.settings.weight_decay == 0.25
    assert list(loaded.history) == list(tuner.history)
    assert (tmp_path / "run" / "last.safetensors").is_file()


class Counted(Net):
    """A module with extra state that is not a tensor."""

    def __init__(self, count: Any) -> None:
        super().__init__()
        self.count = count

    def get_extra_state(self) -> Any:
        return self.count

    def set_extra_state(self, state: Any) -> None:
        self.count = state


def test_plain_extra_state_is_restored_and_other_extra_state_is_an_error(tmp_path: Path) -> None:
    path = FineTuner(Counted({"seen": 3}), device="cpu").save_checkpoint(tmp_path / "f")

    assert FineTuner.load_checkpoint(path, Counted(None), device="cpu").model.count == {"seen": 3}
    with pytest.raises(CheckpointError, match="_extra_state is a object"):
        FineTuner(Counted(object()), device="cpu").save_checkpoint(path)
    assert FineTuner.load_checkpoint(path, Counted(None), device="cpu").model.count == {"seen": 3}


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    def make(seed: int) -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
        torch.nn.init.normal_(model[0].weight, generator=torch.Generator().manual_seed(seed))
        model[2].weight = model[0].weight
        return model

    tuner = FineTuner(make(0), device="cpu").freeze("0")
    loaded = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "f"), make(1), device="cpu")

    assert loaded.model[0].weight is loaded.model[2].weight
    assert torch.equal(loaded.predict(data()[0]), tuner.predict(data()[0]))


def test_a_model_without_a_clear_head_can_be_saved(tmp_path: Path) -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    tuner = FineTuner(Raw(), device="cpu")
    tuner.fit(data(), progress=False)
    loaded = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "f"), Raw(), device="cpu")

    assert torch.equal(loaded.predict(data()[0]), tuner.predict(data()[0]))
    with pytest.raises(HeadError):
        loaded.replace_head(2)
