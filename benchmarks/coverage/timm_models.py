"""timm's architectures, each on the smallest image it accepts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.family import SAMPLES, Built, Family

# Architectures with more parameters are built with one or two blocks per stage, if they have a setting for it.
_LARGEST = 100_000_000
# Architectures with more parameters are skipped: saving or loading a checkpoint takes four copies of a model.
_LIMIT = 1_300_000_000
# Names of architectures whose parameters are counted before they are built, because one may exceed the memory.
_HUGE = re.compile(r"giant|gigantic|enormous|huge|_\db_|xxlarge|_1280|_2560|coatnet_5|152x4")
_SIDES = (64, 96, 128)


def _names() -> list[str]:
    import timm

    return list(timm.list_models())


def _build(name: str) -> Built:
    """Build `name` for images of 64 pixels if it has a setting for it, else at its default size."""
    fewer, note = _fewer_blocks(name) if _HUGE.search(name) else ({}, "")
    if not fewer and _HUGE.search(name) and (_parameters(name) or 0) > _LIMIT:
        raise MemoryError(f"{name} has more than {_LIMIT / 1e9} billion parameters and no setting for fewer blocks")
    reasons = []
    for options in ({"img_size": _SIDES[0]}, {}):
        try:
            model = _created(name, **options, **fewer)
            if not fewer and sum(parameter.numel() for parameter in model.parameters()) > _LARGEST:
                fewer, note = _fewer_blocks(name)
                model = _created(name, **options, **fewer) if fewer else model
            inputs = next(_accepted(model), None)
            if inputs is None and fewer:  # some can be built with fewer blocks, but do not run
                model, note = _created(name, **options), ""
                inputs = next(_accepted(model), None)
        except Exception as error:  # many have no img_size, and some reject a small one
            reasons.append(str(error))
            continue
        if inputs is not None:
            return Built(model, inputs, note)
    raise RuntimeError(f"{name} accepted no image; {reasons[-1] if reasons else ''}")


def _created(name: str, **options: Any) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


def _accepted(model: nn.Module) -> Iterator[Tensor]:
    """Yield batches of images that the model accepts, smallest first."""
    config: Any = model.pretrained_cfg
    channels, *own = config["input_size"]
    generator = torch.Generator().manual_seed(0)
    model.eval()
    for height, width in [*((side, side) for side in _SIDES if side < min(own)), tuple(own)]:
        image = torch.randn(SAMPLES, channels, height, width, generator=generator)
        try:
            with torch.no_grad():
                _settle(model, image)
                model(image)
        except Exception:  # models raise all kinds of errors on unsupported sizes
            continue
        yield image


def _settle(model: nn.Module, image: Tensor) -> None:
    """Set the statistics of batch norms from an image if random weights make activations explode."""
    if float(model(image).abs().max()) < 1e3:
        return
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    model(image)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _fewer_blocks(name: str) -> tuple[dict[str, Any], str]:
    """Return the settings that make a very large architecture small enough, and a note about them."""
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
    """Return the number of parameters without allocating them, or None if the options are rejected."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in _created(name, **options).parameters())
    except Exception:
        return None


# Large architectures without a setting for fewer blocks.
_ALONE = ("focalnet_huge_*", "mvitv2_huge_*", "regnety_1280", "regnety_2560", "resnetv2_152x4_*")


def _alone(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _ALONE)


# Encoders without a classifier or a method to add one.
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
