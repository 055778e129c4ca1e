"""From the preprocessing that is published with a model, whatever library it is of, to the one here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.data.preprocessing.base import PICTURE, TEXT, WAVEFORM, InputPreprocessing
from finetune.data.preprocessing.pictures import Preprocessing
from finetune.data.preprocessing.published import from_image_processor, from_timm
from finetune.data.preprocessing.sound import AudioPreprocessing
from finetune.data.preprocessing.text import TextPreprocessing
from finetune.errors import ArgumentError

_KINDS: dict[str, type[Preprocessing | TextPreprocessing | AudioPreprocessing]] = {
    PICTURE: Preprocessing,
    TEXT: TextPreprocessing,
    WAVEFORM: AudioPreprocessing,
}


def preprocessing_of(preset: Any, max_positions: int | None = None) -> InputPreprocessing | None:
    """Return the preprocessing that `preset` describes.

    Args:
        preset: one of ours, or what its `to_dict` gave or the fields of a `Preprocessing`; a torchvision
            preset; the dict of `timm.data.resolve_model_data_config`; a tokenizer, feature extractor or
            image processor of transformers; or None. A torchvision video preset gives None too: clips
            come as tensors that are ready.
        max_positions: the tokens that a text model can take, where that is known.

    Raises:
        ArgumentError: it is none of these, or does what cannot be repeated here.
    """
    if preset is None or type(preset).__name__ == "VideoClassification":
        return None
    if isinstance(preset, InputPreprocessing):
        return preset
    if isinstance(preset, Mapping):
        return from_timm(preset) if "input_size" in preset else preprocessing_from_dict(preset)
    if hasattr(preset, "model_max_length"):
        return TextPreprocessing.from_tokenizer(preset, max_positions)
    if hasattr(preset, "sampling_rate"):
        return AudioPreprocessing.from_extractor(preset)
    if hasattr(preset, "data_config"):  # transformers' wrapper of timm's models
        return from_timm(preset.data_config)
    if hasattr(preset, "image_processor_type") or hasattr(preset, "image_mean"):
        return from_image_processor(preset)
    if hasattr(preset, "resize_size"):
        return Preprocessing.from_torchvision(preset)
    raise ArgumentError(
        f"A {type(preset).__name__} is no preprocessing. Expected a Preprocessing or its fields as a dict, or a "
        "tokenizer, feature extractor or image processor of transformers (of a processor, that part of it)."
    )


def preprocessing_from_dict(values: Mapping[str, Any]) -> InputPreprocessing:
    """Rebuild what `to_dict` of any preprocessing gave; without a kind it is that of pictures.

    Raises:
        ArgumentError: an unknown kind or field, or a bad value.
    """
    kind = values.get("kind", PICTURE)
    if kind not in _KINDS:
        raise ArgumentError(f"There is no preprocessing of the kind {kind!r}; it can be {', '.join(_KINDS)}.")
    return _KINDS[kind].from_dict(values)
