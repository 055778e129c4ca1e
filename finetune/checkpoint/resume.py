"""Find the checkpoint that a run resumes from."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from finetune.checkpoint import schema
from finetune.checkpoint.schema import Checkpoint
from finetune.distributed.world import ALONE, World
from finetune.errors import ArgumentError, CheckpointError
from finetune.naming.paths import local_path

log = logging.getLogger("finetune")

LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"
NUMBERED = "epoch-*.safetensors"


def find_run(
    resume_from: str | Path | None, checkpoint_dir: str | Path | None, world: World = ALONE
) -> Checkpoint | None:
    """Read the checkpoint that a run resumes from. Return None to start from the beginning.

    Args:
        resume_from: A file; a folder, for the intact checkpoint in it with the most progress; or `"auto"` for
            `checkpoint_dir` if a run has been saved there.
        checkpoint_dir: Folder that the run saves to.
        world: Processes of the run, which all call this.

    Raises:
        CheckpointError: If there is no checkpoint, none is intact, one is of a newer format, or the file has no
            training state.
        ArgumentError: If `resume_from` is `"auto"` and there is no `checkpoint_dir`.
    """
    if resume_from is None:
        return None
    if resume_from == "auto":
        if checkpoint_dir is None:
            raise ArgumentError("resume_from='auto' needs a checkpoint_dir. Pass fit the folder of the checkpoints.")
        return _furthest(local_path(checkpoint_dir), world)
    path = local_path(resume_from)
    if os.path.isdir(path):
        found = _furthest(path, world)
        if found is None:
            raise CheckpointError(
                f"No checkpoint in {path} is of a run to resume. Expected a {LAST}, as written by "
                "fit(checkpoint_dir=...)."
            )
        return found
    checkpoint = schema.read(path, world)
    if checkpoint.training is None:
        raise CheckpointError(
            f"{path} has no training state, so no run can resume from it. To continue from its weights, load it with "
            f"load_checkpoint and call fit; to resume a run, pass its {LAST}."
        )
    return checkpoint


def _furthest(folder: Path, world: World) -> Checkpoint | None:
    """Return the intact checkpoint of a run with the most progress, or None if no run was saved to the folder.

    Raises:
        CheckpointError: If there are checkpoints of a run and none is intact, or one is of a newer format.
    """
    progress: dict[Path, tuple[int, ...]] = {}
    damaged: list[str] = []
    for path in sorted(folder.glob("*.safetensors"), key=lambda path: path.name != LAST):
        try:
            reached = schema.read_progress(path)
        except schema.NewerFormatError:
            raise
        except CheckpointError as error:
            if _is_own(path):
                damaged.append(str(error))
            continue  # or it is somebody else's file
        if reached is not None:
            progress[path] = reached
    for path in sorted(progress, key=progress.__getitem__, reverse=True):
        try:
            found = schema.read(path, world)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if damaged:
            log.warning("%s The run resumes from %s, after %d epochs.", " ".join(damaged), path, len(found.history))
        return found
    if damaged:
        raise CheckpointError(
            f"No checkpoint in {folder} is intact. {' '.join(damaged)} To start anew, delete these files, or omit "
            "resume_from."
        )
    return None


def check_not_newer(folder: Path) -> None:
    """Check that no file of a run in a folder is of a newer format, before another run takes its place.

    Raises:
        CheckpointError: If one is.
    """
    for path in folder.glob("*.safetensors"):
        if not (_is_own(path) or path.name == BEST):
            continue
        try:
            schema.read_progress(path)
        except schema.NewerFormatError:
            raise
        except CheckpointError:
            continue  # damaged, or somebody else's


def _is_own(path: Path) -> bool:
    """Return whether a file has a name that runs save to."""
    return path.name in (LAST, PREVIOUS) or path.match(NUMBERED)
