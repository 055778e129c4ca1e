"""Load a model by name, or take the user's module, with weights, input channels and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from finetune.checkpoint import restore, schema
from finetune.checkpoint.file import is_checkpoint
from finetune.checkpoint.schema import Checkpoint, fields_expected
from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.presets import built_for, preprocessing_of
from finetune.data.preprocessing.provenance import ASSUMED, GIVEN, PUBLISHED, Provenance
from finetune.data.preprocessing.text import TextPreprocessing
from finetune.data.randomness import seeded
from finetune.errors import ArgumentError, whole_number
from finetune.model import catalog
from finetune.model.families import family_of
from finetune.model.inspection.probing import accepted_example, samples_of_size
from finetune.model.network import unwrapped
from finetune.model.surgery import adapters, input_channels
from finetune.model.surgery.changes import InputAdaptation, ModelChange
from finetune.model.weights import load_weights, read_weights
from finetune.naming.paths import local_path


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model to fine-tune and everything published with it.

    Attributes:
        model: The module, including its wrappers if it came with some.
        origin: Plain data from which `catalog.rebuild` builds the model; None for the user's own module.
        classes: Class names of the outputs, or None if unknown.
        preprocessing: Preprocessing from images, text or audio to model inputs; None if unknown.
        inputs: Where the preprocessing comes from.
        changes: Changes made to the model, for checkpoints to repeat.
        random: Whether the weights are random by the user's choice, so that nothing was pretrained.
    """

    model: nn.Module
    origin: dict[str, Any] | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: InputPreprocessing | None = None
    changes: tuple[ModelChange, ...] = ()
    inputs: Provenance = field(default_factory=Provenance)
    random: bool = False


def load_pretrained(
    model: nn.Module | str,
    *,
    weights: str | Path | None = "DEFAULT",
    in_channels: int | None = None,
    preprocessing: Any = None,
    seed: int = 0,
) -> Pretrained:
    """Build a model by name, or take the user's module. The arguments are those of `FineTuner`.

    Raises:
        ArgumentError: If a value is invalid.
        CheckpointError: If the weights are neither cached nor downloadable, or do not fit the model.

    Example:
        >>> load_pretrained("resnet18", weights=None).origin["family"]
        'torchvision'
        >>> load_pretrained(nn.Linear(4, 2)).preprocessing is None
        True
    """
    if in_channels is not None:
        in_channels = whole_number("in_channels", in_channels)
    loaded, preset = _load(model, weights, seed)
    inner = unwrapped(loaded.model)
    inputs = _preprocessing(inner, preset if preprocessing is None else preprocessing)
    if preprocessing is None and isinstance(inputs, Preprocessing):
        inputs = _as_built(inner, inputs)
    origin = GIVEN if preprocessing is not None else ASSUMED if inputs is None else PUBLISHED
    loaded = replace(loaded, inputs=replace(loaded.inputs, origin=origin))
    if in_channels is None:
        return replace(loaded, preprocessing=inputs)
    return replace(
        loaded,
        preprocessing=_adapt_input(inner, inputs, in_channels),
        changes=(*loaded.changes, InputAdaptation(in_channels)),
    )


def _load(model: nn.Module | str, weights: Any, seed: int) -> tuple[Pretrained, Any]:
    """Return the model and its published preprocessing, in the format of its library or of a checkpoint."""
    weights, local = _checked(weights), _LocalWeights()
    if isinstance(model, nn.Module):
        _check_trainable(model)
        inner = unwrapped(model)
        if weights not in ("DEFAULT", None):
            local.load(inner, local_path(weights))
        family = family_of(inner)
        return local.added_to(Pretrained(model, classes=family.classes(inner)), family.preset(inner))
    if isinstance(model, Mapping):
        raise ArgumentError(
            f"Expected model to be an nn.Module or a name, but got a {type(model).__name__} with the keys "
            f"{', '.join(map(repr, list(model)[:3]))}, as of a state dict. Pass the module and the file of the "
            f"weights: FineTuner(model, weights=...), or call model.load_state_dict(...) first."
        )
    if not isinstance(model, str):
        raise ArgumentError(f"Expected model to be an nn.Module or a name, but got {model!r:.200}.")
    with seeded(seed, "weights"):
        created = catalog.create(model, weights, load=local.load)
    loaded = Pretrained(created.model, created.origin, created.classes, random=weights is None)
    return local.added_to(loaded, created.preset)


def _check_trainable(model: nn.Module) -> None:
    """Check that the tensors of a module have values, and may be trained.

    Raises:
        ArgumentError: If one is on the meta device or was made in inference mode, or the module was frozen by
            TorchScript.
    """
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors = {name: tensor for name, tensor in named.items() if not is_lazy(tensor)}
    meta = next((name for name, tensor in tensors.items() if tensor.is_meta), None)
    if meta is not None:
        raise ArgumentError(
            f"{meta} is on the meta device, so it has no values. Expected a model with values. Build the model on the "
            f"CPU, or call model.to_empty(device='cpu') and load its weights."
        )
    inference = next((name for name, tensor in tensors.items() if tensor.is_inference()), None)
    if inference is not None:
        raise ArgumentError(
            f"{inference} was made under torch.inference_mode(), so it cannot be trained. Build or load the model "
            f"outside of it."
        )
    if isinstance(model, torch.jit.ScriptModule) and not hasattr(model, "training"):
        raise ArgumentError(
            "The model was frozen by torch.jit.freeze, so its weights are constants and it cannot be trained. Pass the "
            "module that it was made from."
        )


def _checked(weights: Any) -> str | Path | None:
    """Return the `weights` argument, or the name of one of torchvision's.

    Raises:
        ArgumentError: If it is of another type, as the `True` of other libraries.
    """
    if isinstance(weights, Enum):
        return weights.name
    if weights is None or isinstance(weights, (str, PathLike)):
        return weights  # type: ignore[return-value]  # a PathLike serves as a Path
    got = repr(weights) if isinstance(weights, bool) else f"a {type(weights).__name__}"
    raise ArgumentError(
        f"Expected weights to be 'DEFAULT' for the best published ones, None for random ones, a name or the path of a "
        f"file, but got {got}."
    )


class _LocalWeights:
    """A local file of weights, with the changes and the content of a checkpoint."""

    def __init__(self) -> None:
        self.changes: list[ModelChange] | None = []
        self.checkpoint: Checkpoint | None = None
        self.preprocessing: InputPreprocessing | None = None

    def load(self, model: nn.Module, path: Path) -> None:
        """Load the file, a state dict or a checkpoint, into the model."""
        if is_checkpoint(path):
            self.checkpoint = schema.read(path)
            with fields_expected(path):
                self.preprocessing = preprocessing_of(self.checkpoint.preprocessing)
            self.changes = restore.load_start(model, self.checkpoint)
        else:
            self.changes = load_weights(model, read_weights(path), path)

    def added_to(self, loaded: Pretrained, preset: Any) -> tuple[Pretrained, Any]:
        """Return the model with the changes made to it, and the preprocessing and class names of the checkpoint."""
        loaded = replace(loaded, changes=tuple(self.changes or ()))
        if self.checkpoint is None:
            return loaded, preset
        loaded = replace(loaded, inputs=Provenance(PUBLISHED, self.checkpoint.inputs["trained_on"]))
        if self.changes is not None:
            loaded = replace(loaded, classes=self.checkpoint.classes)
        return loaded, self.preprocessing or preset


def _preprocessing(model: nn.Module, preset: Any) -> InputPreprocessing | None:
    """Return the preprocessing that `preset` describes, and set the model's padding token to the tokenizer's."""
    config: Any = getattr(model, "config", None)
    preprocessing = preprocessing_of(preset, _max_positions(model, config))
    if isinstance(preprocessing, TextPreprocessing) and hasattr(config, "pad_token_id"):
        config.pad_token_id = preprocessing.pad_token_id  # decoders use it to find a text's last token
    return preprocessing


def assumed_preprocessing(model: nn.Module) -> Preprocessing:
    """Return ImageNet's preprocessing for a model that states none, for images of the size that it was built for."""
    return built_for(Preprocessing(), *family_of(model).built_for(model))


def _as_built(model: nn.Module, published: Preprocessing) -> Preprocessing:
    """Return a published preprocessing for images of the size that the model was built for, if it takes no other.

    Some are built for a size at which they were pretrained, and published with a smaller one, as DINOv2.
    """
    fitted = built_for(published, *family_of(model).built_for(model))
    if fitted == published:
        return published
    images = samples_of_size(model, (published.channels, *published.crop_size))
    return fitted if accepted_example(model, images) is None else published


def _max_positions(model: nn.Module, config: Any) -> int | None:
    """Return the number of tokens that a text model accepts. RoBERTa reserves some positions for padding."""
    positions = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if positions and name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(min(positions, module.num_embeddings - reserved))
    return positions


def _adapt_input(
    model: nn.Module, preprocessing: InputPreprocessing | None, channels: int
) -> InputPreprocessing | None:
    """Adapt the model to images with `channels` channels and return the matching preprocessing."""
    adapters.check_changeable(model, ArgumentError, f"FineTuner(model, in_channels={channels})")
    normalization = input_channels.normalization_within(model)
    input_channels.adapt_input(model, channels)
    images = preprocessing or assumed_preprocessing(model)
    if channels > 1 or not isinstance(images, Preprocessing):
        return preprocessing
    if normalization and images.channels == 3:  # the model no longer replaces ImageNet's normalization
        images = replace(images, mean=normalization[:1] * 3, std=normalization[1:] * 3)
    return images.grey()
