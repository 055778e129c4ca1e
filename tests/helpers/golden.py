"""Models and inputs of the golden checkpoints in `tests/checkpoint/golden`.

All values come from formulas, so models are equal bit for bit on every machine.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = ("bird", "cat", "dog")


class Net(nn.Module):
    """A stem with batch norm, a hidden layer and a head."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.hidden = nn.Linear(8, 8)
        self.fc = nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.fc(self.hidden(self.stem(x)).relu())
        return outputs


class Scaled(nn.Module):
    """A head that does not consist of standard layers."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((), 2.0))
        self.linear = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.scale * self.linear(x)
        return outputs


def patterned(model: nn.Module) -> nn.Module:
    """Fill weights with a short repeating pattern, which compresses well, and zero the biases."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            if parameter.dim() > 1:
                size = 2.0 ** -((parameter[0].numel().bit_length() + 1) // 2)  # about one over the root of the fan-in
                values = (torch.arange(parameter.numel()) * (i % 5 + 1) % 13 - 6) / 4
                parameter.copy_(size * values.reshape(parameter.shape))
            elif not torch.equal(parameter, torch.ones_like(parameter)):
                parameter.zero_()
    return model


def net() -> nn.Module:
    return patterned(Net())


def layers_head(features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3))


def adapted() -> nn.Module:
    """Return the net with LoRA adapters from PEFT."""
    import peft

    return peft.get_peft_model(net(), peft.LoraConfig(r=2, target_modules=["hidden"], modules_to_save=["fc"]))


def inputs(*shape: int) -> Tensor:
    """Return distinct samples between -1 and 1."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 7 % 31 - 15) / 16 + torch.arange(count) / count / 8).reshape(shape)


def vectors(n: int = 24) -> tuple[Tensor, list[str]]:
    x = inputs(n, 4)
    return x, [CLASSES[int(kind)] for kind in (x.sum(1) * 3).round().long() % 3]
