"""`write_card`: a card beside its checkpoint, which replaces no file of the user's."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from finetune.card.card import marker, model_card
from finetune.checkpoint import schema
from finetune.checkpoint.schema import Checkpoint
from finetune.errors import CheckpointError
from finetune.files.durable import written

_HEAD = 2**16  # characters within which the marker stands


def write_card(path: Path, checkpoint: Checkpoint) -> Path:
    """Write the card of the checkpoint at `path` as `README.md` beside it, and return its path.

    If a README is there that is not the card of this file, the card is written as `FILE.md`, such as
    `dogs.safetensors.md`.

    Raises:
        CheckpointError: If the card cannot be written, or both files are the user's own. The checkpoint is whole.
    """
    text = model_card(checkpoint, path.name)
    try:
        card = card_path(path)
        with written(card) as file:
            file.write(text.encode())
    except OSError as error:
        raise CheckpointError(f"The card of {path} cannot be written: {error}. {path} is whole.") from error
    except CheckpointError as error:
        raise CheckpointError(f"{error} {path} is whole.") from error
    return card


def card_path(path: Path) -> Path:
    """Return the path of the card of the checkpoint at `path`: `README.md` or `FILE.md` beside it.

    Raises:
        CheckpointError: If both files are the user's own.
        OSError: If one cannot be read.
    """
    for card in (path.with_name("README.md"), path.with_name(f"{path.name}.md")):
        if not card.exists() or _is_ours(card, path.name):
            return card
    raise CheckpointError(
        f"{path} can have no card, because README.md and {path.name}.md beside it were not written by finetune. Rename "
        f"one of them, or pass card=False."
    )


def pushed_files(folder: Path, checkpoint: Checkpoint, repo: str) -> dict[str, Path]:
    """Write a checkpoint and its card for a repository of the hub to an empty folder. Return both files by name."""
    path = schema.write(folder / "model.safetensors", checkpoint)
    card = folder / "README.md"
    card.write_text(model_card(checkpoint, path.name, repo), encoding="utf-8")
    return {card.name: card, path.name: path}


def _is_ours(card: Path, file: str) -> bool:
    with suppress(UnicodeDecodeError), card.open(encoding="utf-8") as opened:
        return marker(file) in opened.read(_HEAD)
    return False
