"""Fingerprints of everything that determines the result of a run, so that a finished run is recognized later.

A fingerprint is a JSON value that is the same in every process; large values become a hash. A file is identified by
its path, size and modification time, a tensor by its values, a function by its code and closure, and an object by
its class and attributes.
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
from finetune.naming.paths import local_path

_PACKAGES = ("torch-finetune", "torch", "torchvision", "timm", "transformers", "peft")
_PLAIN = (type(None), bool, int, float, str)
_PATHS = ("model", "weights", "start_from", "probe")  # names under which a string may be a path


def versions() -> dict[str, str | None]:
    """Return the versions of the packages that affect results, None for those that are not installed."""
    return {name: _version(name) for name in _PACKAGES}


def fingerprint(value: Any) -> Any:
    """Return the fingerprint of a value.

    Raises:
        ArgumentError: If the value refers to itself.
    """
    try:
        return _fingerprint(value)
    except RecursionError:
        raise ArgumentError(
            f"A {type(value).__name__} that refers to itself has no fingerprint, so its runs could not be recognized "
            f"later. Omit folder."
        ) from None


def fingerprint_data(source: Source) -> Any:
    """Return the fingerprint of data. A custom dataset counts only with its class, length and labels."""
    parts = [repr(fingerprint(part)) for part in source.describe()]
    return [sha256(*parts), fingerprint(source.targets), source.classes]


def _fingerprint(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, os.PathLike):
        return _path(os.fspath(value))
    if isinstance(value, Mapping):  # ordered: in a mapping of rates, the last matching pattern wins
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
        return _fingerprint(value.to_dict())
    if isinstance(value, (list, tuple, range)):
        return [_fingerprint(item) for item in value]
    return _code_or_object(value)


def _code_or_object(value: Any) -> Any:
    if isinstance(value, functools.partial):
        return ["partial", _fingerprint(value.func), _fingerprint(value.args), _fingerprint(value.keywords)]
    if isinstance(value, types.MethodType):
        return ["method", _fingerprint(value.__func__), _fingerprint(value.__self__)]
    if isinstance(value, types.FunctionType):
        enclosed = [cell.cell_contents for cell in value.__closure__ or ()]
        return ["function", _code(value.__code__), _fingerprint([value.__defaults__, value.__kwdefaults__, enclosed])]
    if isinstance(value, types.CodeType):
        return _code(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [_name(type(value)), _named((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))]
    if isinstance(value, (type, types.BuiltinFunctionType)):
        return _name(value)
    attributes = getattr(value, "__dict__", None)
    return [_name(type(value)), repr(value) if attributes is None else _fingerprint(attributes)]


def _named(pairs: Iterable[tuple[Any, Any]]) -> Any:
    return [
        [_fingerprint(name), _path(value) if name in _PATHS and isinstance(value, str) else _fingerprint(value)]
        for name, value in pairs
    ]


def _code(code: types.CodeType) -> Any:
    return [code.co_code.hex(), code.co_names, [_fingerprint(constant) for constant in code.co_consts]]


def _module(module: nn.Module) -> Any:
    parts = []
    for name, value in module.state_dict(keep_vars=True).items():
        frozen = isinstance(value, nn.Parameter) and not value.requires_grad
        parts.append(f"{name} {frozen} {_digest(value) if isinstance(value, Tensor) else fingerprint(value)}")
    parts.append(f"{module}")
    for part in module.modules():  # the repr of a loss omits its label smoothing
        parts.append(f"{[(name, value) for name, value in vars(part).items() if isinstance(value, _PLAIN)]}")
    return [_name(type(module)), sha256(*parts)]


def _path(text: str) -> Any:
    """Return a string, with the state of its files if it is the path of a file or folder."""
    try:
        path = local_path(text)
        found = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
        return [text, [_stamp(file) for file in found]] if found else text
    except (OSError, ValueError):  # too long or with invalid characters for a path
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
