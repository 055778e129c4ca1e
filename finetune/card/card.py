"""`model_card`: the README of a checkpoint, with the metadata that the Hugging Face hub reads."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from typing import Any

from finetune.card.markdown import escaped, front_matter, table
from finetune.checkpoint.schema import Checkpoint
from finetune.data.preprocessing.base import IMAGE, SOUND, TEXT
from finetune.display.numbers import fixed
from finetune.errors import is_number
from finetune.model.families import FAMILIES
from finetune.training.history import BOOKKEEPING, row_of_weights

_PACKAGES = ("torch-finetune", "torch", "torchvision", "timm", "transformers")
_WORDS = {IMAGE: "image", TEXT: "text", SOUND: "audio"}
_LISTED = 50  # classes; more are folded
_LONGEST = 100  # characters of a value of the preprocessing


def model_card(checkpoint: Checkpoint, file: str, repo: str | None = None) -> str:
    """Return the card of a checkpoint as Markdown, with YAML in front.

    Args:
        checkpoint: Content of the checkpoint.
        file: Name of its file.
        repo: Repository of the hub that holds the file; None for a file beside the card.
    """
    name = (repo or file).rpartition("/")[2].removesuffix(".safetensors")
    parts = [
        front_matter(_metadata(checkpoint, name)),
        marker(file),
        f"# {escaped(name)}",
        _summary(checkpoint),
        f"## Use\n\n```bash\npip install torch-finetune\n```\n\n```python\n{_code(checkpoint, file, repo)}\n```",
        *(f"## {title}\n\n{text}" for title, text in _sections(checkpoint) if text),
    ]
    return "\n\n".join(parts) + "\n"


def marker(file: str) -> str:
    """Return the line by which a card is known as that of a file, and as written by this package."""
    return f"<!-- Written by finetune for {escaped(file)}. Delete this line to keep changes. -->"


def _sections(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    yield "Results", _results(checkpoint)
    yield "Data", _data(checkpoint)
    yield "Classes", _classes(checkpoint)
    yield "Preprocessing", _preprocessing(checkpoint)
    yield "Training", _training(checkpoint)
    yield "License", _license(checkpoint)
    yield "Environment", table(["package", "version"], [("python", platform.python_version()), *_versions()])


def _metadata(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    origin, kind = checkpoint.model.origin, (checkpoint.preprocessing or {}).get("kind")
    word = _WORDS.get(str(kind))
    family = FAMILIES.get((origin or {}).get("family", ""))
    license_id, page = (family.license(origin), family.page(origin)) if family and origin else (None, None)
    classifies = checkpoint.task is not None and checkpoint.task != "regression"
    pipeline = f"{word}-classification" if word and classifies else None
    given = {
        "library_name": "torch-finetune",
        "pipeline_tag": pipeline,
        "license": license_id,
        "base_model": page,
        "tags": [tag for tag in ("torch-finetune", (origin or {}).get("family"), checkpoint.task) if tag],
        "model-index": _model_index(checkpoint, name, pipeline or checkpoint.task or "other"),
    }
    return {key: value for key, value in given.items() if value}


def _model_index(checkpoint: Checkpoint, name: str, task: str) -> list[dict[str, Any]]:
    values = {key: value for key, value in _values(checkpoint).items() if key.startswith("val_")}
    metrics = [{"type": key.removeprefix("val_"), "value": value, "name": key} for key, value in values.items()]
    data = {"name": "validation data", "type": "validation"}
    return (
        [{"name": name, "results": [{"task": {"type": task}, "dataset": data, "metrics": metrics}]}] if metrics else []
    )


def _values(checkpoint: Checkpoint) -> dict[str, float]:
    """Return the values of the epoch whose weights the checkpoint holds."""
    return {
        key: float(value)
        for key, value in row_of_weights(checkpoint.history).items()
        if key not in BOOKKEEPING and is_number(value) and math.isfinite(value)
    }


def _summary(checkpoint: Checkpoint) -> str:
    origin, task, classes = checkpoint.model.origin, checkpoint.task, checkpoint.classes
    base = f"{escaped(origin.get('name'))} ({escaped(origin.get('family'))})" if origin else checkpoint.model.class_name
    purpose = f" for {task}" if task else ""
    return f"{base}, fine-tuned{purpose}{f' with {len(classes)} classes' if classes else ''} by torch-finetune."


def _code(checkpoint: Checkpoint, file: str, repo: str | None) -> str:
    own = checkpoint.model.origin is None
    lines = ["from finetune import FineTuner"]
    lines += ["from huggingface_hub import hf_hub_download"] if repo else []
    path = f"hf_hub_download({json.dumps(repo)}, {json.dumps(file)})" if repo else json.dumps(file)
    if own:
        lines += ["", f"model = ...  # your {checkpoint.model.class_name}: a module of the same layers"]
    lines += ["", f"tuner = FineTuner.load_checkpoint({path}{', model' if own else ''})"]
    kind = (checkpoint.preprocessing or {}).get("kind")
    inputs = {IMAGE: '"picture.jpg"', TEXT: '["a text"]', SOUND: '"sound.wav"'}.get(str(kind), "inputs")
    verb = "predict" if checkpoint.task in (None, "regression") else "classify"
    return "\n".join([*lines, f"print(tuner.{verb}({inputs}))"])


def _results(checkpoint: Checkpoint) -> str:
    values = _values(checkpoint)
    names = dict.fromkeys(key.removeprefix("val_") for key in values)
    rows = [(name, *(_shown(values.get(f"{part}{name}")) for part in ("", "val_"))) for name in names]
    epochs, held = len(checkpoint.history), row_of_weights(checkpoint.history).get("epoch")
    after = f"After {epochs} epoch{'s' * (epochs != 1)}"
    after = after if held == epochs else f"After epoch {held} of {epochs}, the best one"
    text = f"{after}; the training values are averages over {'the last one' if held == epochs else 'that epoch'}."
    return f"{text}\n\n{table(['value', 'training', 'validation'], rows)}" if rows else ""


def _shown(value: float | None) -> str:
    return "" if value is None else fixed(value)


def _data(checkpoint: Checkpoint) -> str:
    if checkpoint.data is None:
        return "Not recorded."
    parts = [(name, checkpoint.data[name]) for name in ("training", "validation") if checkpoint.data[name]]
    rows = [(name, "a stream" if part["samples"] is None else f"{part['samples']:,}") for name, part in parts]
    return table(["part", "samples"], rows)


def _classes(checkpoint: Checkpoint) -> str:
    if checkpoint.classes is None:
        return ""
    data = checkpoint.data or {}
    counts = (data.get("training") or {}).get("per_class") or []
    known = len(counts) == len(checkpoint.classes)
    head = ["output", "class", *(["training samples"] if known else [])]
    listed = table(
        head, [(i, name, *([f"{counts[i]:,}"] if known else [])) for i, name in enumerate(checkpoint.classes)]
    )
    number = len(checkpoint.classes)
    return listed if number <= _LISTED else f"<details><summary>{number} classes</summary>\n\n{listed}\n\n</details>"


def _preprocessing(checkpoint: Checkpoint) -> str:
    if checkpoint.preprocessing is None:
        return "None: the model takes inputs as they are."
    plain = {key: value for key, value in checkpoint.preprocessing.items() if len(str(value)) <= _LONGEST}
    text = "The checkpoint holds it, and `load_checkpoint` applies it."
    return f"{text}\n\n{table(['setting', 'value'], plain.items())}"


def _training(checkpoint: Checkpoint) -> str:
    phases: dict[str, int] = {}
    for row in checkpoint.history:
        phases[row["phase"]] = phases.get(row["phase"], 0) + 1
    settings = {**checkpoint.settings, **checkpoint.objects}
    used = [(name, value) for name, value in settings.items() if value is not None]
    rows = [*((f"epochs of {name}", count) for name, count in phases.items()), *used]
    return table(["setting", "value"], rows)


def _license(checkpoint: Checkpoint) -> str:
    origin = checkpoint.model.origin
    if origin is None:
        return "The architecture is the author's own; state the license of this model here."
    family, name = FAMILIES.get(str(origin.get("family"))), escaped(origin.get("name"))
    known = None if family is None else family.license(origin)
    if known is None:
        return f"The license of the base model {name} is not known here; look it up where its weights are published."
    return f"The base model {name} is published under {escaped(known)}. Its training data may add terms."


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)
