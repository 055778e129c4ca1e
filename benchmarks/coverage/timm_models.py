"""timm's architectures, on the smallest picture that each accepts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.family import SAMPLES, Built, Family

# Above this many parameters an architecture is built with one or two blocks a stage, where it has a setting for it.
_LARGEST = 100_000_000
# Above this many it is not tried: four copies of a model are in memory while its checkpoint is written or read.
_LIMIT = 1_300_000_000
# Of these even one does not fit into the memory of a small machine; they are counted before they are built.
_HUGE = re.compile(r"giant|gigantic|enormous|huge|_\db_|xxlarge|_1280|_2560|coatnet_5|152x4")
_SIDES = (64, 96, 128)


def _names() -> list[str]:
    import timm

    return list(timm.list_models())


def _build(name: str) -> Built:
    """Build `name` for pictures of 64 pixels if it can be told so, else at its own size."""
    fewer, note = _fewer_blocks(name) if _HUGE.search(name) else ({}, "")
    if not fewer and _HUGE.search(name) and (_parameters(name) or 0) > _LIMIT:
        raise MemoryError(f"{name} has more than {_LIMIT / 1e9} G parameters, and no setting for fewer blocks")
    reasons = []
    for options in ({"img_size": _SIDES[0]}, {}):
        try:
            model = _created(name, **options, **fewer)
            if not fewer and sum(parameter.numel() for parameter in model.parameters()) > _LARGEST:
                fewer, note = _fewer_blocks(name)
                model = _created(name, **options, **fewer) if fewer else model
            inputs = next(_accepted(model), None)
            if inputs is None and fewer:  # some can be built with fewer blocks and then do not run
                model, note = _created(name, **options), ""
                inputs = next(_accepted(model), None)
        except Exception as error:  # most know no img_size; some cannot do with a small one
            reasons.append(str(error))
            continue
        if inputs is not None:
            return Built(model, inputs, note)
    raise RuntimeError(f"{name} accepted no picture; {reasons[-1] if reasons else ''}")


def _created(name: str, **options: Any) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


def _accepted(model: nn.Module) -> Iterator[Tensor]:
    """Yield pictures that the model takes, the smallest first."""
    config: Any = model.pretrained_cfg
    channels, *own = config["input_size"]
    generator = torch.Generator().manual_seed(0)
    model.eval()
    for height, width in [*((side, side) for side in _SIDES if side < min(own)), tuple(own)]:
        picture = torch.randn(SAMPLES, channels, height, width, generator=generator)
        try:
            with torch.no_grad():
                _settle(model, picture)
                model(picture)
        except Exception:  # whatever a model raises on a size it was not made for
            continue
        yield picture


def _settle(model: nn.Module, picture: Tensor) -> None:
    """Give batch norms the statistics of a picture where random weights would let values grow beyond all bounds."""
    if float(model(picture).abs().max()) < 1e3:
        return
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    model(picture)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _fewer_blocks(name: str) -> tuple[dict[str, Any], str]:
    """Return the settings that make a very large architecture small enough, and a note that says so."""
    published = _parameters(name)
    if published is None or published <= _LARGEST:
        return {}, ""
    candidates: list[dict[str, Any]] = [{"depth": 2}, {"depth": 2, "num_kv_heads": (None, None)}, {"num_blocks": 2}]
    candidates += [{field: (1,) * stages} for stages in (4, 3) for field in ("depths", "layers", "stages")]
    for options in candidates:
        made = _parameters(name, **options)
        if made is not None and made < published:
            setting = ", ".join(f"{key}={value}" for key, value in options.items())
            return options, f"built with {setting}; {published / 1e6:,.0f} M parameters as published"
    return {}, ""


def _parameters(name: str, **options: Any) -> int | None:
    """Count the parameters without making any; None where the options are not accepted."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in _created(name, **options).parameters())
    except Exception:
        return None


# Those that have no setting for fewer blocks.
_ALONE = ("focalnet_huge_*", "mvitv2_huge_*", "regnety_1280", "regnety_2560", "resnetv2_152x4_*")


def _alone(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _ALONE)


# Encoders that end before a classifier and have no method to make one.
_HEADLESS = (
    "deepseek_vit_412m_enc",
    "gemma4_vit_167m_enc",
    "gemma4_vit_570m_enc",
    "mobilenetv5_300m_enc",
    "qwen3_vit_88m_enc",
    "qwen3_vit_306m_enc",
    "qwen3_vit_416m_enc",
)

FAMILY = Family(
    title="timm architectures",
    packages=("timm",),
    names=_names,
    build=_build,
    headless=frozenset(_HEADLESS),
    alone=_alone,
    sample=(
        "resnet10t",
        "vit_tiny_patch16_224",
        "convnext_atto",
        "rexnet_100",
        "deit_tiny_distilled_patch16_224",
        "levit_128s",
        "mobilenetv3_small_050",
        "repvit_m0_9",
        "test_efficientnet",
    ),
)
