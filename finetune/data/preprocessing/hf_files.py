"""Save and load Hugging Face tokenizers and feature extractors as files inside a checkpoint."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from finetune.errors import ArgumentError, CheckpointError

# The content of each file by its path relative to the saved folder.
PretrainedFiles = Mapping[str, bytes]


def saved_files(pretrained: Any) -> PretrainedFiles:
    """Return the files that `pretrained.save_pretrained` writes."""
    with tempfile.TemporaryDirectory() as folder:
        pretrained.save_pretrained(folder)
        written = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in written}


def class_in(files: PretrainedFiles, key: str) -> str:
    """Return the name of a class that the files state under `key`, or how many files there are.

    Example:
        >>> class_in({"tokenizer_config.json": b'{"tokenizer_class": "BertTokenizer"}'}, "tokenizer_class")
        'BertTokenizer'
    """
    for name, content in files.items():
        if name.endswith("_config.json"):
            with suppress(ValueError, AttributeError):
                if stated := json.loads(content).get(key):
                    return str(stated)
    return f"{len(files)} files"


def load_pretrained(auto_class: str, files: PretrainedFiles) -> Any:
    """Load a tokenizer or feature extractor from its files, without network access or remote code.

    Args:
        auto_class: Name of the transformers class that reads such files, for example "AutoTokenizer".
        files: Files, as returned by `saved_files`.

    Raises:
        ArgumentError: If transformers is not installed.
        CheckpointError: If the files cannot be read.
    """
    try:
        import transformers
    except ImportError as error:
        raise ArgumentError("Text and audio need transformers: pip install 'torch-finetune[hf]'.") from error
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, _safe_path(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            reader = getattr(transformers, auto_class)
            return reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # each of a hundred formats raises its own type
            raise CheckpointError(
                f"transformers {transformers.__version__} cannot read the files {', '.join(files)}: {error}. "
                "Pass the tokenizer or feature extractor to FineTuner as preprocessing=."
            ) from error


def files_to_tensors(files: PretrainedFiles) -> dict[str, torch.Tensor]:
    """Return the content of each file as a uint8 tensor, for a checkpoint."""
    return {name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in files.items()}


def files_from_tensors(tensors: Mapping[str, torch.Tensor]) -> PretrainedFiles:
    """Return the files that `files_to_tensors` converted."""
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def _safe_path(name: str) -> PurePosixPath:
    """Return a file name as a path. Reject names that leave the folder, because checkpoints may be hostile."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise CheckpointError(f"The checkpoint contains a file {name!r}, which would be written outside its folder.")
    return path
