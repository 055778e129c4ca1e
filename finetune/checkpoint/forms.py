"""The forms of values: whether content from a file has the types that the code which reads it relies on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def check_form(value: Any, form: Any, name: str = "the content") -> None:
    """Check that a value has a form.

    Args:
        value: Dicts and lists of plain values and tensors.
        form: A type; a list of one form, for lists of it; a dict of forms by key, where `...` stands for other keys; or
            a tuple of forms to choose from, which may hold None. `int` excludes flags, `float` includes whole numbers.
        name: Name of the value.

    Raises:
        TypeError: If it has another form, or a key is missing.

    Example:
        >>> check_form({"n": 3, "names": ["fc", 1]}, {"n": int, "names": [str]})
        Traceback (most recent call last):
        TypeError: names should be a str and is a int
    """
    for wrong in _misfits(value, form, name):
        raise TypeError(wrong)


def _misfits(value: Any, form: Any, name: str) -> Iterator[str]:
    if isinstance(form, tuple):
        found = [next(_misfits(value, each, name), None) for each in form]
        if None not in found:
            yield next(wrong for wrong, each in zip(found, form, strict=True) if each is not None and wrong)
    elif isinstance(form, dict) and isinstance(value, Mapping):
        yield from (f"{name} lacks {key!r}" for key in form if key is not ... and key not in value)
        for key, item in value.items():
            if key in form or ... in form:
                yield from _misfits(item, form.get(key, form.get(...)), str(key)[:100])
    elif isinstance(form, list) and isinstance(value, (list, tuple)):
        for item in value:
            yield from _misfits(item, form[0], name)
    elif not _is(value, form):
        yield f"{name} should be {_said(form)} and is a {type(value).__name__}"


def _is(value: Any, form: Any) -> bool:
    if isinstance(form, (dict, list)):
        return False
    if form in (int, float):
        return isinstance(value, (int, form)) and not isinstance(value, bool)
    return value is None if form is None else isinstance(value, form)


def _said(form: Any) -> str:
    if isinstance(form, (dict, list)):
        return f"a {type(form).__name__}"
    return "None" if form is None else f"a {form.__name__}"
