"""The architectures of the coverage benchmark, with fewer of timm and smaller ones where passes would take minutes."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.coverage.family import SAMPLES, Built, Family, load_family

SUITES = ("torchvision", "video", "timm", "huggingface")

# Parts of the names of small variants, smallest first.
_SMALL = ("test_", "atto", "femto", "pico", "zepto", "nano", "xxs", "xx_small", "xxtiny", "_050", "_xs", "tiny", "_s",
          "small", "_b0", "_18", "_26", "_x0", "_m0", "base", "_b")  # fmt: skip


def load_suite(name: str) -> Family:
    """Return the suite `name`, as a family of architectures."""
    family = load_family(name)
    if name == "torchvision":
        return replace(family, build=_image_classifier)
    if name == "video":
        return replace(family, build=_video_classifier)
    if name == "timm":
        return replace(family, names=_one_of_each_timm_module)
    return family


def _one_of_each_timm_module() -> list[str]:
    """Return the smallest architecture of each timm module, judging by the names."""
    import timm

    modules = {module: list(timm.list_models(module=module)) for module in timm.list_modules()}
    return [min(names, key=_size) for names in modules.values() if names]


def _size(name: str) -> tuple[int, int, str]:
    rank = next((position for position, word in enumerate(_SMALL) if word in name), len(_SMALL))
    return rank, len(name), name


def _image_classifier(name: str) -> Built:
    """Build a classifier; a vision transformer gets an image of 4 x 4 patches."""
    if name.startswith("vit_"):
        side = 4 * int(name.rsplit("_", 1)[1])
        return _torchvision(name, (3, side, side), image_size=side)
    return load_family("torchvision").build(name)


def _video_classifier(name: str) -> Built:
    if name.startswith("mvit"):
        return _torchvision(name, (3, 4, 64, 64), spatial_size=(64, 64), temporal_size=4)
    return load_family("video").build(name)


def _torchvision(name: str, shape: tuple[int, ...], **settings: object) -> Built:
    from torchvision import models

    inputs = torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))
    return Built(models.get_model(name, weights=None, **settings), inputs)
