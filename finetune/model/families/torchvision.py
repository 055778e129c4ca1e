"""torchvision's image and video classifiers (https://pytorch.org/vision/stable/models.html)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import nn

from finetune.display.progress.waits import prints_on_standard_error
from finetune.errors import ArgumentError, CheckpointError, reason
from finetune.model.families.family import CatalogModel, Family, made_by

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

# The main head first, then the auxiliary ones, which exist only if the model was built with them.
_HEADS = {
    "ResNet": ("fc",),
    "RegNet": ("fc",),
    "ShuffleNetV2": ("fc",),
    "GoogLeNet": ("fc", "aux1.fc2", "aux2.fc2"),
    "Inception3": ("fc", "AuxLogits.fc"),
    "DenseNet": ("classifier",),
    "EfficientNet": ("classifier.1",),
    "MobileNetV2": ("classifier.1",),
    "MNASNet": ("classifier.1",),
    "SqueezeNet": ("classifier.1",),
    "ConvNeXt": ("classifier.2",),
    "MobileNetV3": ("classifier.3",),
    "MaxVit": ("classifier.5",),
    "AlexNet": ("classifier.6",),
    "VGG": ("classifier.6",),
    "SwinTransformer": ("head",),
    "VisionTransformer": ("heads.head",),
    "VideoResNet": ("fc",),
    "MViT": ("head.1",),
    "SwinTransformer3d": ("head",),
    "S3D": ("classifier.1",),
}

# The weights of the auxiliary losses in arXiv 1409.4842 and 1512.00567.
_AUXILIARY_WEIGHTS = {"GoogLeNet": 0.3, "Inception3": 0.4}


# Arguments of constructors that `_options` gives.
_KNOWN_OPTIONS = {"image_size", "transform_input", "aux_logits", "init_weights"}


class Torchvision(Family):
    """Classifiers by their plain name. Weights come from the torch hub cache or are downloaded into it."""

    usage = "a torchvision classifier such as 'resnet18'"

    def owns(self, model: nn.Module) -> bool:
        return bool(_torchvision_classes(model))

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        if not made_by("torchvision.models", getattr(type(model), "forward", None)):
            return ()  # a subclass with its own forward pass may have another head
        modules = dict(model.named_modules())
        for cls in _torchvision_classes(model):
            names = _HEADS.get(cls, ())
            if names and names[0] in modules:
                return tuple(name for name in names if name in modules)
        return ()

    def loss_weights(self, model: nn.Module) -> tuple[float, float]:
        main, auxiliary = super().loss_weights(model)
        classes = _torchvision_classes(model)
        return main, next((_AUXILIARY_WEIGHTS[cls] for cls in classes if cls in _AUXILIARY_WEIGHTS), auxiliary)

    def local_name(self, name: str) -> str | None:
        return name if name in self.names() else None

    def names(self) -> list[str]:
        from torchvision import models

        return [*models.list_models(module=models), *models.list_models(module=models.video)]

    def published(self, name: str) -> list[str]:
        from torchvision import models

        return list(models.get_model_weights(name).__members__)

    def create(self, name: str, weights: str | None, *, as_pretrained: bool) -> CatalogModel:
        from torchvision import models

        entry = models.get_model_weights(name)[weights or "DEFAULT"]
        origin = {"name": name, "options": _options(name, entry, as_pretrained)}
        if weights is None:
            return CatalogModel(self.rebuild(origin), origin, entry.transforms())
        return CatalogModel(_pretrained(name, entry), origin, entry.transforms(), tuple(entry.meta["categories"]))

    def license(self, origin: Mapping[str, Any]) -> str | None:
        others = any("SWAG" in weights for weights in self.published(origin["name"]))  # of another license
        return None if others else "bsd-3-clause"

    def rebuild(self, origin: Mapping[str, Any]) -> nn.Module:
        from torchvision import models

        name, options = origin["name"], origin["options"]
        if name not in self.names() or not _KNOWN_OPTIONS.issuperset(options):
            raise ArgumentError(f"torchvision has no classifier {name!r} with the options {', '.join(options)}")
        model: nn.Module = models.get_model(name, weights=None, **options)
        return model


def _torchvision_classes(model: nn.Module) -> list[str]:
    return [cls.__name__ for cls in type(model).__mro__ if made_by("torchvision.models", cls)]


def _options(name: str, entry: WeightsEnum, as_pretrained: bool) -> dict[str, Any]:
    """Return the constructor arguments that torchvision changes along with its weights."""
    if name.startswith("vit_"):
        return {"image_size": entry.meta["min_size"][0]}
    if name in ("googlenet", "inception_v3"):
        keeps_auxiliary = name == "inception_v3" or not as_pretrained
        return {"transform_input": as_pretrained, "aux_logits": keeps_auxiliary, "init_weights": False}
    return {}


def _pretrained(name: str, entry: WeightsEnum) -> nn.Module:
    from torchvision import models

    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(entry.url).path).name
    try:
        # torchvision's builder would run code from a cached file. Reading the file with weights_only first
        # raises an error if it holds any code.
        with prints_on_standard_error():  # torch names the file that it downloads
            entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
        model: nn.Module = models.get_model(name, weights=entry)
    except (URLError, TimeoutError, ConnectionError) as error:
        raise CheckpointError(
            f"The pretrained weights of {name} could not be downloaded from {entry.url} "
            f"({getattr(error, 'reason', error)}) and are not cached as {file}. Put the file there, pass another one "
            f"with weights='FILE', or start from random weights with weights=None."
        ) from error
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise CheckpointError(
            f"The pretrained weights of {name} in {file} cannot be used: {reason(error)}. Delete the file to download "
            f"it again, or pass another one with weights='FILE'."
        ) from error
    return model
