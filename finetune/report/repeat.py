"""The code and the command that write a report again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from finetune.report.blocks import Block, Code, Note, Section

_UNKNOWN = "model.safetensors"


def repeat_section(
    kind: type, *, file: Path | None, named: bool, path: Path, data: Any, train: Any, batch_size: int
) -> Section:
    """Return the section with the code to repeat the report.

    Args:
        kind: Class of the tuner.
        file: Checkpoint that holds the model, or None if there is none.
        named: Whether the model is built by its name, so that a checkpoint is enough.
        path: File of the report.
        data: Data of the report.
        train: Training data, or None.
        batch_size: Samples per batch.
    """
    given = {"data": data, **({} if train is None else {"train": train})}
    blocks: list[Block] = []
    if file is None:
        blocks.append(Note(f'No checkpoint holds this model. Save it first: tuner.save_checkpoint("{_UNKNOWN}").'))
    lines = [f"from {kind.__module__ if kind.__name__ != 'FineTuner' else 'finetune'} import {kind.__name__}", ""]
    model = "" if named else ", model"
    notes = [] if named else ["# model: the module, built as for training"]
    notes += [f"# {name}: {_described(value)}" for name, value in given.items() if not _is_path(value)]
    size = "" if batch_size == 32 else f", batch_size={batch_size}"
    trained = "" if train is None else f", train={_expression('train', train)}"
    lines += [*notes, f"tuner = {kind.__name__}.load_checkpoint({_quoted(file or _UNKNOWN)}{model})"]
    lines += [f"tuner.report({_quoted(path)}, {_expression('data', data)}{trained}{size})"]
    blocks.append(Code("Python", "\n".join(lines)))
    if named and kind.__name__ == "FineTuner" and all(map(_is_path, given.values())):
        blocks.append(Code("Command line", shlex.join(_command(file or Path(_UNKNOWN), path, data, train, batch_size))))
    return Section("repeat", "Repeat this report", blocks)


def _command(file: Path, path: Path, data: Any, train: Any, batch_size: int) -> Iterator[str]:
    yield from ("finetune", "report", str(file), fspath(data), "--out", str(path))
    if train is not None:
        yield from ("--train", fspath(train))
    if batch_size != 32:
        yield from ("--batch-size", str(batch_size))


def _expression(name: str, data: Any) -> str:
    return _quoted(data) if _is_path(data) else name


def _quoted(path: Any) -> str:
    text = fspath(path)
    return f'"{text}"' if not {*text} & {*'"\\'} and text.isprintable() else repr(text)


def _is_path(data: Any) -> bool:
    return isinstance(data, (str, PathLike))


def _described(data: Any) -> str:
    if isinstance(data, tuple) and len(data) == 2:
        return "the pair (X, y) that was given"
    return f"the {type(data).__name__} that was given"
