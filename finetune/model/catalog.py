"""Models by name: pretrained model, preprocessing and class names.

`"resnet18"` is torchvision's, `"timm/resnet18.a1_in1k"` is timm's, and
`"hf/google/vit-base-patch16-224"` is Hugging Face's, as is a folder that `save_pretrained` wrote. The
families are those in the table `FAMILIES`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from finetune.errors import ArgumentError, CheckpointError, nearest, reason
from finetune.model.families import FAMILIES, CatalogModel
from finetune.model.weights import load_weights, read_weights
from finetune.naming.paths import local_path


def names() -> list[str]:
    """Return the names that need no prefix: torchvision's classifiers."""
    return [name for family in FAMILIES.values() for name in family.names()]


def load_file(model: nn.Module, path: Path) -> None:
    """Load a local state dict into `model`."""
    load_weights(model, read_weights(path), path)


def create(
    name: str, weights: str | Path | None = "DEFAULT", *, load: Callable[[nn.Module, Path], None] = load_file
) -> CatalogModel:
    """Build the model called `name`.

    Args:
        name: Name of a torchvision classifier; `timm/` and the name of a timm model, with or without the
            tag of its weights; `hf/` and the name of a model on the Hugging Face hub; or a folder that
            `save_pretrained` wrote.
        weights: `"DEFAULT"` for the best published weights, the name of others such as
            `"IMAGENET1K_V1"`, the path of a local state dict (`.pth` or `.safetensors`), or None for
            random weights.
        load: Function that loads a local file into the model.

    Raises:
        ArgumentError: If there is no such model, or its library is not installed.
        CheckpointError: If the weights are neither cached nor downloadable, or do not fit the model.
    """
    key, local_name = _locate(name)
    family = FAMILIES[key]
    published = family.published(local_name)
    if weights is None or weights in published:
        created = family.create(local_name, weights, as_pretrained=weights is not None)
    else:
        file = _local_file(name, weights, published)
        created = family.create(local_name, None, as_pretrained=True)
        load(created.model, file)
    return replace(created, origin={"family": key, **created.origin})


def rebuild(origin: Mapping[str, Any]) -> nn.Module:
    """Build the model of a `CatalogModel.origin` with random weights and without the network.

    Raises:
        CheckpointError: If the installed libraries have no such model.
    """
    family, cause = FAMILIES.get(origin.get("family", "")), None
    if family is not None:
        try:
            return family.rebuild(origin)
        except Exception as error:  # a library can raise anything for an unknown name or option
            cause = error
    name, why = (
        f"{origin.get('name')!r:.200} from {origin.get('family')!s:.200}",
        f" ({reason(cause)})" if cause else "",
    )
    raise CheckpointError(
        f"The checkpoint's model is {name}, which cannot be built by name here{why}. Build it yourself and pass it as "
        f"model=."
    ) from cause


def _locate(name: str) -> tuple[str, str]:
    """Return the key of the family that `name` belongs to, and the family's own name for the model."""
    for key, family in FAMILIES.items():
        local_name = family.local_name(name)
        if local_name is not None:
            return key, local_name
    meant = f" Did you mean 'hf/{name}'?" if "/" in name else nearest(name, names())
    usages = ", ".join(family.usage for family in reversed(FAMILIES.values()))
    raise ArgumentError(f"There is no model {name!r}.{meant} Expected {usages}, or an nn.Module.")


def _local_file(name: str, weights: str | Path, published: list[str]) -> Path:
    path = local_path(weights)
    if not os.path.isfile(path):
        raise CheckpointError(
            f"There are no weights {str(weights)!r} for {name}. Expected a file or one of the published weights "
            f"{', '.join(published)}.{nearest(str(weights), published)} For random weights, pass weights=None."
        )
    return path
