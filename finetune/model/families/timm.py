"""timm's models, by the contract they all keep: `get_classifier`, `reset_classifier`, `group_matcher`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from finetune.errors import ArgumentError, CheckpointError, HeadError, nearest, reason
from finetune.model.families.family import UNUSUAL, CatalogModel, layers_of_size
from finetune.model.surgery.structure_copy import without_memory


def is_one(model: nn.Module) -> bool:
    """Tell whether a model is one of timm's; one with a forward pass of its own may have another head."""
    return type(model).forward.__module__.startswith("timm.")


def head(model: nn.Module) -> tuple[str, ...]:
    """Return the layers that take another size when the model's classes do.

    `get_classifier` can give more than those, such as a layer before the last one, which keeps what
    it learned. So a twin without memory is reset to an unusual number of classes and looked through.

    Raises:
        HeadError: the architecture has no classifier.
    """
    if not hasattr(model, "reset_classifier"):
        raise HeadError(
            f"timm's {type(model).__name__} has no classifier: it is an encoder that gives features. Put a head behind "
            f"it, as nn.Sequential(model, pooling, nn.Linear(features, n)), or take an architecture with one."
        )
    twin = without_memory(model)
    with torch.device("meta"):
        twin.reset_classifier(UNUSUAL, **_distilled(twin))  # type: ignore[operator]
    return layers_of_size(twin, UNUSUAL)


def examples(model: nn.Module, samples: int) -> list[Any]:
    """Return pictures of the size that the model was published for, and of the size that it was built for."""
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    built_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
    sizes = [size if built_for is None else (size[0], *built_for), size]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((samples, *size), generator=generator) for size in sizes]


def loss_weights(model: nn.Module) -> tuple[float, float]:
    """Return the weights of the losses of the class and of the distillation token: a half each (arXiv 2012.12877)."""
    return 0.5, 0.5


def add_head(model: nn.Module, n: int) -> None:
    """Give a model that was made without classes, as with `num_classes=0`, the head of its architecture."""
    like = next(model.parameters())
    model.reset_classifier(n)  # type: ignore[operator]
    model.to(like.device, like.dtype)


def depth(model: nn.Module) -> list[list[str]] | None:
    """Return the parameters' names by stage from the stem on, as the architecture's `group_matcher` says."""
    try:
        matcher = model.group_matcher(coarse=True)  # type: ignore[operator]
    except (AttributeError, AssertionError):  # there is none, or as in RDNet none by stage
        return None
    groups = _library().models.group_parameters(model, matcher)
    return [groups[key] for key in sorted(groups)]


def preset(model: nn.Module) -> dict[str, Any] | None:
    """Return the data config that the model was published with."""
    if not getattr(model, "pretrained_cfg", None):
        return None
    config: dict[str, Any] = _library().data.resolve_model_data_config(model)
    return config


def published(name: str) -> list[str]:
    """Return the names of the weights that there are for a model.

    Raises:
        ArgumentError: there is no such model, or no timm.
    """
    timm = _library()
    if not name.startswith(("hf_hub:", "hf-hub:")) and not timm.is_model(name):
        raise ArgumentError(f"timm has no model {name!r}.{nearest(name, timm.list_models())}")
    return ["DEFAULT"]


def create(name: str, weights: str | None, *, as_pretrained: bool) -> CatalogModel:
    """Build a model, with its published weights or with random ones.

    Raises:
        ArgumentError: the tag in the name is not one of this model's.
        CheckpointError: the weights are neither in the cache nor to be had.
    """
    timm = _library()
    try:
        model = timm.create_model(name, pretrained=weights is not None, **_cached(name) if weights else {})
    except RuntimeError as error:
        if "tag" not in str(error):
            raise _not_fetched(name, error) from error
        architecture = name.partition(".")[0]
        raise ArgumentError(f"{str(error).rstrip('.')}.{nearest(name, timm.list_pretrained(architecture))}") from error
    except Exception as error:  # the hub's errors are many, and a damaged file can fail in any way
        raise _not_fetched(name, error) from error
    source = {"family": "timm", "name": name, "options": {}}
    config = timm.data.resolve_model_data_config(model)
    return CatalogModel(model, source, config, _classes(model) if weights else None)


def rebuild(source: Mapping[str, Any]) -> nn.Module:
    """Build the model of a `CatalogModel.source` with random weights."""
    model: nn.Module = _library().create_model(source["name"], pretrained=False, **source["options"])
    return model


def _distilled(model: nn.Module) -> dict[str, bool]:
    """Return what `reset_classifier` has to be told for a distilled head not to be dropped, as in RepViT."""
    asks = "distillation" in inspect.signature(model.reset_classifier).parameters  # type: ignore[arg-type]
    beside = getattr(model.get_classifier(), "head_dist", None) if asks else None  # type: ignore[operator]
    return {"distillation": beside is not None and next(beside.parameters(), None) is not None} if asks else {}


def _cached(name: str) -> dict[str, Any]:
    """Say where the hub's cache has the weights, so that they are used without asking the network first."""
    from huggingface_hub import try_to_load_from_cache

    config = _library().models.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return {}
    repository, _, revision = config.hf_hub_id.partition("@")
    for file in (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(repository, file, revision=revision or None) if file else None
        if isinstance(path, str):
            return {"pretrained_cfg_overlay": {"file": path}}
    return {}


def _classes(model: nn.Module) -> tuple[str, ...] | None:
    """Return the names of the classes that a published head tells apart, where timm has them."""
    data = _library().data
    subset = data.infer_imagenet_subset(model)
    if subset is None:
        return None
    info = data.ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(info.num_classes()))


def _not_fetched(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"The pretrained weights of timm's {name} are not in the Hugging Face cache and could not be fetched "
        f"({reason(error)}). Fetch them where there is a network, give a file with weights='FILE', or go without "
        f"pretraining with weights=None."
    )


def _library() -> ModuleType:
    try:
        import timm.data
        import timm.models
    except ImportError as error:
        raise ArgumentError("timm is not installed. Run `pip install torch-finetune[timm]`.") from error
    return timm
