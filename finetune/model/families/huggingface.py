"""Hugging Face transformers: models that are built from a `config` which says how many labels there are."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import ArgumentError, CheckpointError, HeadError, reason
from finetune.model.families.family import UNUSUAL, CatalogModel, layers_of_size

# The library's names for kinds of answers; binary ones with a single label have none.
_PROBLEM_TYPES = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}

# What is classified, and the class of transformers that prepares it.
_KINDS = {
    "IMAGE": "AutoImageProcessor",
    "SEQUENCE": "AutoTokenizer",
    "AUDIO": "AutoFeatureExtractor",
    "VIDEO": "AutoVideoProcessor",
}


def is_one(model: nn.Module) -> bool:
    """Tell whether a model is a `PreTrainedModel`."""
    return any(
        cls.__name__ == "PreTrainedModel" and cls.__module__.startswith("transformers.") for cls in type(model).__mro__
    )


def head(model: nn.Module) -> tuple[str, ...]:
    """Return the layers that take another size when `config.num_labels` does.

    The class is built a second time, without memory, for an unusual number of labels; so no list of
    the hundreds of classes is needed. None where a class of the user's own cannot be built like that.

    Raises:
        HeadError: it is one of the library's classes, and none of its layers follows the labels.
    """
    config: Any = copy.deepcopy(model.config)
    config.num_labels = UNUSUAL
    try:
        with torch.device("meta"):
            found = layers_of_size(type(model)(config), UNUSUAL)
    except Exception:  # whatever a constructor raises on what it was not made for
        return ()
    if not found and type(model).__module__.startswith("transformers."):
        raise HeadError(
            f"{type(model).__name__} has no layer that follows config.num_labels: it gives features or something else "
            f"than classes. Take its class for classification, as AutoModelForImageClassification or "
            f"AutoModelForSequenceClassification, or name a layer with replace_head(n, layer=...)."
        )
    return found


def tell_outputs(model: nn.Module, n: int) -> None:
    """Make the model's `config` say how many labels there are, and nothing of the labels before."""
    config: Any = model.config
    config.num_labels = n
    config.problem_type = None


def tell_task(model: nn.Module, kind: str | None, classes: Sequence[str] | None) -> None:
    """Make the model's `config` say what its labels are, which its own loss and pipelines go by."""
    config: Any = model.config
    config.problem_type = _PROBLEM_TYPES.get(kind or "", config.problem_type)
    if classes is not None:
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: index for index, name in enumerate(classes)}


def reset(model: nn.Module) -> None:
    """Draw the weights as the model's class does for those that no file has."""
    for module in model.modules():
        vars(module).pop("_is_hf_initialized", None)  # it says that they came from a file, and are to be kept
    model.initialize_weights()  # type: ignore[operator]


def examples(model: nn.Module, samples: int) -> list[Any]:
    """Return an input of the kind that the class names as its main one, where its size can be told."""
    config: Any = model.config
    kind = getattr(model, "main_input_name", None)
    vision = getattr(config, "vision_config", config)
    side = getattr(vision, "image_size", None) or 224
    height, width = (side, side) if isinstance(side, int) else tuple(side)[-2:]
    generator = torch.Generator().manual_seed(0)
    if kind == "pixel_values":
        frames = (config.num_frames,) if hasattr(config, "num_frames") else ()
        shape = (samples, *frames, getattr(vision, "num_channels", 3), height, width)
        return [{kind: torch.randn(shape, generator=generator)}]
    if kind == "input_ids":
        return [{kind: _sentences(config, samples, generator)}]
    return [{kind: torch.randn((samples, 16_000), generator=generator)}] if kind == "input_values" else []


def _sentences(config: Any, samples: int, generator: torch.Generator) -> Tensor:
    """Return int64 [samples, 8] word numbers, with the end token at the end alone: Bart and T5 classify there."""
    words = int(getattr(config, "vocab_size", 2))
    sentences = torch.randint(words, (samples, 8), generator=generator)
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < words:
        sentences[sentences == end] = (end + 1) % words
        sentences[:, -1] = end
    return sentences


def is_folder(name: str) -> bool:
    """Tell whether `name` is a folder that `save_pretrained` wrote."""
    return (Path(name) / "config.json").is_file()


def published(name: str) -> list[str]:
    """Return the names of the weights that there are for a model: one, whichever the hub or folder has."""
    return ["DEFAULT"]


def create(name: str, weights: str | None, *, as_pretrained: bool) -> CatalogModel:
    """Build the model of a hub name or folder for what it classifies, in float32.

    Raises:
        ArgumentError: no class of transformers classifies with such a model, or it is not installed.
        CheckpointError: it is neither in the cache nor to be had.
    """
    transformers = _library()
    config = _fetched(name, transformers.AutoConfig)
    kind, cls = _class_for(name, config)
    classes = None
    if weights is None:
        model = cls(config)
    else:
        model, loading = _fetched(name, cls, config=config, dtype=torch.float32, output_loading_info=True)
        if not loading["missing_keys"]:  # else the head is a new one, whose outputs mean nothing yet
            classes = label_names(config)
    try:
        preset = _fetched(name, getattr(transformers, _KINDS[kind]))
    except CheckpointError:
        preset = None  # weights alone, as of a folder with nothing but a model
    source = {
        "family": "huggingface",
        "name": name,
        "class": cls.__name__,
        "config": json.loads(config.to_json_string(use_diff=False)),
    }
    return CatalogModel(model, source, preset, classes)


def rebuild(source: Mapping[str, Any]) -> nn.Module:
    """Build the model of a `CatalogModel.source` with random weights."""
    known = {cls for kind in _KINDS for classes in _class_names(kind).values() for cls in classes}
    if source["class"] not in known:
        raise ArgumentError(f"transformers has no class {source['class']!r} that classifies")
    cls = getattr(_library(), source["class"])
    model: nn.Module = cls(cls.config_class.from_dict(dict(source["config"])))
    return model


def _fetched(name: str, cls: Any, **options: Any) -> Any:
    """Call `cls.from_pretrained`, with what is in the cache before the network is asked."""
    try:
        return cls.from_pretrained(name, local_files_only=True, **options)
    except Exception as error:  # what is missing in the cache, or damaged, fails in many ways
        if is_folder(name):
            raise CheckpointError(f"The folder {name!r} cannot be used by {cls.__name__}: {reason(error)}") from error
    try:
        return cls.from_pretrained(name, **options)
    except Exception as error:
        raise CheckpointError(
            f"{name!r} is not in the Hugging Face cache and {cls.__name__} could not fetch it ({reason(error)}). "
            f"Fetch it where there is a network, or give the folder of a model that save_pretrained wrote."
        ) from error


def _class_for(name: str, config: Any) -> tuple[str, Any]:
    """Return what a model classifies and its class: that which it was saved from, if that classifies."""
    candidates = [(kind, cls) for kind in _KINDS for cls in _class_names(kind).get(config.model_type, ())]
    saved = [(kind, cls) for kind, cls in candidates if cls in (config.architectures or ())]
    if not candidates:
        raise ArgumentError(
            f"{name!r} is a {config.model_type!r} model, and no class of transformers classifies images, texts, sounds "
            f"or videos with it. Build the model yourself and give it to FineTuner."
        )
    kind, cls = (saved or candidates)[0]
    return kind, getattr(_library(), cls)


def _class_names(kind: str) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes that classify this kind of data, by the model's type."""
    from transformers.models.auto import modeling_auto

    names = getattr(modeling_auto, f"MODEL_FOR_{kind}_CLASSIFICATION_MAPPING_NAMES")
    return {key: (value,) if isinstance(value, str) else tuple(value) for key, value in names.items()}


def label_names(config: Any) -> tuple[str, ...] | None:
    """Return the names of the labels, None where they are the numbers that stand there without names."""
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    numbered = tuple(f"LABEL_{index}" for index in range(len(names)))
    return None if names == numbered else names


def _library() -> ModuleType:
    try:
        return import_module("transformers")
    except ImportError as error:
        raise ArgumentError("transformers is not installed. Run `pip install torch-finetune[hf]`.") from error
