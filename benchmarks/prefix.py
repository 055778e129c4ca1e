# ruff: noqa: E501
"""How many published architectures the frozen prefix splits, which decline and why, and what a replay costs.

    python -m benchmarks.prefix [torchvision] [timm] [transformers]

Each model, with random weights, is cut at three boundaries: the head alone trains; the last stage and
the head; the head and one layer in the middle of the model. A split counts when `cut_prefix` proved it:
outputs, gradients, buffers and the random state are those of the plain pass, bit for bit on a CPU.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import HeadError
from finetune.features.prefix import Prefix, cut_prefix
from finetune.model.freezing import train_mode, train_only
from finetune.model.head_search import find_head
from finetune.model.stages import stages

RESULTS = Path(__file__).parent / "results" / "prefix.md"
SAMPLES = 2
Build = Callable[[], tuple[nn.Module, Any]]


@dataclass(frozen=True)
class Row:
    """One model at one boundary."""

    suite: str
    name: str
    boundary: str
    reason: str  # empty where it was split
    stored: int = 0
    kilobytes: float = 0.0
    share: float = 0.0
    replay_ms: float = 0.0


def torchvision_models() -> Iterator[tuple[str, Build]]:
    """Yield every torchvision classifier, on small pictures."""
    from torchvision import models

    for name in models.list_models(module=models):
        yield name, lambda name=name: _torchvision(name)


def _torchvision(name: str) -> tuple[nn.Module, Tensor]:
    from torchvision import models

    side = {"inception_v3": 128, "googlenet": 64, "maxvit_t": 224, "vgg11": 64}.get(name, 64)
    sized = {"image_size": int(name.rsplit("_", 1)[1]) * 4} if name.startswith("vit") else {}
    quiet = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    model = models.get_model(name, weights=None, **sized, **quiet)
    side = sized.get("image_size", side)
    return model, torch.randn(SAMPLES, 3, side, side)


def timm_models() -> Iterator[tuple[str, Build]]:
    """Yield one small model of each timm family."""
    import timm

    small = (
        "test_",
        "atto",
        "femto",
        "pico",
        "nano",
        "xxs",
        "xx_small",
        "xxtiny",
        "_050",
        "_xs",
        "tiny",
        "_s",
        "small",
    )
    for family in timm.list_modules():
        names = timm.list_models(module=family)
        rank = {word: position for position, word in enumerate(small)}
        if names:
            name = min(names, key=lambda n: (min((rank[w] for w in small if w in n), default=99), len(n), n))
            yield f"{family}: {name}", lambda name=name: _timm(name)


def _timm(name: str) -> tuple[nn.Module, Tensor]:
    import timm

    usual = timm.models.get_pretrained_cfg(name).input_size
    for side in (64, 96, 128, usual[-1]):
        for settings in ({"img_size": side}, {}):
            try:
                model = timm.create_model(name, **settings)
                example = torch.randn(SAMPLES, usual[0], side, side)
                with torch.no_grad():
                    train_mode(model)
                    model(example)
            except Exception:  # it was not made for this size, or takes none
                continue
            return model, example
    raise ValueError("it runs on no size")


def transformers_models() -> Iterator[tuple[str, Build]]:
    """Yield small configurations of Hugging Face models for pictures, text and sound."""
    import transformers as hf

    text = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 99,
    }
    picture = {"image_size": 32, "patch_size": 8, "num_labels": 5}
    deep = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "num_labels": 5}
    encoder = {"d_model": 32, "encoder_layers": 3, "decoder_layers": 3, "encoder_attention_heads": 2,
               "decoder_attention_heads": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 99}  # fmt: skip
    sound = {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2,
             "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16}  # fmt: skip
    slim = {key: value for key, value in text.items() if key != "vocab_size"}
    words = {
        "input_ids": torch.randint(3, 99, (SAMPLES, 12)),
        "attention_mask": torch.ones(SAMPLES, 12, dtype=torch.long),
    }
    words["attention_mask"][1, 8:] = 0
    ended = {"input_ids": words["input_ids"].clone()}
    ended["input_ids"][:, -1] = 2
    pixels = {"pixel_values": torch.randn(SAMPLES, 3, 32, 32)}
    large = {"pixel_values": torch.randn(SAMPLES, 3, 64, 64)}
    waves = {"input_values": torch.randn(SAMPLES, 800)}
    cases: list[tuple[str, dict[str, Any], dict[str, Tensor]]] = [
        ("Bert", text, words),
        ("Roberta", text, words),
        ("Electra", {**text, "embedding_size": 32}, words),
        ("Albert", {**text, "embedding_size": 16}, words),
        ("DebertaV2", text, words),
        ("DistilBert", {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48, "vocab_size": 99}, words),
        ("GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 99, "pad_token_id": 0}, words),
        ("Llama", {**text, "num_key_value_heads": 2, "pad_token_id": 0}, words),
        ("Qwen2", {**text, "num_key_value_heads": 2, "pad_token_id": 0}, words),
        ("ModernBert", {**text, "pad_token_id": 0}, words),
        ("Bart", {**encoder, "eos_token_id": 2}, ended),
        ("T5", {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 3, "num_heads": 2, "vocab_size": 99, "eos_token_id": 2, "decoder_start_token_id": 0}, ended),
        ("ViT", {**slim, **picture}, pixels),
        ("DeiT", {**slim, **picture}, pixels),
        ("Dinov2", {**slim, **picture}, pixels),
        ("Beit", {**slim, **picture}, pixels),
        ("Swin", {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}, pixels),
        ("Swinv2", {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}, pixels),
        ("ConvNext", deep, large),
        ("ConvNextV2", deep, large),
        ("ResNet", {**deep, "embedding_size": 8, "layer_type": "basic"}, large),
        ("RegNet", {**deep, "embedding_size": 8, "groups_width": 8}, large),
        ("MobileNetV2", {"num_labels": 5}, large),
        ("Segformer", {"hidden_sizes": [8, 16, 24, 32], "num_labels": 5}, large),
        ("PoolFormer", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}, large),
        ("LevitForImageClassification", {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2], "key_dim": [8, 8, 8], "depths": [1, 1, 1]}, large),
        ("Wav2Vec2", {**text, **sound}, waves),
        ("Hubert", {**text, **sound}, waves),
        ("WavLM", {**text, **sound}, waves),
        ("ASTForAudioClassification", {**slim, "max_length": 32, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}, {"input_values": torch.randn(SAMPLES, 32, 16)}),
    ]  # fmt: skip
    kinds = ("ForSequenceClassification", "ForImageClassification")
    for name, settings, example in cases:
        base = name.removesuffix("ForImageClassification").removesuffix("ForAudioClassification")
        known = [base + kind for kind in (*kinds, "ForAudioClassification") if hasattr(hf, base + kind)]
        config = getattr(hf, f"{base}Config")
        yield (
            known[0],
            lambda known=known, config=config, settings=settings, example=example: (
                getattr(hf, known[0])(config(**settings)),
                example,
            ),
        )


def trained_at(model: nn.Module, example: Any) -> dict[str, list[str]]:
    """Return the patterns of what trains, by boundary."""
    try:
        head = list(find_head(model, example))
    except HeadError:
        head = [[name for name, _ in model.named_children()][-1]]
    heads = [f"{name}.*" for name in head]
    depth = [
        stage for stage in stages(model, head) if not any(name.startswith(tuple(head)) for name in stage.parameters)
    ]
    layers = [
        name
        for name, module in model.named_modules()
        if name and next(module.parameters(recurse=False), None) is not None and not name.startswith(tuple(head))
    ]
    boundaries = {"head": heads}
    if depth:
        boundaries["last stage"] = [*depth[-1].parameters, *heads]
    if layers:
        boundaries["one layer"] = [f"{layers[len(layers) * 3 // 5]}.*", *heads]
    return boundaries


def measure(suite: str, name: str, build: Build) -> Iterator[Row]:
    """Cut one model at each boundary."""
    try:
        torch.manual_seed(0)
        model, example = build()
        train_mode(model)
        boundaries = trained_at(model, example)
        for patterns in boundaries.values():
            train_only(model, patterns)
    except Exception as error:  # a model that cannot be built or run is no case
        print(f"{suite} {name}: left out, {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
        return
    for boundary, patterns in boundaries.items():
        train_only(model, patterns)
        train_mode(model)
        started = time.perf_counter()
        prefix = cut_prefix(model, example)
        if isinstance(prefix, str):
            row = Row(suite, name, boundary, prefix)
        else:
            cost = replay_ms(prefix, model, example)
            row = Row(suite, name, boundary, "", len(prefix.specs), prefix.bytes_per_sample / 1024, prefix.share, cost)
        print(f"{time.perf_counter() - started:5.1f} s", row, flush=True)
        yield row


def replay_ms(prefix: Prefix, model: nn.Module, example: Any, repeats: int = 5) -> float:
    """Return the milliseconds that a replay takes until it is past the boundary."""
    activations = prefix.compute(example)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        with torch.no_grad(), prefix.serving(example, activations):
            model(**example) if isinstance(example, dict) else model(example)
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def table(rows: list[Row]) -> str:
    """Return the report as Markdown."""
    lines = ["# The frozen prefix", "", (__doc__ or "").split("\n\n")[2].replace("\n", " "), ""]
    lines += [
        "| suite | boundary | models | split | median share of multiply-adds left out |",
        "| --- | --- | --- | --- | --- |",
    ]
    for suite, boundary in dict.fromkeys((row.suite, row.boundary) for row in rows):
        group = [row for row in rows if (row.suite, row.boundary) == (suite, boundary)]
        split = [row.share for row in group if not row.reason]
        share = f"{statistics.median(split):.2f}" if split else "-"
        lines.append(f"| {suite} | {boundary} | {len(group)} | {len(split)} | {share} |")
    lines += ["", "Declined:", "", "| suite | model | boundary | why |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.suite} | {row.name} | {row.boundary} | {row.reason} |" for row in rows if row.reason]
    lines += ["", "Split:", "", "| suite | model | boundary | tensors | KiB a sample | share |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    lines += [
        f"| {row.suite} | {row.name} | {row.boundary} | {row.stored} | {row.kilobytes:.1f} | {row.share:.2f} |"
        for row in rows
        if not row.reason
    ]
    return "\n".join(lines) + "\n"


def main(suites: list[str]) -> None:
    """Measure the suites that are named, or all; write the table."""
    warnings.simplefilter("ignore")
    known = {"torchvision": torchvision_models, "timm": timm_models, "transformers": transformers_models}
    rows: list[Row] = []
    for suite in suites or list(known):
        for name, build in known[suite]():
            rows += measure(suite, name, build)
            gc.collect()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
