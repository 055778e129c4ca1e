"""What a checkpoint says of a model, and a model made from what it says."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.checkpoint import file
from finetune.data.randomness import seeded
from finetune.errors import ArgumentError, CheckpointError, FineTuneError
from finetune.model import catalog, freezing
from finetune.model.surgery import heads, input_channels, layer_specs, peft
from finetune.model.surgery.structure_copy import with_same_tensors
from finetune.model.weights import load_state

# A replacement of the head that only the user's own code can repeat.
_CUSTOM = "custom"

Replacement = dict[str, Any]


def describe_replacement(n: int, names: tuple[str, ...], head: Any, made: nn.Module) -> Replacement:
    """Describe one call of `replace_head`, so that loading can repeat it."""
    if head is None or isinstance(head, str):
        kind: Any = head
    else:
        kind = layer_specs.describe(made) or _CUSTOM
    return {"n": n, "names": list(names), "head": kind}


def describe_model(
    model: nn.Module, source: Mapping[str, Any] | None, scope: Collection[str] | None = None
) -> dict[str, Any]:
    """Describe a model: where it is from, its weights, and what of it is frozen.

    With `scope`, of the parameters those of these names and those that train are kept; of the rest, the base,
    there is a digest.
    """
    state = model.state_dict()
    base = {} if scope is None else _base(model, scope)
    return {
        "class": type(model).__name__,
        "source": source,
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "weights": {name: value for name, value in state.items() if name not in base},
        "base": _digest(base) if base else None,
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
    """Replace the head, adapt the input, or add adapters, as it was done before.

    Raises:
        CheckpointError: the head was of the user's own making, or the model has no place for it.
    """
    if "in_channels" in replacement:
        try:
            input_channels.adapt_input(model, replacement["in_channels"])
        except ArgumentError as error:
            raise _other_model(path, model, str(error)) from error
        return
    if "lora_rank" in replacement:
        peft.add_lora(model, replacement["layers"], replacement["lora_rank"])
        return
    head = replacement["head"]
    if head == _CUSTOM:
        raise CheckpointError(
            f"The head in {path} was a module of your own, which cannot be built from its name. Build the model, "
            f"replace its head in the same way, and pass it as model=."
        )
    made = layer_specs.build(head) if isinstance(head, Mapping) else head
    try:
        heads.replace_head(model, replacement["n"], tuple(replacement["names"]), made, verify=False)
    except (FineTuneError, AttributeError) as error:
        raise _other_model(path, model, str(error)) from error


def load_into(path: Path, model: nn.Module, content: Mapping[str, Any]) -> None:
    """Load a checkpoint's weights and freeze state into `model`, all of them or none.

    A model of the user's own that still has its first head gets the checkpoint's first, and one that
    still reads as many channels as at first is adapted.

    Raises:
        CheckpointError: the weights do not fit the model, which is as before.
    """
    with seeded("checkpoint"):
        for replacement in to_repeat(path, model, content):
            repeat(path, model, replacement)
    load_state(model, content["model"]["weights"], strict=content["model"].get("base") is None)
    freezing.set_frozen(model, content["model"]["frozen"])


def to_repeat(path: Path, model: nn.Module, content: Mapping[str, Any]) -> list[Replacement]:
    """Return the replacements that `model` lacks for a checkpoint's weights to fit; it is not changed.

    Raises:
        CheckpointError: the weights do not fit the model, whichever head it has.
    """
    misfits = _misfits(model, content)
    if not misfits:
        return [change for change in content["replacements"] if "in_channels" in change]  # weights may not tell
    replacements = [replacement for replacement in content["replacements"] if replacement.get("head") != _CUSTOM]
    if replacements:
        trial = with_same_tensors(model)
        with seeded("checkpoint"):
            for replacement in replacements:
                repeat(path, trial, replacement)
        misfits = _misfits(trial, content)
    if misfits:
        raise _other_model(path, model, f"{len(misfits)} of its weights do not match, the first {misfits[0]}")
    return replacements


def starting_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """Read the weights of a checkpoint for a phase to start from.

    Raises:
        CheckpointError: it is damaged, or its weights do not fit the model as that is.
    """
    content = file.read(path)
    misfits = _misfits(model, content)
    if misfits:
        raise _other_model(path, model, f"{len(misfits)} of its weights do not match, the first {misfits[0]}")
    weights: dict[str, Tensor] = content["model"]["weights"]
    return weights


def saved_run(resume_from: str | Path | None, checkpoint_dir: str | Path | None) -> tuple[Path, dict[str, Any]] | None:
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


def _misfits(model: nn.Module, content: Mapping[str, Any]) -> list[str]:
    """Return the names of weights that one of checkpoint and model lacks, or has in another shape or value."""
    own, weights = model.state_dict(), content["model"]["weights"]
    wrong = sorted(
        list(weights.keys() - own.keys())
        + [name for name in own.keys() & weights.keys() if _shape(own[name]) != _shape(weights[name])]
    )
    rest = {name: own[name] for name in own.keys() - weights.keys()}
    base = content["model"].get("base")
    if not rest or (base is not None and _digest(rest) == base):
        return wrong
    return wrong + [f"{name} of the base, to judge by its digest" if base else name for name in sorted(rest)]


def _base(model: nn.Module, scope: Collection[str]) -> dict[str, Tensor]:
    """Return the parameters that neither train nor are in `scope`, tied ones under each of their names."""
    kept = {id(p) for name, p in model.named_parameters() if p.requires_grad or name in scope}
    return {name: p for name, p in model.named_parameters(remove_duplicate=False) if id(p) not in kept}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {list(values.shape)} ".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)  # a module's extra state may be no tensor


def _other_model(path: Path, model: nn.Module, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} does not belong to this {type(model).__name__}: {why}. Build the model as it was when the "
        f"checkpoint was saved."
    )
