"""Small models, each with something that makes freezing or finding the head hard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from finetune.model.stages import Stage, stages


class Unfilled(TorchFunctionMode):
    """Build modules on the meta device, but let models compute their own sizes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        place = {"device": "meta"} if func in (torch.empty, torch.zeros, torch.ones) else {}
        return func(*args, **{**(kwargs or {}), **place})


class Undrawn(TorchFunctionMode):
    """Build modules without drawing their weights, which takes most of the time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawing = (torch.Tensor.uniform_, torch.Tensor.normal_, torch.nn.init.trunc_normal_)
        return args[0].zero_() if func in drawing else func(*args, **(kwargs or {}))


def unfilled(name: str) -> nn.Module:
    """Build a torchvision classifier on the meta device."""
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    # tensors that a builder reads back, such as the position tables of swin, need torch.device
    with Unfilled() if name.startswith("regnet") else torch.device("meta"):
        model: nn.Module = models.get_model(name, weights=None, **options)
    return model


class Pair(NamedTuple):
    """An output with two fields that are not called logits."""

    scores: Tensor
    more: Tensor


class TokenTransformer(nn.Module):
    """A class token and a position table as bare parameters, two encoder blocks, a norm, a head."""

    def __init__(self, classes: int = 5, width: int = 8) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width))
        self.embed = nn.Linear(6, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(len(x), -1, -1), self.embed(x)], 1) + self.position
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x)[:, 0])
        return out


class Recurrent(nn.Module):
    """Reads `[N, T]` tokens; classifies the last hidden state."""

    def __init__(self, cell: type[nn.LSTM] | type[nn.GRU], classes: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.rnn = cell(6, 8, batch_first=True)
        self.classify = nn.Linear(8, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        _, hidden = self.rnn(self.embed(tokens))
        last = hidden[0] if isinstance(hidden, tuple) else hidden
        out: Tensor = self.classify(last[-1])
        return out


class TwoHeads(nn.Module):
    """Two heads of the same width, whose results are returned in the given form."""

    def __init__(self, form: str = "tuple") -> None:
        super().__init__()
        self.form = form
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.first = nn.Linear(8, 5)
        self.second = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        features = self.backbone(x)
        a, b = self.first(features), self.second(features)
        if self.form == "mean":
            return (a + b) / 2
        return {"tuple": (a, b), "list": [a, b], "dict": {"a": a, "b": b}, "named": Pair(a, b)}[self.form]


class LastResidual(nn.Module):
    """The last layer has a skip connection around it, so two layers decide the width of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 5)
        self.last = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        out: Tensor = x + self.last(torch.relu(x))
        return out


class LayerBehind(nn.Module):
    """A classifier `fc` whose output passes through another layer."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.body, self.fc, self.behind = nn.Linear(6, 8), nn.Linear(8, 5), behind

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.behind(self.fc(self.body(x).relu()))
        return out


class TiedLanguageModel(nn.Module):
    """The output layer shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 11)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(self.mix(self.embed(tokens))))
        return out


class Functional(nn.Module):
    """A head that is a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(6, 8)
        self.weight = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(torch.relu(self.backbone(x)), self.weight)


def small_cnn(classes: int = 5) -> nn.Sequential:
    """Return convolution, batch norm, pooling, dropout and a linear head."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(4, classes),
    )  # fmt: skip


def plain_cnn() -> nn.Sequential:
    """Return a convolution, pooling and a linear head for 3 classes, the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def small_mlp(outputs: int = 3, features: int = 4, dropout: float = 0.3, seed: int = 0) -> nn.Sequential:
    """Return a network with batch norm and dropout, the same weights for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(features, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(8, 6),
            nn.ReLU(),
            nn.Linear(6, outputs),
        )


def with_stages(model: nn.Module, head: tuple[str, ...]) -> tuple[nn.Module, list[Stage]]:
    """Return the model and its stages, with the head of that name."""
    return model, stages(model, head)


def linear_layers(*names: str) -> nn.Sequential:
    """Return a model with one linear layer [2, 2] per name."""
    model = nn.Sequential()
    for name in names:
        model.add_module(name, nn.Linear(2, 2))
    return model


_NAMES = ("layer1", "layer10", "layer2", "norm", "bn1", "a", "b[0]", "head")
_LEAVES: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.Linear(2, 2),
    lambda: nn.Linear(2, 3, bias=False),
    lambda: nn.BatchNorm1d(2),
    lambda: nn.BatchNorm1d(2, affine=False),
    lambda: nn.LayerNorm(2),
    lambda: nn.Dropout(0.5),
    nn.ReLU,
)


@st.composite
def trees(draw: st.DrawFn, depth: int = 3) -> nn.Module:
    """Draw a module tree: containers with bare parameters, norms, layers without parameters, tied layers."""
    root = nn.Module()
    for name in draw(st.lists(st.sampled_from(_NAMES), min_size=1, max_size=4, unique=True)):
        kind = draw(st.integers(0, 9))
        earlier = [module for _, module in root.named_children() if isinstance(module, nn.Linear)]
        if kind == 0:
            root.register_parameter(name, nn.Parameter(torch.zeros(2)))
        elif kind == 1 and earlier:
            tied = nn.Linear(2, earlier[0].out_features, bias=False)
            tied.weight = earlier[0].weight
            root.add_module(name, tied)
        elif kind <= 4 and depth:
            root.add_module(name, draw(trees(depth=depth - 1)))
        else:
            root.add_module(name, draw(st.sampled_from(_LEAVES))())
    return root


def states(model: nn.Module) -> dict[str, bool]:
    """Return `requires_grad` by parameter name, with tied parameters under each of their names."""
    return {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}


def modes(model: nn.Module) -> dict[str, bool]:
    """Return whether each module is in train mode, by name."""
    return {name: module.training for name, module in model.named_modules()}


def layers_of(model: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Module]:
    """Return the modules of a class."""
    return (module for module in model.modules() if isinstance(module, kind))


def network_for(features: int) -> nn.Sequential:
    """Return a network for any number of features, with two outputs."""
    return nn.Sequential(nn.Linear(features, 32), nn.ReLU(), nn.Linear(32, 2))
