"""Every Hugging Face class of the `AutoModelFor...Classification` mappings, built small and with random weights."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.family import SAMPLES, Built, Family
from benchmarks.coverage.huggingface_configs import SIDE, TOKENS, VOCABULARY, small_config

_MAPPINGS = {
    "image": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "text": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "audio": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "video": "MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES",
}


def _names() -> list[str]:
    """Return every class as `modality/model type/class`."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    found = []
    for modality, mapping in _MAPPINGS.items():
        for model_type, classes in getattr(auto, mapping).items():
            several = classes if isinstance(classes, tuple) else (classes,)
            found += [f"{modality}/{model_type}/{name}" for name in several]
    return found


def _build(name: str) -> Built:
    import transformers

    _, model_type, class_name = name.split("/")
    model: nn.Module = getattr(transformers, class_name)(small_config(model_type))
    return Built(model, _inputs(name, model))


def _inputs(name: str, model: nn.Module) -> dict[str, Tensor]:
    """Return a batch of random inputs by name."""
    modality, model_type, _ = name.split("/")
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    if modality == "text":
        return _text(model_type, config, generator)
    if modality == "audio":
        return _audio(model_type, config, generator)
    return _images(model_type, config, generator)


def _text(model_type: str, config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    text = config.get_text_config()
    ids = torch.randint(20, getattr(text, "vocab_size", VOCABULARY), (SAMPLES, TOKENS), generator=generator)
    end = getattr(text, "eos_token_id", None)
    if isinstance(end, int):
        ids[:, -1] = end  # encoder-decoders classify at the end token
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return found


def _audio(model_type: str, config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    if model_type == "whisper":
        shape = (SAMPLES, config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": torch.randn(shape, generator=generator)}
    if model_type == "wav2vec2-bert":
        return {"input_features": torch.randn((SAMPLES, 24, config.feature_projection_input_dim), generator=generator)}
    if model_type == "audio-spectrogram-transformer":
        return {"input_values": torch.randn((SAMPLES, config.max_length, config.num_mel_bins), generator=generator)}
    return {"input_values": torch.randn((SAMPLES, 1000), generator=generator)}


def _images(model_type: str, config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    if model_type == "imagegpt":  # its inputs are colors as tokens
        ids = torch.randint(config.vocab_size - 1, (SAMPLES, TOKENS), generator=generator)
        return {"input_ids": ids}
    if model_type == "siglip2":  # its inputs are flattened patches
        patch = 3 * config.vision_config.patch_size**2
        return {
            "pixel_values": torch.randn((SAMPLES, TOKENS, patch), generator=generator),
            "pixel_attention_mask": torch.ones((SAMPLES, TOKENS), dtype=torch.long),
            "spatial_shapes": torch.tensor([[4, 4]] * SAMPLES),
        }
    side = getattr(config, "image_size", None) or getattr(config, "crop_size", SIDE)
    side = side[0] if isinstance(side, (list, tuple)) else side
    frames = None if model_type == "perceiver" else getattr(config, "num_frames", None)
    frames = frames or getattr(config, "frames_per_clip", None)
    shape = [SAMPLES, *([] if frames is None else [frames]), 3, side, side]
    name = "pixel_values_videos" if model_type in ("videoprism_vision_model", "vjepa2") else "pixel_values"
    return {name: torch.randn(shape, generator=generator)}


FAMILY = Family(
    title="Hugging Face classifiers of images, text, audio and video",
    packages=("transformers",),
    names=_names,
    build=_build,
    sample=(
        "image/vit/ViTForImageClassification",
        "image/resnet/ResNetForImageClassification",
        "image/deit/DeiTForImageClassificationWithTeacher",
        "image/levit/LevitForImageClassificationWithTeacher",
        "image/swin/SwinForImageClassification",
        "image/clip/CLIPForImageClassification",
        "text/bert/BertForSequenceClassification",
        "text/roberta/RobertaForSequenceClassification",
        "text/distilbert/DistilBertForSequenceClassification",
        "text/gpt2/GPT2ForSequenceClassification",
        "text/llama/LlamaForSequenceClassification",
        "text/bart/BartForSequenceClassification",
        "text/t5/T5ForSequenceClassification",
        "text/modernbert/ModernBertForSequenceClassification",
        "audio/wav2vec2/Wav2Vec2ForSequenceClassification",
        "audio/whisper/WhisperForAudioClassification",
        "audio/audio-spectrogram-transformer/ASTForAudioClassification",
        "video/videomae/VideoMAEForVideoClassification",
    ),
    headless=frozenset({"image/shieldgemma2/ShieldGemma2ForImageClassification"}),
)
