"""torchvision's classifiers, of images and of videos (https://pytorch.org/vision/stable/models.html).

Weights come from the torch hub cache, or from the network if they are not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import nn

from finetune.errors import ArgumentError, CheckpointError, nearest, reason
from finetune.model.families.family import CatalogModel

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

# What the papers weigh their auxiliary losses with: arXiv 1409.4842 and 1512.00567.
_AUXILIARY_WEIGHTS = {"GoogLeNet": 0.3, "Inception3": 0.4}


def is_one(model: nn.Module) -> bool:
    """Tell whether a model is one of torchvision's; one with a forward pass of its own may have another head."""
    return type(model).forward.__module__.startswith("torchvision.models")


def head(model: nn.Module) -> tuple[str, ...]:
    """Return the heads by the table above; none for what is no classifier."""
    modules = dict(model.named_modules())
    for cls in _classes(model):
        names = _HEADS.get(cls, ())
        if names and names[0] in modules:
            return tuple(name for name in names if name in modules)
    return ()


def loss_weights(model: nn.Module) -> tuple[float, float]:
    """Return the weights of the main loss and of the auxiliary ones: 1 and 0.3 where no paper says."""
    known = (_AUXILIARY_WEIGHTS[cls] for cls in _classes(model) if cls in _AUXILIARY_WEIGHTS)
    return 1.0, next(known, 0.3)


def names() -> list[str]:
    """Return the names of the classifiers of images, then those of videos."""
    from torchvision import models

    return [*models.list_models(module=models), *models.list_models(module=models.video)]


def published(name: str) -> list[str]:
    """Return the names of the weights that there are for a model.

    Raises:
        ArgumentError: there is no such model.
    """
    if name not in names():
        meant = f" Did you mean 'hf/{name}'?" if "/" in name else nearest(name, names())
        raise ArgumentError(
            f"There is no model {name!r}.{meant} Expected a torchvision classifier such as "
            f"'resnet18', 'timm/NAME', 'hf/NAME', the folder of a Hugging Face model, or an nn.Module."
        )
    from torchvision import models

    return list(models.get_model_weights(name).__members__)


def create(name: str, weights: str | None, *, as_pretrained: bool) -> CatalogModel:
    """Build a classifier, with the published `weights` or with random ones.

    With `as_pretrained` a random one has the parts that its pretrained weights come with.
    """
    from torchvision import models

    entries = models.get_model_weights(name)
    entry = entries[weights or "DEFAULT"]
    options = _options(name, entry, as_pretrained)
    source = {"family": "torchvision", "name": name, "options": options}
    if weights is None:
        return CatalogModel(rebuild(source), source, entry.transforms(), None)
    return CatalogModel(_pretrained(name, entry), source, entry.transforms(), tuple(entry.meta["categories"]))


def rebuild(source: Mapping[str, Any]) -> nn.Module:
    """Build the model of a `CatalogModel.source` with random weights."""
    from torchvision import models

    model: nn.Module = models.get_model(source["name"], weights=None, **source["options"])
    return model


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
        # torchvision's builder would run code in a file of the cache; read once with no code allowed, it holds none
        entry.get_state_dict(progress=True, check_hash=True, weights_only=True)
        model: nn.Module = models.get_model(name, weights=entry)
    except (URLError, TimeoutError, ConnectionError) as error:
        raise CheckpointError(
            f"The pretrained weights of {name} could not be fetched: {getattr(error, 'reason', error)}. Wanted "
            f"{entry.url}; looked for {file}. Put the file there, give another with weights='FILE', or go "
            f"without pretraining with weights=None."
        ) from error
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise CheckpointError(
            f"The pretrained weights of {name} in {file} cannot be used: {reason(error)}. Delete the file to fetch it "
            f"again, or give another with weights='FILE'."
        ) from error
    return model


def _classes(model: nn.Module) -> list[str]:
    return [cls.__name__ for cls in type(model).__mro__ if cls.__module__.startswith("torchvision.models")]
