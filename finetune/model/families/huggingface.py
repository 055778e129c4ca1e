"""Hugging Face transformers: models built from a `config` that knows the number of labels."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import ArgumentError, CheckpointError, HeadError, reason
from finetune.model.families.family import UNUSUAL_NUM_CLASSES, CatalogModel, Family, made_by, resized_layers
from finetune.model.families.hub import check_reachable
from finetune.model.families.input_size import InputSize, sides
from finetune.naming.paths import exists, local_path

# Our kinds of task -> `config.problem_type`. Binary classification with a single label has none.
_PROBLEM_TYPES = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}

# Modality, as in MODEL_FOR_..._CLASSIFICATION_MAPPING_NAMES -> the class that prepares its inputs.
_PREPROCESSORS = {
    "IMAGE": "AutoImageProcessor",
    "SEQUENCE": "AutoTokenizer",
    "AUDIO": "AutoFeatureExtractor",
    "VIDEO": "AutoVideoProcessor",
}

# More labels or layers than any model has; configs make lists of that length.
_MOST_COUNTED = 1_000_000


class HuggingFace(Family):
    """Models of the hub named `hf/NAME`, and folders that `save_pretrained` wrote."""

    prefix = "hf/"
    usage = "'hf/NAME', the folder of a Hugging Face model"

    def owns(self, model: nn.Module) -> bool:
        return any(cls.__name__ == "PreTrainedModel" and made_by("transformers", cls) for cls in type(model).__mro__)

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        """Return the layers whose size follows `config.num_labels`.

        The class is built a second time on the meta device, with an unusual number of labels, so no
        table of the library's hundreds of classes is needed. A user's subclass that cannot be built
        from a config alone has no known heads.
        """
        config: Any = copy.deepcopy(model.config)
        config.num_labels = UNUSUAL_NUM_CLASSES
        try:
            with torch.device("meta"):
                found = resized_layers(model, type(model)(config))
        except Exception:  # a user's constructor can raise anything
            return ()
        if not found and made_by("transformers", type(model)):
            raise HeadError(
                f"{type(model).__name__} has no layer that follows config.num_labels, so it is not a classifier. Load "
                f"the model with a class such as AutoModelForImageClassification or "
                f"AutoModelForSequenceClassification, or name a layer with replace_head(n, layer=...)."
            )
        return found

    def examples(self, model: nn.Module, samples: int) -> list[Any]:
        """Return the model's main input by its class, if the size of that input is known."""
        config: Any = model.config
        kind = getattr(model, "main_input_name", None)
        channels, size = self.built_for(model)
        generator = torch.Generator().manual_seed(0)
        if kind == "pixel_values":
            frames = (config.num_frames,) if hasattr(config, "num_frames") else ()
            shape = (samples, *frames, channels or 3, *(size or (224, 224)))
            return [{kind: torch.randn(shape, generator=generator)}]
        if kind == "input_ids":
            return [{kind: _random_tokens(config, samples, generator)}]
        return [{kind: torch.randn((samples, 16_000), generator=generator)}] if kind == "input_values" else []

    def built_for(self, model: nn.Module) -> InputSize:
        """Return what the config states. Many models take images of other sizes too."""
        if getattr(model, "main_input_name", None) != "pixel_values":
            return InputSize()
        config: Any = model.config
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None)
        if isinstance(size, (list, tuple)):  # of videos too
            size = size[-2:]
        return InputSize(getattr(vision, "num_channels", None), sides(size, 2))

    def classes(self, model: nn.Module) -> tuple[str, ...] | None:
        return _label_names(model.config)

    def reset(self, model: nn.Module) -> None:
        for module in model.modules():
            vars(module).pop("_is_hf_initialized", None)  # marks weights loaded from a file, which would be kept
        model.initialize_weights()  # type: ignore[operator]

    def tell_outputs(self, model: nn.Module, n: int) -> None:
        config: Any = model.config
        config.num_labels = n
        config.problem_type = None

    def tell_task(self, model: nn.Module, kind: str | None, classes: Sequence[str] | None) -> None:
        """Record the task and labels in `model.config`, which the model's own loss and pipelines read."""
        config: Any = model.config
        config.problem_type = _PROBLEM_TYPES.get(kind or "", config.problem_type)
        if classes is not None:
            config.id2label = dict(enumerate(classes))
            config.label2id = {name: index for index, name in enumerate(classes)}

    def local_name(self, name: str) -> str | None:
        return str(local_path(name)) if _is_folder(name) else super().local_name(name)

    def create(self, name: str, weights: str | None, *, as_pretrained: bool) -> CatalogModel:
        """Build the classifier for a hub name or folder, in float32."""
        transformers = _library()
        config = _load(name, transformers.AutoConfig)
        modality, cls = _classifier_class(name, config)
        classes = None
        if weights is None:
            model = cls(config)
        else:
            model, loading = _load(name, cls, config=config, dtype=torch.float32, output_loading_info=True)
            if not loading["missing_keys"]:  # else the head is new, and its outputs mean nothing yet
                classes = _label_names(config)
        try:
            preset = _load(name, getattr(transformers, _PREPROCESSORS[modality]))
        except CheckpointError:
            preset = None  # some folders hold only a model
        origin = {
            "name": name,
            "class": cls.__name__,
            "config": json.loads(config.to_json_string(use_diff=False)),
        }
        return CatalogModel(model, origin, preset, classes)

    def page(self, origin: Mapping[str, Any]) -> str | None:
        name = str(origin["name"])
        return name if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not _is_folder(name) else None

    def rebuild(self, origin: Mapping[str, Any]) -> nn.Module:
        known = {cls for modality in _PREPROCESSORS for names in _class_names(modality).values() for cls in names}
        if origin["class"] not in known:
            raise ArgumentError(f"transformers has no classifier {origin['class']!r}")
        _check_config(origin["config"])
        cls = getattr(_library(), origin["class"])
        model: nn.Module = cls(cls.config_class.from_dict(dict(origin["config"])))
        return model


def _check_config(config: Mapping[str, Any]) -> None:
    """Check that a config from a file neither counts to millions nor names code of others.

    Raises:
        ArgumentError: If it does.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_config(value)
        counts = str(key).startswith("num_") and isinstance(value, (int, float)) and value > _MOST_COUNTED
        if counts or (str(key).endswith("_implementation") and "/" in str(value)):
            raise ArgumentError(f"its config has {key} {value}")


def _random_tokens(config: Any, samples: int, generator: torch.Generator) -> Tensor:
    """Return token ids, int64 [samples, 8]. Only the last is the end token: Bart and T5 classify there."""
    words = int(getattr(config, "vocab_size", 2))
    tokens = torch.randint(words, (samples, 8), generator=generator)
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < words:
        tokens[tokens == end] = (end + 1) % words
        tokens[:, -1] = end
    return tokens


def _label_names(config: Any) -> tuple[str, ...] | None:
    """Return the label names, or None for the numbered placeholders of an untrained config."""
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    placeholders = tuple(f"LABEL_{index}" for index in range(len(names)))
    return None if names == placeholders else names


def _is_folder(name: str) -> bool:
    """Return whether `name` is a folder that `save_pretrained` wrote."""
    return exists(local_path(name) / "config.json")


def _load(name: str, cls: Any, **options: Any) -> Any:
    """Call `cls.from_pretrained`, on the cache first and only then on the network."""
    try:
        return cls.from_pretrained(name, local_files_only=True, **options)
    except Exception as error:  # a missing or damaged file can fail in any way
        if _is_folder(name):
            raise CheckpointError(f"The folder {name!r} cannot be used by {cls.__name__}: {reason(error)}") from error
    file = "config.json" if cls.__name__ == "AutoConfig" else f"A file for {cls.__name__}"
    check_reachable(name, file, "Or pass a folder written by save_pretrained.")
    try:
        return cls.from_pretrained(name, **options)
    except Exception as error:
        raise CheckpointError(
            f"{name!r} is not in the Hugging Face cache and {cls.__name__} could not download it ({reason(error)}). "
            f"Download it on a machine with network access, or pass a folder written by save_pretrained."
        ) from error


def _classifier_class(name: str, config: Any) -> tuple[str, Any]:
    """Return the modality and the class: the one the model was saved from if that is a classifier, else the first."""
    candidates = [
        (modality, cls) for modality in _PREPROCESSORS for cls in _class_names(modality).get(config.model_type, ())
    ]
    saved = [(modality, cls) for modality, cls in candidates if cls in (config.architectures or ())]
    if not candidates:
        raise ArgumentError(
            f"{name!r} is a {config.model_type!r} model, for which transformers has no class that classifies images, "
            f"text, audio or video. Build the model yourself and pass it to FineTuner."
        )
    modality, cls = (saved or candidates)[0]
    return modality, getattr(_library(), cls)


def _class_names(modality: str) -> dict[str, tuple[str, ...]]:
    """Return the names of the classifiers for a modality, by model type."""
    from transformers.models.auto import modeling_auto

    names = getattr(modeling_auto, f"MODEL_FOR_{modality}_CLASSIFICATION_MAPPING_NAMES")
    return {key: (value,) if isinstance(value, str) else tuple(value) for key, value in names.items()}


def _library() -> ModuleType:
    try:
        return import_module("transformers")
    except ImportError as error:
        raise ArgumentError("transformers is not installed. Run `pip install 'torch-finetune[hf]'`.") from error
