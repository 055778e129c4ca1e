"""Turns at a model: verbs of several threads run one after the other, and none within a run that it would break.

Verbs put the model into eval mode, into another memory format, or into training, and restore it at their end. The turns
belong to the module, so two tuners of one model share them, and a tuner is copied and pickled without them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import Condition, get_ident
from typing import Concatenate, ParamSpec, Protocol, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from finetune.errors import ArgumentError
from finetune.threads.locks import GENERATORS

P = ParamSpec("P")
R = TypeVar("R")

LONG = "fit"  # the verb that others do not wait for, because it may take days


class _HasModel(Protocol):
    @property
    def inner(self) -> nn.Module:
        """The module that verbs run."""


Tuner = TypeVar("Tuner", bound=_HasModel)


class Turns:
    """The turns at one model.

    Attributes:
        verbs: Verbs under way, all in one thread, the outermost one first.

    Example:
        >>> turns = Turns()
        >>> with turns.taken("fit", alone=True), turns.taken("predict"):
        ...     turns.verbs
        ['fit', 'predict']
    """

    def __init__(self) -> None:
        self.verbs: list[str] = []
        self._owner: int | None = None
        self._changed = Condition()

    @contextmanager
    def taken(self, verb: str, *, alone: bool = False) -> Iterator[None]:
        """Wait for verbs of other threads, and let them wait until the context exits.

        Args:
            verb: Name of the verb.
            alone: Whether the verb cannot run within another one.

        Raises:
            ArgumentError: If `fit` is under way in another thread, or the verb cannot run within the one under way.
        """
        if not self._taken_at_once(verb, alone):
            with GENERATORS.lent():  # whose verb is under way may need them to end
                self._wait(verb, alone)
        try:
            yield
        finally:
            with self._changed:
                self.verbs.pop()
                if not self.verbs:
                    self._owner = None
                    self._changed.notify_all()

    def _taken_at_once(self, verb: str, alone: bool) -> bool:
        with self._changed:
            if self._owner == get_ident() and alone:
                raise ArgumentError(
                    f"{_said(verb)} within {self.verbs[0]} of the same model, as in a callback, and would change "
                    f"what {self.verbs[0]} goes on with. Call it before or after, or on a copy: copy.deepcopy(tuner)."
                )
            free = self._owner in (None, get_ident())
            if free:
                self._owner = get_ident()
                self.verbs.append(verb)
            return free

    def _wait(self, verb: str, alone: bool) -> None:
        with self._changed:
            while self._owner is not None:
                if self.verbs[0] == LONG:
                    when = "after fit" if alone else "after fit, in a callback"
                    raise ArgumentError(
                        f"{_said(verb)} while fit trains the same model in another thread, which changes its "
                        f"weights and modes. Call it {when}, or on a copy from before: copy.deepcopy(tuner)."
                    )
                self._changed.wait()
            self._owner = get_ident()
            self.verbs.append(verb)

    def after_fork(self) -> None:
        """Forget the verbs of other threads in a new process, which has none of them."""
        self._changed = Condition()
        if self._owner != get_ident():
            self.verbs, self._owner = [], None


def _said(verb: str) -> str:
    return f"{verb} was {'set' if verb.endswith(' = ...') else 'called'}"


_turns: WeakKeyDictionary[nn.Module, Turns] = WeakKeyDictionary()


def turns_at(model: nn.Module) -> Turns:
    """Return the turns at a model, always the same object."""
    return _turns.setdefault(model, Turns())


def takes_turns(
    *, alone: bool = False, sets: bool = False
) -> Callable[[Callable[Concatenate[Tuner, P], R]], Callable[Concatenate[Tuner, P], R]]:
    """Make a method of a tuner take its turn at the model. See `Turns.taken`.

    Args:
        alone: Whether it cannot run within another verb, or as a setter not within `fit`.
        sets: Whether it is the setter of a property.
    """

    def decorate(method: Callable[Concatenate[Tuner, P], R]) -> Callable[Concatenate[Tuner, P], R]:
        verb = f"{method.__name__} = ..." if sets else method.__name__

        @wraps(method)
        def taking_turns(self: Tuner, /, *args: P.args, **kwargs: P.kwargs) -> R:
            turns = turns_at(self.inner)
            with turns.taken(verb, alone=alone and not (sets and LONG not in turns.verbs)):
                return method(self, *args, **kwargs)

        return taking_turns

    return decorate


def _after_fork() -> None:
    for turns in list(_turns.values()):
        turns.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
