"""A name -> a pretrained model, its preprocessing and its class names.

`"resnet18"` is torchvision's, `"timm/resnet18.a1_in1k"` timm's, `"hf/google/vit-base-patch16-224"` Hugging
Face's, and so is a folder that `save_pretrained` wrote. Weights come from the cache of the library that
publishes them, from the network if they are not there, or from a local file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from finetune.errors import CheckpointError, nearest
from finetune.model.families import huggingface, timm, torchvision
from finetune.model.families.family import CatalogModel
from finetune.model.weights import load_weights, read_weights

_PREFIXES: dict[str, ModuleType] = {"timm/": timm, "hf/": huggingface}
_FAMILIES = {"torchvision": torchvision, "timm": timm, "huggingface": huggingface}


def names() -> list[str]:
    """Return the names of torchvision's classifiers, which need no prefix."""
    return torchvision.names()


def create(name: str, weights: str | Path | None = "DEFAULT") -> CatalogModel:
    """Build the model `name`.

    Args:
        name: of a torchvision classifier; `timm/` and the name of a timm model, with or without the tag
            of its weights; `hf/` and that of a model on the Hugging Face hub; or a folder of such a model.
        weights: `"DEFAULT"` for the best published ones, the name of others such as
            `"IMAGENET1K_V1"`, the path of a local state dict (`.pth` or `.safetensors`), or None for
            random ones.

    Raises:
        ArgumentError: there is no such model, or the package that has it is not installed.
        CheckpointError: the weights are neither at hand nor to be had, or do not fit the model.
    """
    family, own_name = _family_of(name)
    published = family.published(own_name)
    if weights is None or weights in published:
        created: CatalogModel = family.create(own_name, weights, as_pretrained=weights is not None)
        return created
    file = _local_file(name, weights, published)
    made: CatalogModel = family.create(own_name, None, as_pretrained=True)
    load_weights(made.model, read_weights(file))
    return made


def rebuild(source: Mapping[str, Any]) -> nn.Module:
    """Build the model that a `CatalogModel.source` describes, with random weights and no network.

    Raises:
        CheckpointError: this version knows no such model.
    """
    family = _FAMILIES.get(source.get("family", ""))
    try:
        if family is not None:
            model: nn.Module = family.rebuild(source)
            return model
        cause = None
    except Exception as error:  # whatever a library raises on a name or an option that it lacks
        cause = error
    raise CheckpointError(
        f"The model is a {source.get('family')} {source.get('name')!r}, which is not among the models that can "
        f"be built by name here{f' ({cause})' if cause else ''}. Build it yourself and pass it as model=."
    ) from cause


def _family_of(name: str) -> tuple[ModuleType, str]:
    if huggingface.is_folder(name):
        return huggingface, name
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return _PREFIXES.get(prefix, torchvision), name.removeprefix(prefix)


def _local_file(name: str, weights: str | Path, published: list[str]) -> Path:
    path = Path(weights)
    if not path.is_file():
        raise CheckpointError(
            f"There are no weights {str(weights)!r} for {name}: no file of that path, and not one of the published "
            f"{', '.join(published)}.{nearest(str(weights), published)} Or go without with weights=None."
        )
    return path
