"""The content of a checkpoint: its fields, the version of its format, and migrations from older versions.

`finetune.checkpoint.file` stores any nesting of dicts, lists and tensors. Only this module knows the keys
of a checkpoint.

To change the format, change the fields and add a function to `MIGRATIONS` that converts the content of the
current version to the next. The version number follows from the table. Older files are migrated on read, one
version at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune.checkpoint import file
from finetune.checkpoint.forms import check_form
from finetune.display.progress.waits import busy
from finetune.distributed.divided import to_save
from finetune.distributed.world import ALONE, World
from finetune.errors import CheckpointError, reason
from finetune.model.surgery.changes import HeadReplacement, InputAdaptation, LoraAdapters, ModelChange
from finetune.naming.paths import local_path
from finetune.nested import map_tensors

Content = dict[str, Any]


def _with_inputs_and_objects(content: Content) -> Content:
    """Add the fields that version 1 lacks: the kind of training inputs, and the settings that are not in the file.

    Training on images always left a preprocessing, so a trained model without one was trained on ready inputs.
    """
    ready = content["preprocessing"] is None and bool(content["history"])
    return {**content, "inputs": {"origin": "given", "trained_on": "ready" if ready else None}, "objects": {}}


def _with_calibration(content: Content) -> Content:
    """Add the field that version 2 lacks: the calibration, which no model had."""
    return {**content, "calibration": None}


def _with_data(content: Content) -> Content:
    """Add the field that version 3 lacks: the description of the training data."""
    return {**content, "data": None}


MIGRATIONS: dict[int, Callable[[Content], Content]] = {
    1: _with_inputs_and_objects,
    2: _with_calibration,
    3: _with_data,
}
"""Functions that convert the content of one version of the format to the next, by version."""

# Kinds of change by the key that no other kind has, with the form of each.
_CHANGES: dict[str, tuple[Callable[..., ModelChange], dict[Any, Any]]] = {
    "head": (HeadReplacement, {"n": int, "names": [str], "head": (None, str, {"type": str}), ...: [str]}),
    "in_channels": (InputAdaptation, {"in_channels": int}),
    "lora_rank": (LoraAdapters, {"lora_rank": int, "layers": [str]}),
}

_PART = (None, {"samples": (None, int), "per_class": (None, [int])})

# The form of the content, without what other code defines: settings, preprocessing, and the state of a run.
_FORM: dict[Any, Any] = {
    "model": {
        "class": str,
        "source": (None, {"family": str, "name": str}),
        "frozen": [str],
        "weights": {},
        ...: (None, str),
    },
    "heads": (None, [str]),
    "replacements": [{}],
    "classes": (None, [str]),
    "classes_rule": bool,
    "preprocessing": (None, {}),
    "inputs": {"origin": str, "trained_on": (None, str)},
    "settings": {},
    "objects": {...: str},
    "task": (None, str),
    "calibration": (None, {"temperature": float, "thresholds": (None, [float])}),
    "history": [{"epoch": int}],
    "training": (None, {}),
    "data": (None, {"kind": (None, str), "training": _PART, "validation": _PART}),
}


@dataclass(frozen=True, eq=False)
class ModelRecord:
    """A model's origin, weights and freeze state.

    Attributes:
        class_name: Name of the model's class.
        origin: Description from which `catalog.rebuild` builds the model, None for the user's own module.
        frozen: Names of the frozen parameters.
        weights: The state dict, without the base of a PEFT model.
        base: Digest of the parameters left out of `weights`, or None.
    """

    class_name: str
    origin: dict[str, Any] | None
    frozen: tuple[str, ...]
    weights: Mapping[str, Any]
    base: str | None = None


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        model: The model's origin, weights and freeze state.
        heads: Full names of the model's heads, the main head first; None if they have not been searched for.
        changes: Changes made to the model since it was built, in order.
        classes: Class names by output, or None if the outputs have no names.
        classes_from_data: Whether `classes` come from training data rather than from the weights.
        preprocessing: `Preprocessing.to_dict()` or None.
        inputs: Fields of the preprocessing's `Provenance`.
        settings: Keyword arguments of `FineTuner` that a file can hold.
        objects: Those that it cannot hold, such as a loss function, by name, with what they were.
        task: Kind of task, None if not known yet.
        calibration: `Calibration.to_dict()`, or None if the model was not calibrated.
        history: One row per epoch.
        training: `Run.state_dict()`, None in a checkpoint saved outside of `fit`.
        data: Number of samples in the training data, as `described_data` returns it; None if not known.
        path: File that the checkpoint was read from; not part of the content, and neither is the next.
        version: Version of the format of that file.
    """

    model: ModelRecord
    heads: tuple[str, ...] | None
    changes: tuple[ModelChange, ...]
    classes: tuple[str, ...] | None
    classes_from_data: bool
    preprocessing: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    task: str | None
    calibration: Mapping[str, Any] | None
    history: tuple[dict[str, Any], ...]
    inputs: Mapping[str, Any]
    objects: Mapping[str, str]
    training: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None
    path: Path | None = None
    version: int | None = None


def format_version() -> int:
    """Return the current version of the format: one above the newest that has a migration."""
    return 1 + max(MIGRATIONS, default=0)


class NewerFormatError(CheckpointError):
    """A checkpoint was written by a newer version of the package."""


def write(path: str | Path, checkpoint: Checkpoint, *, keep_as: Path | None = None) -> Path:
    """Write a checkpoint and return its path. An existing file stays intact until the new one is complete.

    Args:
        path: File to write.
        checkpoint: Its content.
        keep_as: Name that an existing file is kept under; None to replace it.

    Raises:
        CheckpointError: If the content cannot be stored or the file cannot be written.
    """
    path = local_path(path)
    with busy(f"Saving {path.name}"):
        file.write(path, to_content(checkpoint), version=format_version(), keep_as=keep_as)
    return path


def save(
    path: str | Path, checkpoint: Checkpoint, world: World, *, keep_as: Path | None = None, sharded: bool = False
) -> Path:
    """Write a checkpoint of all processes and return its path. An existing file stays intact until it is complete.

    Args:
        path: File to write.
        checkpoint: Its content.
        world: The processes, which all call this if tensors are divided among them.
        keep_as: Name that an existing file is kept under; None to replace it.
        sharded: Whether each process writes its own part of the divided tensors to a folder beside the file.

    Raises:
        ArgumentError: If `sharded` is set and no tensor is divided among the processes.
        CheckpointError: If the content cannot be stored or a file cannot be written.
    """
    path = local_path(path)
    if sharded:
        with busy(f"Saving {path.name}"):
            file.write_sharded(path, to_content(checkpoint), world, version=format_version(), keep_as=keep_as)
    else:
        together = put_together(checkpoint)
        world.written(path, lambda: write(path, together, keep_as=keep_as))
    return path


def put_together(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with its divided tensors put together, in the memory of the first process."""
    weights, training = map_tensors(to_save, (checkpoint.model.weights, checkpoint.training), None)
    return replace(checkpoint, model=replace(checkpoint.model, weights=weights), training=training)


def read(path: str | Path, world: World = ALONE) -> Checkpoint:
    """Read the checkpoint at `path`, with tensors on the CPU. Older formats are migrated.

    Args:
        path: File to read.
        world: Processes of a run that resumes from it. If these divide the weights, each reads only its own part of a
            sharded training state, and all call this.

    Raises:
        CheckpointError: If the file is missing, damaged, not a checkpoint, or of a newer format.
    """
    path = local_path(path)
    with busy(f"Verifying {path.name}"):
        stored = file.read(path, world, ("training",)) if world.shards else file.read(path)
    with fields_expected(path):
        return replace(from_content(_migrated(path, *stored), path), version=stored.version)


def read_progress(path: Path) -> tuple[int, ...] | None:
    """Read how far the run of a checkpoint had come: its epochs, phase, and updates in the epoch.

    Return None for a checkpoint that no run can resume from. Only the header is read.

    Raises:
        CheckpointError: If the file is missing, not a checkpoint, or of a newer format.
    """
    stored = file.peek(path)
    with fields_expected(path):
        content = _migrated(path, *stored)
        if content["training"] is None:
            return None
        position = content["training"]["position"]
        return len(content["history"]), int(position["phase"]), int(position["window"])


def _migrated(path: Path, version: int, content: Content) -> Content:
    newest = format_version()
    if version > newest:
        raise NewerFormatError(
            f"{path} has format version {version}, but this package reads at most {newest}. Update torch-finetune."
        )
    for number in range(version, newest):
        content = MIGRATIONS[number](content)
    return content


@contextmanager
def fields_expected(path: Path | None) -> Iterator[None]:
    """Convert errors of fields that are missing or have other values than expected to a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # the content may be anything, and so may the error
        raise CheckpointError(
            f"{path} does not have the fields of a checkpoint: {reason(error)}. "
            f"Expected a file written by save_checkpoint or fit(checkpoint_dir=...)."
        ) from error


def to_content(checkpoint: Checkpoint) -> Content:
    """Return a checkpoint as dicts, lists, tensors and plain values."""
    record = checkpoint.model
    return {
        "model": {
            "class": record.class_name,
            "source": record.origin,
            "frozen": record.frozen,
            "weights": record.weights,
            "base": record.base,
        },
        "heads": checkpoint.heads,
        "replacements": [{k: v for k, v in vars(change).items() if v != ()} for change in checkpoint.changes],
        "classes": checkpoint.classes,
        "classes_rule": checkpoint.classes_from_data,
        "preprocessing": checkpoint.preprocessing,
        "inputs": checkpoint.inputs,
        "settings": checkpoint.settings,
        "objects": checkpoint.objects,
        "task": checkpoint.task,
        "calibration": checkpoint.calibration,
        "history": checkpoint.history,
        "training": checkpoint.training,
        "data": checkpoint.data,
    }


def from_content(content: Mapping[str, Any], path: Path | None = None) -> Checkpoint:
    """Return the checkpoint that `to_content` converted to `content`.

    Raises:
        KeyError, TypeError: If a field is missing or of another type, or a change is of an unknown kind.
    """
    check_form(content, _FORM)
    record = content["model"]
    return Checkpoint(
        model=ModelRecord(
            class_name=record["class"],
            origin=record["source"],
            frozen=tuple(record["frozen"]),
            weights=record["weights"],
            base=record.get("base"),  # missing in early files
        ),
        heads=_tuple_or_none(content["heads"]),
        changes=tuple(_change(stored) for stored in content["replacements"]),
        classes=_tuple_or_none(content["classes"]),
        classes_from_data=content["classes_rule"],
        preprocessing=content["preprocessing"],
        inputs=content["inputs"],
        settings=content["settings"],
        objects=content["objects"],
        task=content["task"],
        calibration=content["calibration"],
        history=tuple(content["history"]),
        training=content["training"],
        data=content["data"],
        path=path,
    )


def _change(stored: Mapping[str, Any]) -> ModelChange:
    known = next((known for key, known in _CHANGES.items() if key in stored), None)
    if known is None:
        raise KeyError(f"a change with the keys {', '.join(stored)}")
    kind, form = known
    check_form(stored, form, "a change")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()})


def _tuple_or_none(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)
