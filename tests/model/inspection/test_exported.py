"""Programs of torch.jit, torch.fx and torch.export in the place of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from finetune import ArgumentError, DataError, FineTuner, HeadError

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
torch.manual_seed(0)
X, Y = torch.randn(12, 4), torch.arange(12) % 3
ANY_NUMBER = ({0: torch.export.Dim("samples", min=1)},)


def mlp(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), *between, nn.ReLU(), nn.Linear(8, 3))


def exported(model: nn.Module) -> Any:
    return torch.export.export(model, (X[:2],), dynamic_shapes=ANY_NUMBER).module()


PROGRAMS: dict[str, Callable[[], nn.Module]] = {
    "fx": lambda: torch.fx.symbolic_trace(mlp()),
    "feature extractor": lambda: create_feature_extractor(mlp(), ["2"]),
    "export": lambda: exported(mlp()),
    "script": lambda: torch.jit.script(mlp()),
    "trace": lambda: torch.jit.trace(mlp(), X[:2]),
    "script below a head": lambda: nn.Sequential(torch.jit.script(mlp()), nn.Linear(3, 3)),
    "export below a head": lambda: nn.Sequential(exported(mlp()), nn.Linear(3, 3)),
}


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_trains_and_predicts(make: Callable[[], nn.Module]) -> None:
    model = make()
    tuner = FineTuner(model, device="cpu")
    before = [parameter.clone() for parameter in model.parameters()]
    assert torch.equal(tuner.predict(X), model(X) if isinstance(model(X), torch.Tensor) else model(X)["2"])
    tuner.fit((X, Y), lr=0.1, epochs=2, progress=False)
    assert tuner.network.num_outputs == 3
    assert tuner.summary().parameters == sum(parameter.numel() for parameter in model.parameters())
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert set(tuner.evaluate((X, Y))) == {"loss", "accuracy"}


@pytest.mark.parametrize("name", ["fx", "feature extractor", "script below a head", "export below a head"])
def test_layers_around_a_program_can_be_replaced_and_frozen(name: str) -> None:
    model = PROGRAMS[name]()
    tuner = FineTuner(model, device="cpu").replace_head(5, layer="1" if "below" in name else None)
    tuner.fit((X, Y), strategy="linear_probe", cache="memory", epochs=2, progress=False)
    assert tuner.predict(X).shape == (12, 5)


@pytest.mark.parametrize("name", ["export", "script", "trace"])
def test_a_program_has_no_head_to_replace(name: str) -> None:
    model = PROGRAMS[name]()
    with pytest.raises(HeadError, match=r"has turned its layers into one program.*nn\.Sequential"):
        FineTuner(model, device="cpu").replace_head(5)
    advised = FineTuner(nn.Sequential(model, nn.Linear(3, 5)), device="cpu")
    advised.fit((X, Y), strategy="linear_probe", progress=False)
    assert advised.predict(X).shape == (12, 5)


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.BatchNorm1d(8), nn.RReLU()], ids=lambda layer: type(layer).__name__)
def test_a_program_whose_mode_is_fixed_is_refused(layer: nn.Module) -> None:
    for model in (exported(mlp(layer)), nn.Sequential(exported(mlp(layer)), nn.Linear(3, 3))):
        with pytest.raises(ArgumentError, match=r"torch\.export has fixed.*Pass the module that it was exported"):
            FineTuner(model, device="cpu")
    FineTuner(mlp(layer), device="cpu").fit((X, Y), progress=False)  # the advice


def test_a_program_for_a_fixed_number_of_samples_is_refused_before_training() -> None:
    model = torch.export.export(mlp(), (X[:2],)).module()
    with pytest.raises(DataError, match="Export the model with dynamic_shapes"):
        FineTuner(model, device="cpu").fit((X, Y), progress=False)
