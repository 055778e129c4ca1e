"""A name -> a pretrained model, its preprocessing and its class names.

Names are torchvision's (https://pytorch.org/vision/stable/models.html). Weights come from the torch
hub cache, from the network if they are not there, or from a local file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from finetune.errors import ArgumentError, CheckpointError, nearest
from finetune.model.weights import load_weights, read_weights, reason


@dataclass(frozen=True)
class CatalogModel:
    """A model by name.

    `source` is what `rebuild` needs to make it again, `preset` the preprocessing that torchvision
    publishes with its weights, `classes` what its outputs mean, None where they mean nothing yet.
    """

    model: nn.Module
    source: dict[str, Any]
    preset: Any | None
    classes: tuple[str, ...] | None


def names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    return list(models.list_models(module=models))


def create(name: str, weights: str | Path | None = "DEFAULT") -> CatalogModel:
    """Build the torchvision classifier `name`.

    Args:
        weights: `"DEFAULT"` for the best published ones, the name of others such as
            `"IMAGENET1K_V1"`, the path of a local state dict (`.pth` or `.safetensors`), or None for
            random ones.

    Raises:
        ArgumentError: there is no such model.
        CheckpointError: the weights are neither at hand nor to be had, or do not fit the model.
    """
    if name not in names():
        raise ArgumentError(
            f"There is no model {name!r}.{nearest(name, names())} Expected a torchvision classifier such as "
            f"'resnet18', or an nn.Module."
        )
    entries = models.get_model_weights(name)
    published = entries.__members__.get(weights) if isinstance(weights, str) else None
    file = None if published or weights is None else _local_file(name, weights, entries)
    entry = published or entries["DEFAULT"]
    options = _options(name, entry, pretrained=weights is not None)
    source = {"family": "torchvision", "name": name, "options": options}
    if published is not None:
        model = _pretrained(name, published)
        return CatalogModel(model, source, entry.transforms(), tuple(published.meta["categories"]))
    model = rebuild(source)
    if file is not None:
        load_weights(model, read_weights(file))
    return CatalogModel(model, source, entry.transforms(), None)


def rebuild(source: Mapping[str, Any]) -> nn.Module:
    """Build the model that a `CatalogModel.source` describes, with random weights and no network.

    Raises:
        CheckpointError: this version knows no such model.
    """
    if source.get("family") != "torchvision" or source.get("name") not in names():
        raise CheckpointError(
            f"The model is a {source.get('family')} {source.get('name')!r}, which is not among the models that can "
            f"be built by name here. Build it yourself and pass it as model=."
        )
    model: nn.Module = models.get_model(source["name"], weights=None, **source["options"])
    return model


def _options(name: str, entry: WeightsEnum, pretrained: bool) -> dict[str, Any]:
    """Return the constructor arguments that torchvision changes along with its weights."""
    if name.startswith("vit_"):
        return {"image_size": entry.meta["min_size"][0]}
    if name in ("googlenet", "inception_v3"):
        keeps_auxiliary = name == "inception_v3" or not pretrained
        return {"transform_input": pretrained, "aux_logits": keeps_auxiliary, "init_weights": False}
    return {}


def _pretrained(name: str, published: WeightsEnum) -> nn.Module:
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(published.url).path).name
    try:
        # torchvision's builder would run code in a file of the cache; read once with no code allowed, it holds none
        published.get_state_dict(progress=True, check_hash=True, weights_only=True)
        model: nn.Module = models.get_model(name, weights=published)
    except (URLError, TimeoutError, ConnectionError) as error:
        raise CheckpointError(
            f"The pretrained weights of {name} could not be fetched: {getattr(error, 'reason', error)}. Wanted "
            f"{published.url}; looked for {file}. Put the file there, give another with weights='FILE', or go "
            f"without pretraining with weights=None."
        ) from error
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise CheckpointError(
            f"The pretrained weights of {name} in {file} cannot be used: {reason(error)}. Delete the file to fetch it "
            f"again, or give another with weights='FILE'."
        ) from error
    return model


def _local_file(name: str, weights: str | Path, entries: Any) -> Path:
    path = Path(weights)
    if not path.is_file():
        published = list(entries.__members__)
        raise CheckpointError(
            f"There are no weights {str(weights)!r} for {name}: no file of that path, and not one of the published "
            f"{', '.join(published)}.{nearest(str(weights), published)} Or go without with weights=None."
        )
    return path
