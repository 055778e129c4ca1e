"""Find the checkpoint that a run resumes from."""

from __future__ import annotations

from pathlib import Path

from finetune.checkpoint import schema
from finetune.checkpoint.schema import Checkpoint
from finetune.errors import ArgumentError, CheckpointError
from finetune.naming.paths import local_path


def find_run(resume_from: str | Path | None, checkpoint_dir: str | Path | None) -> Checkpoint | None:
    """Read the checkpoint that a run resumes from. Return None to start from the beginning.

    Args:
        resume_from: A file; a folder, for the newest intact checkpoint in it; or `"auto"` for
            `checkpoint_dir` if it has a checkpoint.
        checkpoint_dir: Folder that the run saves to.

    Raises:
        CheckpointError: If there is no checkpoint, it is damaged, or it has no training state.
        ArgumentError: If `resume_from` is `"auto"` and there is no `checkpoint_dir`.
    """
    if resume_from is None:
        return None
    if resume_from == "auto":
        if checkpoint_dir is None:
            raise ArgumentError("resume_from='auto' needs a checkpoint_dir. Pass fit the folder of the checkpoints.")
        if not any(local_path(checkpoint_dir).glob("*.safetensors")):
            return None
        resume_from = checkpoint_dir
    path = local_path(resume_from)
    if path.is_dir():
        return _newest(path)
    checkpoint = schema.read(path)
    if checkpoint.training is None:
        raise CheckpointError(
            f"{path} has no training state, so no run can resume from it. To continue from its weights, load it with "
            f"load_checkpoint and call fit; to resume a run, pass its last.safetensors."
        )
    return checkpoint


def _newest(folder: Path) -> Checkpoint:
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in files:
        try:
            checkpoint = schema.read(path)
        except CheckpointError:
            continue  # damaged; an older one may be intact
        if checkpoint.training is not None:
            return checkpoint
    raise CheckpointError(
        f"None of the {len(files)} checkpoints in {folder} is an intact one to resume from. Expected a "
        f"last.safetensors, as written by fit(checkpoint_dir=...)."
    )
