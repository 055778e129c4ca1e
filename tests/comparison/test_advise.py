"""`advise` for several models ranks them and changes none."""

from __future__ import annotations

import torch

import finetune
from finetune.demo import DigitNet


def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    return torch.randn(40, 1, 8, 8, generator=generator) + labels[:, None, None, None], labels


def test_the_model_with_the_best_probe_comes_first_and_no_model_changes() -> None:
    class Blind(DigitNet):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return super().forward(pictures - pictures)

    models = {"blind": Blind(9), "seeing": DigitNet(9)}
    before = {name: value.clone() for name, value in models["seeing"].state_dict().items()}

    found = finetune.advise(models, images())

    assert list(found) == ["seeing", "blind"]
    assert found["seeing"].evidence.probe > found["blind"].evidence.probe
    assert all(torch.equal(before[name], value) for name, value in models["seeing"].state_dict().items())
