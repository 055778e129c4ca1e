"""torchvision's classifiers of images and videos."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision import models

from benchmarks.coverage.family import SAMPLES, Built, Family

# The smallest image size that each accepts, including in train mode. 64 pixels are enough for the rest.
_SIDES = {"vit_": 224, "swin": 64, "inception_v3": 299, "alexnet": 64, "maxvit": 224}
_CLIPS = {"mvit": (16, 224), "swin3d": (4, 32), "s3d": (14, 224)}


def _image_classifier(name: str) -> Built:
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = models.get_model(name, weights=None, **options)
    side = next((side for prefix, side in _SIDES.items() if name.startswith(prefix)), 64)
    side = int(getattr(model, "image_size", side))
    return Built(model, _noise(3, side, side))


def _video_classifier(name: str) -> Built:
    frames, side = next((size for prefix, size in _CLIPS.items() if name.startswith(prefix)), (4, 32))
    return Built(models.get_model(name, weights=None), _noise(3, frames, side, side))


def _noise(*shape: int) -> Tensor:
    return torch.randn(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))


IMAGES = Family(
    title="torchvision classifiers",
    packages=("torchvision",),
    names=lambda: list(models.list_models(module=models)),
    build=_image_classifier,
    sample=("resnet18", "googlenet", "mobilenet_v3_small", "squeezenet1_1", "swin_t", "densenet121"),
)
VIDEOS = Family(
    title="torchvision video classifiers",
    packages=("torchvision",),
    names=lambda: list(models.list_models(module=models.video)),
    build=_video_classifier,
    sample=("mc3_18",),
)
