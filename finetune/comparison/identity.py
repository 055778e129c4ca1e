"""What decides the result of a run, said so that the same is recognised later: whatever of it changes shows.

Values become what JSON holds, large ones a digest. Files are known by path, size and time of change, tensors by
their bytes, a function by its code and what it encloses, an object by its class and attributes.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import types
from collections.abc import Iterable, Mapping, Set
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.sources.base import Source
from finetune.digests import sha256
from finetune.errors import ArgumentError

_PACKAGES = ("torch-finetune", "torch", "torchvision", "timm", "transformers", "peft")
_PLAIN = (type(None), bool, int, float, str)
_PATHS = ("model", "weights", "start_from", "probe")  # what a string under these names may be


def versions() -> dict[str, str | None]:
    """Return the versions of the packages that decide a result, None for what is not installed."""
    return {name: _version(name) for name in _PACKAGES}


def described(value: Any) -> Any:
    """Return what JSON holds of a value, the same for the same value in another process.

    Raises:
        ArgumentError: it refers to itself, so that there is no end to what it is.
    """
    try:
        return _described(value)
    except RecursionError:
        raise ArgumentError(
            f"A {type(value).__name__} cannot be told from another one, so that runs with it cannot be found again. "
            f"Leave out folder."
        ) from None


def described_data(source: Source) -> Any:
    """Return what JSON holds of data; of a data set of the user's own only its class, length and labels."""
    parts = [repr(described(part)) for part in source.describe()]
    return [sha256(*parts), described(source.targets), source.classes]


def _described(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, os.PathLike):
        return _path(os.fspath(value))
    if isinstance(value, Mapping):  # in order, as in a mapping of rates the last pattern that matches wins
        return _named(value.items())
    if isinstance(value, Set):
        return sorted(map(repr, value))
    if isinstance(value, (Tensor, np.ndarray)):
        return _digest(value)
    if isinstance(value, Image.Image):
        return [value.mode, _digest(np.asarray(value))]
    if isinstance(value, nn.Module):
        return _module(value)
    if isinstance(value, InputPreprocessing):
        return _described(value.to_dict())
    if isinstance(value, (list, tuple, range)):
        return [_described(item) for item in value]
    return _code_or_object(value)


def _code_or_object(value: Any) -> Any:
    if isinstance(value, functools.partial):
        return ["partial", _described(value.func), _described(value.args), _described(value.keywords)]
    if isinstance(value, types.MethodType):
        return ["method", _described(value.__func__), _described(value.__self__)]
    if isinstance(value, types.FunctionType):
        enclosed = [cell.cell_contents for cell in value.__closure__ or ()]
        return ["function", _code(value.__code__), _described([value.__defaults__, value.__kwdefaults__, enclosed])]
    if isinstance(value, types.CodeType):
        return _code(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [_name(type(value)), _named((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))]
    if isinstance(value, (type, types.BuiltinFunctionType)):
        return _name(value)
    attributes = getattr(value, "__dict__", None)
    return [_name(type(value)), repr(value) if attributes is None else _described(attributes)]


def _named(pairs: Iterable[tuple[Any, Any]]) -> Any:
    return [
        [_described(name), _path(value) if name in _PATHS and isinstance(value, str) else _described(value)]
        for name, value in pairs
    ]


def _code(code: types.CodeType) -> Any:
    return [code.co_code.hex(), code.co_names, [_described(constant) for constant in code.co_consts]]


def _module(module: nn.Module) -> Any:
    parts = []
    for name, value in module.state_dict(keep_vars=True).items():
        frozen = isinstance(value, nn.Parameter) and not value.requires_grad
        parts.append(f"{name} {frozen} {_digest(value) if isinstance(value, Tensor) else described(value)}")
    parts.append(f"{module}")
    for part in module.modules():  # a loss does not print its label smoothing
        parts.append(f"{[(name, value) for name, value in vars(part).items() if isinstance(value, _PLAIN)]}")
    return [_name(type(module)), sha256(*parts)]


def _path(text: str) -> Any:
    """Return a string, and where it is that of a file or folder what can be seen of that."""
    try:
        path = Path(text).expanduser()
        found = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
        return [text, [_stamp(file) for file in found]] if found else text
    except (OSError, ValueError, RuntimeError):  # too long for a path, or with characters that none can have
        return text


def _stamp(path: Path) -> list[Any]:
    state = path.stat()
    return [os.path.abspath(path), state.st_size, state.st_mtime_ns]


def _digest(array: Tensor | np.ndarray) -> str:
    values = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
    return sha256(f"{values.dtype} {tuple(values.shape)}", values)


def _name(of: Any) -> str:
    return f"{of.__module__}.{of.__qualname__}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
