"""A new model family is one class and one entry in the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import ArgumentError, CheckpointError, FineTuner
from finetune.model import catalog
from finetune.model.families import FAMILIES, CatalogModel, Family, family_of
from finetune.model.inspection.probing import accepted_example
from finetune.model.stages import stages
from finetune.model.surgery.head_search import find_head

torch.manual_seed(0)
X, Y = torch.randn(12, 6), torch.arange(12) % 2


class TwoTowers(nn.Module):
    """A model whose forward pass leaves its head ambiguous, because two layers reach the output."""

    def __init__(self, width: int, classes: int = 4) -> None:
        super().__init__()
        self.features = nn.Linear(6, width)
        self.classifier = nn.Linear(width, classes)
        self.shortcut = nn.Linear(6, 1)
        self.facts: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.features(x).relu()) + self.shortcut(x)
        return out


class Towers(Family):
    """The family of `TwoTowers`, as a user would write it."""

    prefix = "towers/"
    usage = "'towers/WIDTH'"

    def owns(self, model: nn.Module) -> bool:
        return isinstance(model, TwoTowers)

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        return ("classifier",)

    def depth(self, model: nn.Module) -> list[list[str]]:
        stem = [name for name, _ in model.named_parameters() if not name.startswith("classifier")]
        return [stem, ["classifier.weight", "classifier.bias"]]

    def examples(self, model: nn.Module, samples: int) -> list[Any]:
        return [torch.ones(samples, 6)]

    def tell_task(self, model: nn.Module, kind: str | None, classes: Sequence[str] | None) -> None:
        model.facts.update(kind=kind, classes=classes)  # type: ignore[union-attr, operator]

    def published(self, name: str) -> list[str]:
        return ["ONES"]

    def create(self, name: str, weights: str | None, *, as_pretrained: bool) -> CatalogModel:
        model = TwoTowers(int(name))
        if weights is not None:
            nn.init.ones_(model.features.weight)
        return CatalogModel(model, {"name": name, "width": int(name)}, classes=tuple("abcd") if weights else None)

    def rebuild(self, origin: Mapping[str, Any]) -> nn.Module:
        return TwoTowers(origin["width"])


@pytest.fixture
def towers(monkeypatch: pytest.MonkeyPatch) -> Towers:
    family = Towers()
    monkeypatch.setitem(FAMILIES, "towers", family)
    return family


def test_a_new_family_works_from_its_name_to_its_checkpoint(towers: Towers, tmp_path: Path) -> None:
    tuner = FineTuner("towers/8", weights="ONES", device="cpu")
    assert isinstance(tuner.model, TwoTowers)
    assert tuner.model.features.weight.eq(1).all()
    assert tuner.classes == ("a", "b", "c", "d")
    tuner.replace_head(2).freeze()
    assert tuner.head is tuner.model.classifier
    history = tuner.fit((X, ["cat", "dog"] * 6), progress=False)
    assert len(history) == 1
    assert tuner.model.facts == {"kind": "classification", "classes": ("cat", "dog")}
    again = FineTuner.load_checkpoint(tuner.save_checkpoint(tmp_path / "towers.safetensors"), device="cpu")
    assert isinstance(again.model, TwoTowers)
    assert again.classes == ("cat", "dog")
    assert torch.equal(again.predict(X), tuner.predict(X))


def test_a_module_of_a_new_family_is_recognized(towers: Towers) -> None:
    model = TwoTowers(8)
    assert family_of(model) is towers
    assert find_head(model) == ("classifier",)
    assert accepted_example(model).eq(1).all()
    assert [stage.name for stage in stages(model, find_head(model))] == ["features", "classifier"]
    assert FineTuner(model, device="cpu").replace_head(2).evaluate((X, Y)).keys() >= {"loss"}


def test_an_unknown_name_lists_the_new_family_too(towers: Towers) -> None:
    with pytest.raises(ArgumentError, match=r"Expected 'towers/WIDTH', a torchvision classifier such as"):
        catalog.create("tower/8")
    with pytest.raises(CheckpointError, match=r"There are no weights 'TWOS' for towers/8.* published weights ONES"):
        catalog.create("towers/8", "TWOS")


def test_a_checkpoint_of_a_missing_family_asks_for_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(FAMILIES, "towers", Towers())
        tuner = FineTuner("towers/8", weights=None, device="cpu")
        file = tuner.save_checkpoint(tmp_path / "towers.safetensors")
    with pytest.raises(CheckpointError, match=r"'8' from towers, which cannot be built by name here.*model="):
        FineTuner.load_checkpoint(file, device="cpu")
    again = FineTuner.load_checkpoint(file, TwoTowers(8), device="cpu")
    assert torch.equal(again.predict(X), tuner.predict(X))


def test_the_default_family_has_no_answers_and_changes_nothing() -> None:
    model = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    family = family_of(model)
    assert type(family) is Family
    assert not family.owns(model)
    assert family.heads(model) == ()
    assert family.depth(model) is None
    assert family.examples(model, 2) == []
    assert family.classes(model) is None
    assert family.preset(model) is None
    family.add_head(model, 3)
    family.reset(model)
    family.tell_outputs(model, 3)
    family.tell_task(model, "classification", ["a", "b"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert family.local_name("anything") is None
