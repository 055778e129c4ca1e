"""Tokenizers and feature extractors of Hugging Face as the files they are saved in, and back."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from finetune.errors import ArgumentError, CheckpointError

Files = Mapping[str, bytes]


def files_of(pretrained: Any) -> Files:
    """Return what `pretrained.save_pretrained` writes, by path inside its folder."""
    with tempfile.TemporaryDirectory() as folder:
        pretrained.save_pretrained(folder)
        written = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in written}


def rebuild(auto_class: str, files: Files) -> Any:
    """Make the object again that `files_of` was given, with no network and no code but transformers' own.

    Args:
        auto_class: the class of transformers that reads such files, as `"AutoTokenizer"`.

    Raises:
        ArgumentError: transformers is not installed.
        CheckpointError: the files cannot be read.
    """
    try:
        import transformers
    except ImportError as error:
        raise ArgumentError("Text and audio need transformers: pip install torch-finetune[hf].") from error
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, _inside(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            reader = getattr(transformers, auto_class)
            return reader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # the readers of a hundred formats raise as many types
            raise CheckpointError(
                f"transformers {transformers.__version__} cannot read the files {', '.join(files)}: {error}. "
                "Give FineTuner the tokenizer or feature extractor itself as preprocessing=."
            ) from error


def as_tensors(files: Files) -> dict[str, torch.Tensor]:
    """Return the files as bytes of a checkpoint: uint8 tensors."""
    return {name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in files.items()}


def from_tensors(tensors: Mapping[str, torch.Tensor]) -> Files:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def _inside(name: str) -> PurePosixPath:
    """Refuse a name that would leave the folder: a checkpoint may come from anywhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise CheckpointError(f"The checkpoint holds a file {name!r}, which would be written outside its folder.")
    return path
