"""Verify a checkpoint: read every byte of it, and say what it holds."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from finetune.checkpoint import file, schema
from finetune.checkpoint.schema import Checkpoint
from finetune.display.numbers import fixed
from finetune.errors import some_of
from finetune.naming.paths import local_path


def verify(path: str | Path) -> dict[str, str]:
    """Return what a checkpoint holds, by name, after reading all of it. No model is built.

    Args:
        path: File written by `save_checkpoint` or `fit(checkpoint_dir=...)`.

    Raises:
        CheckpointError: If the file is missing, damaged, not a checkpoint, or of a newer format.

    Example:
        >>> from finetune import FineTuner
        >>> from torch import nn
        >>> path = FineTuner(nn.Linear(4, 3), device="cpu").save_checkpoint("model.safetensors")
        >>> verify(path)["model"]
        'Linear, built by your code, 15 values in 2 tensors'
    """
    path = local_path(path)
    checkpoint = schema.read(path)
    with schema.fields_expected(path):
        return _described(path, checkpoint)


def _described(path: Path, checkpoint: Checkpoint) -> dict[str, str]:
    record, classes = checkpoint.model, checkpoint.classes
    tensors = [value for value in record.weights.values() if isinstance(value, Tensor)]
    origin = "built by your code" if record.origin is None else f"{record.origin['family']} {record.origin['name']}"
    values = f"{sum(tensor.numel() for tensor in tensors):,} values in {len(tensors)} tensors"
    last = {key: value for key, value in (checkpoint.history or ({},))[-1].items() if isinstance(value, float)}
    found = {
        "file": f"whole, {path.stat().st_size:,} bytes, format version {checkpoint.version}",
        "model": f"{record.class_name}, {origin}, {values}" + (", without its base" if record.base else ""),
        "head": ", ".join(checkpoint.heads or ("not searched for",)),
        "classes": f"{len(classes)}: {', '.join(classes)}" if classes else "none",
        "task": checkpoint.task or "none yet",
        "frozen": f"{len(record.frozen)} parameters",
        "epochs": f"{len(checkpoint.history)}",
        "training state": "none, so no run can resume from it",
    }
    is_nan = [k for k, v in record.weights.items() if isinstance(v, Tensor) and bool(v.float().isnan().any())]
    if is_nan:
        found["NaN in"] = some_of(is_nan, 5)
    if shards := file.shards_of(path):
        found["shards"] = f"whole, {sum(1 for _ in shards.iterdir())} files in {shards.name}"
    if last:
        found["epochs"] += f", the last with {', '.join(f'{k} {fixed(v)}' for k, v in last.items() if 'loss' in k)}"
    if checkpoint.training is not None:
        position = checkpoint.training["position"]
        found["training state"] = f"phase {position['phase'] + 1}, update {position['window']} of the epoch"
        found["callbacks"] = ", ".join(name.split(".")[0] for name in checkpoint.training["callbacks"]) or "none"
    return found
