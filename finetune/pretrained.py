"""From what the user names or hands over to a model that is ready: its weights, channels, preprocessing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.preprocessing.pictures import Preprocessing
from finetune.data.preprocessing.presets import preprocessing_of
from finetune.data.preprocessing.text import TextPreprocessing
from finetune.data.randomness import seeded
from finetune.errors import ArgumentError
from finetune.model import catalog
from finetune.model.families import family_of
from finetune.model.surgery import adapters, input_channels
from finetune.model.surgery.changes import InputAdaptation, ModelChange
from finetune.model.weights import load_weights, read_weights
from finetune.model.wrapping import unwrapped


@dataclass
class Intake:
    """A model, and what is known of it from the start.

    Attributes:
        source: what `catalog.rebuild` makes it again from; None for a module of the user's own.
        classes: what its outputs mean; None where they mean nothing yet.
        changes: adaptations, as a checkpoint holds them for loading to repeat.
    """

    model: nn.Module
    source: dict[str, Any] | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: InputPreprocessing | None = None
    changes: list[ModelChange] = field(default_factory=list)


def take_in(
    model: nn.Module | str, weights: str | Path | None, in_channels: int | None, preprocessing: Any, seed: int
) -> Intake:
    """Take the user's module, or build the model of that name; the arguments are `FineTuner`'s.

    Raises:
        ArgumentError: a value that cannot work.
        CheckpointError: the weights are not to be had, or do not fit.
    """
    taken, published = _modelled(model, weights, seed)
    inner = unwrapped(taken.model)
    taken.preprocessing = _inputs_of(inner, published if preprocessing is None else preprocessing)
    if in_channels is not None:
        _adapt_input(taken, inner, in_channels)
    return taken


def _modelled(model: nn.Module | str, weights: str | Path | None, seed: int) -> tuple[Intake, Any]:
    """Return the model, with the preprocessing that is published for it."""
    if isinstance(model, nn.Module):
        if weights not in ("DEFAULT", None):
            load_weights(unwrapped(model), read_weights(Path(weights)))
        inner = unwrapped(model)
        return Intake(model, classes=family_of(inner).classes(inner)), family_of(inner).preset(inner)
    if not isinstance(model, str):
        raise ArgumentError(f"Expected model to be an nn.Module or a name, but got {model!r}.")
    with seeded(seed, "weights"):
        made = catalog.create(model, weights)
    return Intake(made.model, made.origin, made.classes), made.preset


def _inputs_of(model: nn.Module, preset: Any) -> InputPreprocessing | None:
    """Return the model's preprocessing; the model is told the tokenizer's padding token."""
    config: Any = getattr(model, "config", None)
    preprocessing = preprocessing_of(preset, _positions(model, config))
    if isinstance(preprocessing, TextPreprocessing) and hasattr(config, "pad_token_id"):
        config.pad_token_id = preprocessing.pad_token_id  # decoders find a text's last token by it
    return preprocessing


def _positions(model: nn.Module, config: Any) -> int | None:
    """Return how many tokens a text model can take; RoBERTa's positions begin behind that of the padding."""
    positions = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if positions and name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(min(positions, module.num_embeddings - reserved))
    return positions


def _adapt_input(taken: Intake, model: nn.Module, in_channels: int) -> None:
    """Have the model read pictures of so many channels; those of one are grey."""
    adapters.check_changeable(model, ArgumentError, f"FineTuner(model, in_channels={in_channels})")
    normalisation = input_channels.normalisation_within(model)
    input_channels.adapt_input(model, in_channels)
    taken.changes.append(InputAdaptation(in_channels))
    known = taken.preprocessing or Preprocessing()
    if in_channels == 1 and isinstance(known, Preprocessing):
        if normalisation and known.channels == 3:  # the model no longer does what came after ImageNet's
            known = replace(known, mean=normalisation[:1] * 3, std=normalisation[1:] * 3)
        taken.preprocessing = known.grey()
