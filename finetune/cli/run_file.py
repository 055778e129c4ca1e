"""Run files: the options of `finetune train` as TOML, with every value."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w
import typer

from finetune.errors import ArgumentError, nearest
from finetune.files.durable import written
from finetune.files.regular import opened
from finetune.naming.paths import local_path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAME = "run.toml"


def is_run_file(path: str) -> bool:
    """Return whether the path is that of a run file."""
    return path.lower().endswith(".toml")


def path_beside(checkpoint: Path) -> Path:
    """Return the path of the run file of a checkpoint: `run.toml`, or a name of its own if that is another's."""
    path = checkpoint.with_name(NAME)
    if path.exists() and _output(path) != checkpoint.name:
        return checkpoint.with_name(f"{checkpoint.stem}.{NAME}")
    return path


def write_run_file(path: Path, options: dict[str, Any]) -> None:
    """Write the options of a run. Those without a value are comments, as TOML has no word for none."""
    values = {name: _as_toml(value) for name, value in options.items() if value is not None}
    missing = [f"# {name}: none\n" for name, value in options.items() if value is None]
    head = (
        f"# Repeat this run with: finetune train {path.name}\n"
        f"# Options of the command line come before those of the file.\n"
        f"# Written by finetune {version('torch-finetune')} with torch {version('torch')} on Python "
        f"{platform.python_version()}.\n\n"
    )
    with written(path) as file:
        file.write((head + tomli_w.dumps(values) + "\n" + "".join(missing)).encode())


def arguments_of_run(path: str, context: typer.Context) -> list[str]:
    """Return the command line that a run file stands for, in which options of the present one come first.

    Relative paths in the file are relative to the folder where the command runs, as they were when it was written.

    Args:
        path: The run file.
        context: The present command line.

    Raises:
        ArgumentError: If the file cannot be read, names no data, or has an unknown option.
    """
    options = _read(path)
    for name in options:
        if name not in context.params:
            raise ArgumentError(f"{path} has the unknown option {name!r}.{nearest(name, context.params)}")
    said = {name: value for name, value in context.params.items() if name != "data" and _is_given(context, name)}
    options |= said
    data = str(options.pop("data", ""))
    if not data or is_run_file(data):
        raise ArgumentError(f"{path} names no data. Expected the option data, such as data = 'dogs'.")
    return [*(word for name, value in options.items() for word in _words(name, value)), "--", data]


def _is_given(context: typer.Context, name: str) -> bool:
    return getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"


def _words(name: str, value: Any) -> list[str]:
    """Return the words that give an option a value."""
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option if value else f"--no-{option[2:]}"]
    several = value if isinstance(value, (list, tuple)) else [value]
    return [f"{option}={each}" for each in several]


def _read(path: str | Path) -> dict[str, Any]:
    try:
        with opened(local_path(path)) as file:
            return tomllib.load(file)
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path} cannot be read: {error}. Expected a run file written by train.") from error


def _output(path: Path) -> str | None:
    """Return the name of the checkpoint that a run file belongs to, or None if it is no run file."""
    try:
        return Path(str(_read(path)["out"])).name
    except (ArgumentError, KeyError):
        return None


def _as_toml(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, (list, tuple)) else value
