"""What a checkpoint says of a model, and a model made from what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from finetune.checkpoint import file
from finetune.data.randomness import seeded
from finetune.errors import ArgumentError, CheckpointError, FineTuneError
from finetune.model import catalog, freezing, heads, layers
from finetune.model.twin import with_same_tensors

# A replacement of the head that only the user's own code can repeat.
_CUSTOM = "custom"

Replacement = dict[str, Any]


def describe_replacement(n: int, names: tuple[str, ...], head: Any, made: nn.Module) -> Replacement:
    """Describe one call of `replace_head`, so that loading can repeat it."""
    if head is None or isinstance(head, str):
        kind: Any = head
    else:
        kind = layers.describe(made) or _CUSTOM
    return {"n": n, "names": list(names), "head": kind}


def describe_model(model: nn.Module, source: Mapping[str, Any] | None) -> dict[str, Any]:
    """Describe a model: where it is from, its weights, and what of it is frozen."""
    state = model.state_dict()
    return {
        "class": type(model).__name__,
        "source": source,
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "weights": state,
    }


def rebuild(path: Path, content: Mapping[str, Any]) -> nn.Module:
    """Build the model of a checkpoint by its name, with the head it was given; no network is used.

    Raises:
        CheckpointError: the model has no name, or its head was of the user's own making.
    """
    described = content["model"]
    if described["source"] is None:
        raise CheckpointError(
            f"{path} holds a {described['class']} of your own, which cannot be built from its name. Build it and "
            f"pass it as model=."
        )
    with seeded("checkpoint"):
        model = catalog.rebuild(described["source"])
        for replacement in content["replacements"]:
            repeat(path, model, replacement)
    return model


def repeat(path: Path, model: nn.Module, replacement: Mapping[str, Any]) -> None:
    """Replace the head as it was replaced before.

    Raises:
        CheckpointError: the head was of the user's own making, or the model has no place for it.
    """
    head = replacement["head"]
    if head == _CUSTOM:
        raise CheckpointError(
            f"The head in {path} was a module of your own, which cannot be built from its name. Build the model, "
            f"replace its head in the same way, and pass it as model=."
        )
    made = layers.build(head) if isinstance(head, Mapping) else head
    try:
        heads.replace_head(model, replacement["n"], tuple(replacement["names"]), made, verify=False)
    except (FineTuneError, AttributeError) as error:
        raise _other_model(path, model, str(error)) from error


def load_into(path: Path, model: nn.Module, content: Mapping[str, Any]) -> None:
    """Load a checkpoint's weights and freeze state into `model`, all of them or none.

    A model of the user's own that still has its first head gets the checkpoint's first.

    Raises:
        CheckpointError: the weights do not fit the model, which is as before.
    """
    with seeded("checkpoint"):
        for replacement in to_repeat(path, model, content):
            repeat(path, model, replacement)
    model.load_state_dict(content["model"]["weights"])
    freezing.set_frozen(model, content["model"]["frozen"])


def to_repeat(path: Path, model: nn.Module, content: Mapping[str, Any]) -> list[Replacement]:
    """Return the replacements that `model` lacks for a checkpoint's weights to fit; it is not changed.

    Raises:
        CheckpointError: the weights do not fit the model, whichever head it has.
    """
    weights = content["model"]["weights"]
    misfits = _misfits(model, weights)
    if not misfits:
        return []
    replacements = [replacement for replacement in content["replacements"] if replacement["head"] != _CUSTOM]
    if replacements:
        trial = with_same_tensors(model)
        with seeded("checkpoint"):
            for replacement in replacements:
                repeat(path, trial, replacement)
        misfits = _misfits(trial, weights)
    if misfits:
        raise _other_model(path, model, f"{len(misfits)} of its weights do not match, the first {misfits[0]}")
    return replacements


def saved_run(
    resume_from: str | Path | None, checkpoint_dir: str | Path | None
) -> tuple[Path, dict[str, Any]] | None:
    """Read the checkpoint that a run is to go on from; None to start anew.

    Args:
        resume_from: a file, a folder with the newest whole one in it, or `"auto"` for that of
            `checkpoint_dir` if there is one.

    Raises:
        CheckpointError: there is none, it is damaged, or it holds no training state.
        ArgumentError: `"auto"` without a `checkpoint_dir`.
    """
    if resume_from is None:
        return None
    if resume_from == "auto":
        if checkpoint_dir is None:
            raise ArgumentError("resume_from='auto' looks in checkpoint_dir; give fit a checkpoint_dir too.")
        if not any(Path(checkpoint_dir).glob("*.safetensors")):
            return None
        resume_from = checkpoint_dir
    path = Path(resume_from)
    if path.is_dir():
        return _newest(path)
    content = file.read(path)
    if content["training"] is None:
        raise CheckpointError(
            f"{path} was saved for use and holds no training state. To go on from its weights, load it with "
            f"load_checkpoint and call fit; to resume a run, give its last.safetensors."
        )
    return path, content


def _newest(folder: Path) -> tuple[Path, dict[str, Any]]:
    files = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in files:
        try:
            content = file.read(path)
        except CheckpointError:
            continue  # damaged; an older one may be whole
        if content["training"] is not None:
            return path, content
    raise CheckpointError(
        f"There is no whole checkpoint to resume from in {folder}; looked at {len(files)} files. Expected "
        f"last.safetensors, as fit(checkpoint_dir=...) writes it."
    )


def _misfits(model: nn.Module, weights: Mapping[str, Any]) -> list[str]:
    own = model.state_dict()
    return sorted(
        list(own.keys() ^ weights.keys())
        + [name for name in own.keys() & weights.keys() if _shape(own[name]) != _shape(weights[name])]
    )


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)  # a module's extra state may be no tensor


def _other_model(path: Path, model: nn.Module, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} does not belong to this {type(model).__name__}: {why}. Build the model as it was when the "
        f"checkpoint was saved."
    )
