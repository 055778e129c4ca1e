"""timm's architectures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.family import Family


def _names() -> list[str]:
    import timm

    return list(timm.list_models())


def _build(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _inputs(name: str, model: nn.Module, samples: int) -> Tensor:
    config: Any = model.pretrained_cfg
    channels, height, width = config["input_size"]
    return torch.randn(samples, channels, height, width, generator=torch.Generator().manual_seed(0))


FAMILY = Family(
    title="timm architectures",
    packages=("timm",),
    names=_names,
    build=_build,
    inputs=_inputs,
    sample=("resnet10t", "vit_tiny_patch16_224", "convnext_atto", "densenet121", "vgg11", "deit_tiny_distilled_patch16_224",
            "levit_128s", "mobilenetv3_small_050", "repvit_m0_9", "test_efficientnet"),
)
