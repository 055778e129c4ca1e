"""Heads of models whose input has to be found: made for one size, for volumes, for several inputs, a head first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from finetune import ArgumentError, FineTuner, HeadError

OUTPUTS = 7


class Net(nn.Module):
    """A model of named parts, registered in this order, and a function of the parts and the input."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


class TwoInputs(nn.Module):
    def __init__(self, image: nn.Module, table: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.image, self.table, self.fc = image, table, nn.Linear(width, OUTPUTS)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.fc(torch.cat([self.image(image), self.table(table)], 1))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.fc = nn.Embedding(30, 8), nn.Linear(8, OUTPUTS)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.fc((self.embed(ids) * attention_mask[..., None]).mean(1))


class OneSize(nn.Module):
    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size, self.conv, self.fc = image_size, nn.Conv2d(3, 4, 3), nn.Linear(4, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == self.image_size
        return self.fc(self.conv(x).mean((2, 3)))


class Batch(nn.Module):
    """Takes a form of input that nothing can guess."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(6, 8), nn.Linear(8, OUTPUTS)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.fc(self.body(batch["x"]).relu())


def patches(model: Any, x: Tensor) -> Tensor:
    return model.patch(x).flatten(2).transpose(1, 2) + model.positions


def vit(channels: int, size: int, patch: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return Net(
        lambda model, x: model.head(model.layer(patches(model, x)).mean(1)),
        head=nn.Linear(16, OUTPUTS), patch=nn.Conv2d(channels, 16, patch, patch), layer=layer,
        positions=nn.Parameter(torch.zeros(1, (size // patch) ** 2, 16)),
    )  # fmt: skip


def mixer() -> nn.Module:
    def forward(model: Any, x: Tensor) -> Tensor:
        tokens = model.patch(x).flatten(2)
        return model.head((tokens + model.tokens(tokens)).mean(2))

    return Net(forward, head=nn.Linear(16, OUTPUTS), patch=nn.Conv2d(3, 16, 8, 8), tokens=nn.Linear(25, 25))


def flat(conv: nn.Module, features: int, shape: tuple[int, ...] = ()) -> nn.Module:
    parts = {"conv": conv, "fc": nn.Linear(features, OUTPUTS)}
    return Net(lambda model, x: model.fc(model.conv(x).flatten(1)), **parts, **({"shape": shape} if shape else {}))


def normalized(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), norm(nn.Linear(8, OUTPUTS)))


def head_first(body: nn.Module, width: int = 16) -> nn.Module:
    return Net(lambda model, x: model.head(model.body(x)), head=nn.Linear(width, OUTPUTS), body=body)


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "vit of 96 px and 1 channel": (lambda: vit(1, 96, 16), "head"),
    "vit of 40 px": (lambda: vit(3, 40, 8), "head"),
    "mixer": (mixer, "head"),
    "volumes": (lambda: flat(nn.Conv3d(1, 4, 3, 2, 1), 4 * 8**3), "fc"),
    "volumes in patches": (
        lambda: Net(
            lambda model, x: model.head(patches(model, x).mean(1)),
            patch=nn.Conv3d(1, 16, 8, 8), positions=nn.Parameter(torch.zeros(1, 4**3, 16)), head=nn.Linear(16, OUTPUTS),
        ),
        "head",
    ),
    "head first": (lambda: head_first(nn.Linear(5, 16)), "head"),
    "head before convolutions": (
        lambda: head_first(nn.Sequential(nn.Conv2d(1, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())), "head",
    ),
    "image and table": (
        lambda: TwoInputs(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(5, 8)),
        "fc",
    ),
    "pairs": (lambda: TwoInputs(nn.Linear(6, 8), nn.Linear(6, 8)), "fc"),
    "tokens and mask": (Masked, "fc"),
    "image_size": (lambda: OneSize(52), "fc"),
    "length of tokens": (
        lambda: Net(
            lambda model, x: model.fc((model.embed(x) + model.positions).mean(1)),
            positions=nn.Parameter(torch.zeros(12, 8)), embed=nn.Embedding(30, 8), fc=nn.Linear(8, OUTPUTS),
        ),
        "fc",
    ),
    "audio of one length": (lambda: flat(nn.Sequential(nn.Conv1d(1, 4, 80, 4), nn.MaxPool1d(4)), 4 * 480), "fc"),
    "flattened image of 50 px": (lambda: flat(nn.Conv2d(3, 4, 3, 2, 1), 4 * 25 * 25), "fc"),
    "flattened image that is no square": (lambda: flat(nn.Conv2d(1, 4, 3, 1, 1), 4 * 24 * 40, (24, 40)), "fc"),
    "nothing but its structure": (Batch, "fc"),
    "weight norm": (lambda: normalized(weight_norm), "2"),
    "spectral norm": (lambda: normalized(spectral_norm), "2"),
    "head before a pooling": (
        lambda: nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 12), nn.AdaptiveAvgPool1d(OUTPUTS)), "1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "head"), MODELS.values(), ids=MODELS)
def test_the_head_is_found_without_data(make: Callable[[], nn.Module], head: str) -> None:
    tuner = FineTuner(make(), device="cpu").replace_head(3)
    assert tuner.network.heads == (head,)
    assert tuner.network.num_outputs == 3


@pytest.mark.parametrize(
    "example",
    [torch.randn(2, 4), torch.randn(1, 4), torch.randn(4), np.zeros((3, 4), np.float64), (torch.randn(5, 4),)],
)
def test_an_example_is_one_or_more_samples(example: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, OUTPUTS))
    tuner = FineTuner(model, device="cpu").replace_head(3, example=example)
    assert len(next(iter(example)) if isinstance(tuner.network.example, tuple) else tuner.network.example) >= 2
    assert tuner.predict(torch.randn(6, 4)).shape == (6, 3)


def test_an_example_may_be_a_mapping() -> None:
    example = {"ids": torch.randint(30, (2, 5)), "attention_mask": torch.ones(2, 5)}
    assert FineTuner(Masked(), device="cpu").replace_head(3, example=example).network.heads == ("fc",)


def test_an_example_that_the_model_does_not_accept_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 7))
    with pytest.raises(ArgumentError, match=r"Sequential does not accept the example: .*mat1 and mat2"):
        FineTuner(model, device="cpu").replace_head(3, example=torch.randn(2, 5))


class Refusing(nn.Sequential):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch["x"])


def test_where_the_structure_leaves_several_layers_the_error_names_them_and_an_example_helps() -> None:
    model = nn.Sequential(Refusing(nn.Linear(6, 8), nn.Linear(9, 7)), nn.Linear(11, 5))
    with pytest.raises(HeadError, match=r"accepted none of the guessed inputs, .* any of 0\.0, 0\.1, 1\. Pass inputs"):
        FineTuner(model, device="cpu").replace_head(3)


def test_a_head_found_by_structure_is_checked_by_the_first_data() -> None:
    class Misleading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Linear(6, 8), nn.Linear(8, 7)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return torch.cat([self.fc(self.body(batch["x"])), batch["x"]], 1)

    data = [({"batch": {"x": torch.randn(6)}}, i % 3) for i in range(8)]
    tuner = FineTuner(Misleading(), device="cpu").replace_head(3)
    before = [value.clone() for value in tuner.model.parameters()]
    with pytest.raises(HeadError, match=r"After replace_head\(3\), Misleading gives outputs of shape \[2, 9\]"):
        tuner.fit(data, progress=False)
    assert all(torch.equal(old, new) for old, new in zip(before, tuner.model.parameters(), strict=True))
    trained = FineTuner(Batch(), device="cpu").replace_head(3)
    trained.fit(data, progress=False)
    assert trained.evaluate(data)["loss"] > 0
