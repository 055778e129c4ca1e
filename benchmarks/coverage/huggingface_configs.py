"""Small configurations of Hugging Face models, for any configuration class.

Every field that is known to be a size gets a small value, in nested configurations too. Further fields that a model
type requires are set from a table.
"""

from __future__ import annotations

from typing import Any

WIDTH = 32
HEADS = 4
VOCABULARY = 300  # instead of some 30,000; ESM and Canine have special tokens up to here
SIDE = 32
TOKENS = 16

# Fields that are sizes, with their small values. Only larger integers are changed.
_SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embed_dim"), WIDTH),
    **dict.fromkeys(("embedding_size", "word_embed_proj_dim", "projection_dim", "true_hidden_size"), WIDTH),
    **dict.fromkeys(("pooler_hidden_size", "pooler_output_size", "prediction_head_size"), WIDTH),
    **dict.fromkeys(("input_embedding_size", "output_embedding_size", "entity_emb_size"), WIDTH),
    **dict.fromkeys(("output_hidden_size", "decoder_hidden_size", "pred_hidden_size"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "dff"), 64),
    **dict.fromkeys(("d_inner", "hidden_dim", "feed_forward_size", "ffn_hidden_size", "class_expand"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "decoder_intermediate_size"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "decoder_num_attention_heads", "pred_num_attention_heads"), HEADS),
    **dict.fromkeys(("head_dim", "d_head", "d_kv", "kv_channels", "attention_head_size", "attention_head_dim"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "gated_norm_rank", "adapter_rank"), 16),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), 2),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers", "decoder_num_hidden_layers"), 2),
    **dict.fromkeys(("num_spatial_layers", "num_temporal_layers", "num_auxiliary_layers"), 2),
    **dict.fromkeys(("num_pooler_layers", "pred_num_hidden_layers", "num_self_attends_per_block"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), HEADS),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "index_n_heads"), 2),
    **dict.fromkeys(("vocab_size", "entity_vocab_size", "pronunciation_vocab_size", "shape_vocab_size"), VOCABULARY),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "axial_pos_embds"), 64),
    **dict.fromkeys(("sliding_window", "local_attention", "keep_window_size", "index_topk"), 8),
    **dict.fromkeys(("image_size", "input_size", "crop_size"), SIDE),
    **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim", "classifier_proj_size"), WIDTH),
    **dict.fromkeys(("codevector_dim", "proj_codevector_dim", "xvector_output_dim"), WIDTH),
    **dict.fromkeys(("num_conv_pos_embeddings", "num_codevectors_per_group"), 8),
    **dict.fromkeys(("num_frames", "frames_per_clip"), 4),
    "num_latents": 8,
    "d_latents": WIDTH,
    "num_conv_pos_embedding_groups": 2,
    "max_2d_position_embeddings": 64,
    "patch_size": 8,
}

# Further fields by model type: widths that must match, with one entry per stage, and the fields that depend on them.
# The fields of a nested configuration are under its name.
_WIDTHS = [16, 16, 32, 32]
_ONE_EACH = [1, 1, 1, 1]
_SWIN = {"embed_dim": 12, "num_heads": [3, 3, 6, 6], "window_size": 2, "patch_size": 2, "depths": _ONE_EACH}
_WAVEFORM = {"conv_dim": [WIDTH] * 3, "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3], "tdnn_dim": [WIDTH] * 5}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}  # one of each kind of layer
_GROUPED_EXPERTS = {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 1}  # a group holds two of the four

_PARTICULAR: dict[str, dict[str, Any]] = {
    # images
    "bit": {"embedding_size": 16, "hidden_sizes": _WIDTHS, "depths": _ONE_EACH, "num_groups": 4},
    "convnext": {"hidden_sizes": _WIDTHS, "depths": _ONE_EACH},
    "convnextv2": {"hidden_sizes": _WIDTHS, "depths": _ONE_EACH},
    "cvt": {"embed_dim": [16, 16, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},  # stage i reads its rate i
    "dinat": {"embed_dim": 16, "depths": _ONE_EACH},
    "donut-swin": _SWIN,
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320},
    "focalnet": {"embed_dim": 16, "hidden_sizes": _WIDTHS, "depths": _ONE_EACH, "patch_size": 4},
    "hgnet_v2": {
        "stem_channels": [3, 8, 16],
        "stage_in_channels": [16, 16, 32, 32],
        "stage_mid_channels": [8, 8, 16, 16],
        "stage_out_channels": [16, 32, 32, 64],
        "stage_num_blocks": _ONE_EACH,
        "stage_numb_of_layers": [2, 2, 2, 2],
        "hidden_sizes": [16, 32, 32, 64],
        "embedding_size": 16,
    },
    "hiera": {"image_size": [64, 64], "embed_dim": 8, "depths": _ONE_EACH, "masked_unit_size": [8, 8]},
    "imagegpt": {"vocab_size": 65, "n_positions": TOKENS},
    "levit": {
        "image_size": 64,
        "hidden_sizes": [16, 32, 32],
        "num_attention_heads": [2, 2, 2],
        "key_dim": [8, 8, 8],
        "depths": [1, 1, 1],
        "patch_size": 16,
    },
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevit": {"hidden_sizes": [16, 16, 32], "neck_hidden_sizes": [8, 8, 16, 16, 16, 32, 64]},
    "mobilevitv2": {"image_size": 64, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1]},
    "perceiver": {"d_latents": 64, "num_self_attention_heads": 4, "num_cross_attention_heads": 1},
    "poolformer": {"hidden_sizes": _WIDTHS, "depths": _ONE_EACH},
    "pp_lcnet": {"scale": 0.25},
    "pvt": {"hidden_sizes": _WIDTHS, "depths": _ONE_EACH, "num_attention_heads": [1, 2, 2, 4], "image_size": 32},
    "pvt_v2": {"hidden_sizes": _WIDTHS, "depths": _ONE_EACH, "num_attention_heads": [1, 2, 2, 4], "image_size": 32},
    "regnet": {"embedding_size": 16, "hidden_sizes": _WIDTHS, "depths": _ONE_EACH, "groups_width": 8},
    "resnet": {"embedding_size": 16, "hidden_sizes": _WIDTHS, "depths": _ONE_EACH},
    "segformer": {"hidden_sizes": _WIDTHS, "depths": _ONE_EACH, "num_attention_heads": [1, 2, 2, 4]},
    "siglip2": {"vision_config": {"num_patches": 16}},
    "swiftformer": {"embed_dims": _WIDTHS, "depths": _ONE_EACH},
    "swin": _SWIN,
    "swinv2": {**_SWIN, "pretrained_window_sizes": [0, 0, 0, 0]},
    "textnet": {"stem_out_channels": 16, "hidden_sizes": [16, 16, 16, 32, 32]},
    "timm_wrapper": {"architecture": "test_resnet", "do_pooling": True},
    # text
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "axk1": _GROUPED_EXPERTS,
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v3": _GROUPED_EXPERTS,
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 2},  # both None by default
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},  # the width is four of the first and two of the second
    "lilt": {"hidden_size": 48},  # six coordinates share it
    "mistral4": {"head_dim": 16},  # 8 each with and without rotation
    "mobilebert": {"intra_bottleneck_size": WIDTH},
    "nemotron": {"num_key_value_heads": HEADS},
    "qwen3_5": {"text_config": _HYBRID},
    "qwen3_5_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "reformer": {
        "axial_pos_embds_dim": [16, 16],
        "axial_pos_shape": [4, 4],
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "num_buckets": 2,
        "hash_seed": 0,  # otherwise attention is random in eval mode too
    },
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "n_mamba_heads": 4},
    # audio
    **dict.fromkeys(("data2vec-audio", "hubert", "sew", "sew-d", "unispeech", "unispeech-sat", "wav2vec2"), _WAVEFORM),
    **dict.fromkeys(("wav2vec2-conformer", "wavlm"), _WAVEFORM),
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 32},
    "whisper": {"max_source_positions": TOKENS, "max_target_positions": TOKENS},
}


def small_config(model_type: str) -> Any:
    """Return a small configuration of `model_type`, a key of `transformers.CONFIG_MAPPING`."""
    from transformers import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    config = config_class(**_small_fields(config_class(), _PARTICULAR.get(model_type, {})))
    text = config.get_text_config()
    if getattr(text, "pad_token_id", 0) is None:
        text.pad_token_id = 0  # decoders use it to find the last token of each row
    return config


def _small_fields(config: Any, particular: dict[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments for a smaller configuration of the same class."""
    from transformers import PretrainedConfig

    fields: dict[str, Any] = {}
    for name, value in vars(config).items():
        given = particular.get(name)
        if isinstance(value, PretrainedConfig):
            fields[name] = _small_fields(value, given if isinstance(given, dict) else {})
        elif isinstance(value, int) and not isinstance(value, bool) and value > _SIZES.get(name, value):
            fields[name] = _SIZES[name]
        elif name == "head_dim" and value is None:
            fields[name] = WIDTH // HEADS
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            fields[name] = value
    vocabulary = fields.get("vocab_size", VOCABULARY)
    tokens = [name for name in fields if name.endswith(("_token_id", "_token_index"))]
    for position, name in enumerate(tokens, 1):
        if fields[name] >= vocabulary:
            fields[name] = position  # special tokens are at the end of large vocabularies
    nested = {name for name, value in fields.items() if isinstance(value, dict)}
    return {**fields, **{name: value for name, value in particular.items() if name not in nested}}
