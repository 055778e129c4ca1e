"""Find the head of a model that no family knows, or explain why it is ambiguous."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune import FineTuner
from finetune.errors import HeadError
from finetune.model.inspection.probing import accepted_example
from finetune.model.surgery.head_search import check_name, find_head
from tests.helpers.models import Functional, LastResidual, LayerBehind, TokenTransformer, TwoHeads, small_cnn


def test_searching_leaves_no_trace() -> None:
    model = small_cnn()
    model.eval()
    model[5].training = True
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    find_head(model)
    assert accepted_example(model) is not None
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model] == [False, False, False, False, False, True, False]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


class Widths(TwoHeads):
    """Two heads of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(8, 4)


AMBIGUOUS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "last residual": (LastResidual, "inner (Linear), last (Linear)"),
    "norm behind": (lambda: LayerBehind(nn.BatchNorm1d(5)), "behind (BatchNorm1d)"),
    "functional": (Functional, "the model itself (Functional)"),
    "two widths": (Widths, "first (Linear), second (Linear)"),
    "no parameters": (lambda: nn.Sequential(nn.Conv2d(3, 2, 1), Zero()), "no layer with parameters"),
    "no input": (lambda: nn.Sequential(nn.ReLU()), "accepted none of the guessed inputs"),
    "strange input": (lambda: nn.Sequential(Zero("ask me"), nn.Linear(6, 5), nn.Linear(6, 4)), "may be any of 1, 2"),
}


class Zero(nn.Module):
    """Ignores its input, or refuses it."""

    def __init__(self, refusal: str = "") -> None:
        super().__init__()
        self.refusal = refusal

    def forward(self, x: Tensor) -> Tensor:
        if self.refusal:
            raise KeyError(self.refusal)
        return torch.zeros(2, 5)


def linear_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if name and isinstance(module, (nn.Linear, nn.Conv2d))]


@pytest.mark.parametrize(("make", "words"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_an_ambiguous_head_is_an_error_that_names_candidates(make: Callable[[], nn.Module], words: str) -> None:
    model = make()
    before = dict(model.named_modules())
    with pytest.raises(HeadError) as caught:
        find_head(model)
    message = str(caught.value)
    assert words in message
    assert "replace_head(n, layer=...)" in message
    for name in linear_layers(model):
        layer: Any = model.get_submodule(name)
        assert f"{name} ({layer.weight.shape[1]} -> {layer.weight.shape[0]})" in message
    assert dict(model.named_modules()) == before


def test_an_unknown_layer_is_an_error_that_suggests_the_nearest() -> None:
    model = TokenTransformer()
    check_name(model, "head")
    for name in ("heat", "", "cls", "head.weight"):
        with pytest.raises(HeadError, match=r"TokenTransformer has no layer .* head \(8 -> 5\)"):
            check_name(model, name)
    with pytest.raises(HeadError, match="Did you mean 'head'"):
        check_name(model, "heat")


class Several(nn.Module):
    """Returns features and logits, in the given order and form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.body, self.fc = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        features = self.body(x).relu()
        logits = self.fc(features)
        return {
            "logits first": (logits, features),
            "features first": (features, logits),
            "features first in a dictionary": {"features": features, "out": logits},
            "named": {"features": features, "logits": logits},
        }[self.form]


@pytest.mark.parametrize("form", ["logits first", "named"])
def test_features_beside_the_logits_do_not_hide_the_head(form: str) -> None:
    tuner = FineTuner(Several(form), device="cpu").replace_head(5)
    before = tuner.model.fc.weight.clone()
    tuner.fit((torch.randn(20, 4), torch.arange(20) % 5), progress=False)
    assert not torch.equal(before, tuner.model.fc.weight)
    assert tuner.predict(torch.randn(2, 4)).shape == (2, 5)


@pytest.mark.parametrize("form", ["features first", "features first in a dictionary"])
def test_features_are_never_mistaken_for_logits(form: str) -> None:
    with pytest.raises(HeadError, match=r"the first may not be the logits.*under 'logits'"):
        FineTuner(Several(form), device="cpu").fit((torch.randn(20, 4), torch.arange(20) % 3), progress=False)
    with pytest.raises(HeadError, match="is not the model's first"):
        FineTuner(Several(form), device="cpu").replace_head(5, layer="fc")
