"""Facts about functions, objects and data that are the same in every process: plain values, and digests of others."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from finetune.data.sources.base import Source
from finetune.digests import sha256

CODE = f"code in Python {sys.version_info[0]}.{sys.version_info[1]}"  # other versions compile it otherwise

_DEEPEST = 8  # or a value that refers to itself has no end
_PLAIN = (bool, int, float, str)
_LIBRARIES = ("finetune", "torch", "builtins", "abc", "typing")


def fact(value: Any, depth: int = 0) -> Any:
    """Return a value itself if it is plain, a digest of an array, the name of a function, and the class of an object.

    Example:
        >>> fact([1, "a", None, nn.ReLU()])
        [1, 'a', None, 'ReLU']
    """
    if value is None or isinstance(value, _PLAIN):
        return "nan" if isinstance(value, float) and math.isnan(value) else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)) and depth < _DEEPEST:
        return [fact(item, depth + 1) for item in value]
    if isinstance(value, Mapping) and depth < _DEEPEST:
        return {str(name): fact(item, depth + 1) for name, item in value.items()}
    if isinstance(value, bytes):
        return _digest(value)
    if isinstance(value, (Tensor, np.ndarray)):
        with suppress(RuntimeError, TypeError):
            return _digest(f"{value.dtype} {tuple(value.shape)}", value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def arguments_of(value: Any) -> dict[str, Any]:
    """Return what a function or an object was made with.

    Args:
        value: A function, for its defaults and the variables it encloses; a partial; or an object, for the arguments of
            its constructor that it keeps under their names, and for the plain attributes of its class.

    Example:
        >>> arguments_of(nn.CrossEntropyLoss(label_smoothing=0.1))["label_smoothing"]
        0.1
    """
    if isinstance(value, functools.partial):
        return {**arguments_of(value.func), "args": fact(value.args), **fact(value.keywords)}
    if isinstance(value, types.FunctionType):
        defaults = {"defaults": value.__defaults__} if value.__defaults__ else {}
        return fact({**defaults, **(value.__kwdefaults__ or {}), **dict(_enclosed(value))})  # type: ignore[no-any-return]
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return {}
    held = {**vars(value), **(dict(value.named_buffers()) if isinstance(value, nn.Module) else {})}
    names = []
    with suppress(TypeError, ValueError):  # compiled code has no signature
        names = [name for name in inspect.signature(type(value)).parameters if name in held]
    return {**_class_attributes(type(value)), **{name: fact(held[name]) for name in names}}


def code_of(value: Any) -> str | None:
    """Return a digest of the code of a function or of the methods of an object, or None if there is none to read.

    Lines and docstrings do not count, nor do the classes of this package and of torch.
    """
    if isinstance(value, functools.partial):
        return code_of(value.func)
    if isinstance(value, types.MethodType):
        value = value.__func__
    if isinstance(value, types.FunctionType):
        return _digest(_code(value.__code__, value.__doc__))
    owners = [*_own_classes(type(value)), *([value] if hasattr(value, "__dict__") else [])]
    methods = {
        f"{name} {code_of(method)}\n"
        for owner in owners
        for name, method in vars(owner).items()
        if isinstance(method, types.FunctionType)
    }
    return _digest(*sorted(methods)) if methods else None


def data_digest(source: Source) -> str | None:
    """Return a digest of the inputs, the same for a moved or copied folder, or None if they cannot be read."""
    with suppress(OSError, RuntimeError, TypeError):
        return _digest(*(_part(value) for value in source.identify()))
    return None


def _part(value: Any) -> str:
    if isinstance(value, Image.Image):
        return f"{value.mode} {value.size} {sha256(value.tobytes())}"
    return repr(fact(value))


def _digest(*parts: str | bytes | Tensor | np.ndarray) -> str:
    return sha256(*parts)[:16]


def _code(code: types.CodeType, docstring: str | None = None) -> str:
    constants = [
        _code(constant) if isinstance(constant, types.CodeType) else _constant(constant)
        for constant in code.co_consts
        if docstring is None or constant != docstring
    ]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _constant(value: Any) -> str:
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)  # whose order changes


def _enclosed(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty cell
            yield name, cell.cell_contents


def _own_classes(kind: type) -> list[type]:
    """Return a class and its bases without those of libraries."""
    return [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in _LIBRARIES]


def _class_attributes(kind: type) -> dict[str, Any]:
    return {
        name: value
        for base in reversed(_own_classes(kind))
        for name, value in vars(base).items()
        if not name.startswith("_") and isinstance(value, _PLAIN)
    }
