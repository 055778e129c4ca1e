"""timm's models, through the interface they share: `get_classifier`, `reset_classifier`, `group_matcher`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

from finetune.errors import ArgumentError, CheckpointError, HeadError, nearest, reason
from finetune.model.families.family import UNUSUAL_NUM_CLASSES, CatalogModel, Family, made_by, resized_layers
from finetune.model.families.hub import check_reachable, offline
from finetune.model.surgery.copies import meta_copy


class Timm(Family):
    """Models named `timm/NAME`. Weights come from the Hugging Face cache or are downloaded into it."""

    prefix = "timm/"
    usage = "'timm/NAME'"

    def owns(self, model: nn.Module) -> bool:
        # not by class: a subclass with its own forward pass may have another head
        return made_by("timm", getattr(type(model), "forward", None))

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        """Return the layers that `reset_classifier` resizes.

        `get_classifier` can return further layers, such as one before the last that keeps its weights.
        Therefore a copy on the meta device is reset to an unusual number of classes.
        """
        if not hasattr(model, "reset_classifier"):
            raise HeadError(
                f"timm's {type(model).__name__} is an encoder and has no classifier. Append a head, as in "
                f"nn.Sequential(model, pooling, nn.Linear(features, n)), or choose an architecture that has one."
            )
        twin = meta_copy(model)
        with torch.device("meta"):
            twin.reset_classifier(UNUSUAL_NUM_CLASSES, **_distillation(twin))  # type: ignore[operator]
        return resized_layers(model, twin)

    def depth(self, model: nn.Module) -> list[list[str]] | None:
        try:
            matcher = model.group_matcher(coarse=True)  # type: ignore[operator]
        except (AttributeError, AssertionError):  # some architectures have no groups, or like RDNet none by stage
            return None
        groups = _library().models.group_parameters(model, matcher)
        return [groups[key] for key in sorted(groups)]

    def examples(self, model: nn.Module, samples: int) -> list[Any]:
        """Return images of the size the model was built for, then of the size it was pretrained on."""
        size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
        generator = torch.Generator().manual_seed(0)
        shapes = dict.fromkeys((self._input_size(model, size), tuple(size)))
        return [torch.randn((samples, *shape), generator=generator) for shape in shapes]

    def preset(self, model: nn.Module) -> dict[str, Any] | None:
        """Return the published data config, but at the size and number of channels that the model was built for."""
        if not getattr(model, "pretrained_cfg", None):
            return None
        config: dict[str, Any] = _library().data.resolve_model_data_config(model)
        return {**config, "input_size": self._input_size(model, config["input_size"])}

    def _input_size(self, model: nn.Module, published: Sequence[int]) -> tuple[int, ...]:
        channels, size = self.built_for(model)
        # a stem that first folds pixels into channels, as TResNet's, reads other numbers of channels than the image has
        return (channels if channels in (1, 3) else published[0], *(size or published[1:]))

    def loss_weights(self, model: nn.Module) -> tuple[float, float]:
        """Weigh the class token and the distillation token equally (DeiT, arXiv 2012.12877)."""
        return 0.5, 0.5

    def add_head(self, model: nn.Module, n: int) -> None:
        like = next(model.parameters())
        model.reset_classifier(n)  # type: ignore[operator]
        model.to(like.device, like.dtype)

    def published(self, name: str) -> list[str]:
        timm = _library()
        if not name.startswith(("hf_hub:", "hf-hub:")) and not timm.is_model(name):
            raise ArgumentError(f"timm has no model {name!r}.{nearest(name, timm.list_models())}")
        return super().published(name)

    def create(self, name: str, weights: str | None, *, as_pretrained: bool) -> CatalogModel:
        timm = _library()
        cached = _cached(name) if weights else {}
        try:
            model = timm.create_model(name, pretrained=weights is not None, **cached)
        except RuntimeError as error:
            if "tag" not in str(error):
                raise _not_downloaded(name, error) from error
            tags = timm.list_pretrained(name.partition(".")[0])
            raise ArgumentError(f"{str(error).rstrip('.')}.{nearest(name, tags)}") from error
        except Exception as error:  # the hub has many errors, and a damaged file can fail in any way
            raise _not_downloaded(name, error) from error
        config = timm.data.resolve_model_data_config(model)
        classes = _imagenet_classes(model) if weights else None
        return CatalogModel(model, {"name": name, "options": {}}, config, classes)

    def license(self, origin: Mapping[str, Any]) -> str | None:
        config = _library().models.get_pretrained_cfg(origin["name"])
        return getattr(config, "license", None)

    def page(self, origin: Mapping[str, Any]) -> str | None:
        config = _library().models.get_pretrained_cfg(origin["name"])
        return (getattr(config, "hf_hub_id", None) or "").partition("@")[0] or None

    def rebuild(self, origin: Mapping[str, Any]) -> nn.Module:
        self.published(origin["name"])  # raises for anything but a name, such as a folder
        if origin["options"]:
            raise ArgumentError(f"timm's {origin['name']} is built without options")
        with offline():  # a config of the hub has to be in the cache
            model: nn.Module = _library().create_model(origin["name"], pretrained=False)
        return model


def _distillation(model: nn.Module) -> dict[str, bool]:
    """Return the argument that keeps `reset_classifier` from dropping a distillation head, as RepViT does."""
    if "distillation" not in inspect.signature(model.reset_classifier).parameters:  # type: ignore[arg-type]
        return {}
    head = getattr(model.get_classifier(), "head_dist", None)  # type: ignore[operator]
    return {"distillation": head is not None and next(head.parameters(), None) is not None}


def _cached(name: str) -> dict[str, Any]:
    """Return the option that points timm to the cached weights, so that it does not ask the network first.

    Raises:
        CheckpointError: If they are not cached, and the hub cannot be reached.
    """
    from huggingface_hub import try_to_load_from_cache

    config = _library().models.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        return {}
    repository, _, revision = config.hf_hub_id.partition("@")
    for file in (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin"):
        path = try_to_load_from_cache(repository, file, revision=revision or None) if file else None
        if isinstance(path, str):
            return {"pretrained_cfg_overlay": {"file": path}}
    check_reachable(
        repository,
        config.hf_hub_filename or "model.safetensors",
        "Or pass a file with weights='FILE', or start from random weights with weights=None.",
    )
    return {}


def _imagenet_classes(model: nn.Module) -> tuple[str, ...] | None:
    """Return the class names of a head pretrained on a variant of ImageNet, or None for other data."""
    data = _library().data
    subset = data.infer_imagenet_subset(model)
    if subset is None:
        return None
    info = data.ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(info.num_classes()))


def _not_downloaded(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"The pretrained weights of timm's {name} are not in the Hugging Face cache and could not be downloaded "
        f"({reason(error)}). Download them on a machine with network access, pass a file with weights='FILE', or start "
        f"from random weights with weights=None."
    )


def _library() -> ModuleType:
    try:
        import timm.data
        import timm.models
    except ImportError as error:
        raise ArgumentError("timm is not installed. Run `pip install 'torch-finetune[timm]'`.") from error
    return timm
