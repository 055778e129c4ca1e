"""An error in one process ends the verb in all of them, with that error and without a wait."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

import torch.distributed as dist

from finetune.distributed import world
from finetune.errors import DistributedError

_PATIENCE = 2.0  # seconds to wait for the other processes' account of an error

_verbs = itertools.count()
_under_way: ContextVar[int | None] = ContextVar("finetune_shares_errors", default=None)


@contextmanager
def errors_shared() -> Iterator[None]:
    """End a verb in all processes if it fails in one.

    An error that every process meets, such as an invalid argument, is raised in each, and they stay connected.

    Raises:
        DistributedError: If another process failed, with its error.
    """
    if _under_way.get() is not None or world.joined().size == 1:
        yield
        return
    verb = next(_verbs)
    before = _under_way.set(verb)
    try:
        yield
    except Exception as error:
        if _is_of_connection(error):
            world.leave()
            raise _account(verb) from error
        if not _is_everyones(error, verb):
            world.leave()
        raise
    finally:
        _under_way.reset(before)


def wait_for_all() -> None:
    """Wait within a verb until every process gets here, however long it takes: an exchange would run out of time.

    Raises:
        DistributedError: If another process fails before it does.
    """
    size, verb = world.joined().size, _under_way.get()
    if size == 1 or verb is None:
        return
    key = f"finetune/arrived/{verb}"
    world.store().add(key, 1)
    while world.store().add(key, 0) < size:
        if any(world.store().check([_key(verb, rank)]) for rank in range(size)):
            raise _account(verb)
        time.sleep(0.1)


def _is_of_connection(error: Exception) -> bool:
    """Return whether an exchange with other processes failed."""
    return isinstance(error, (dist.DistError, RuntimeError)) and (
        isinstance(error, dist.DistError) or "gloo" in str(error) or "process group" in str(error)
    )


def _is_everyones(error: Exception, verb: int) -> bool:
    """Tell the other processes about an error, and return whether each has one in the same verb."""
    rank, size = world.joined().rank, world.joined().size
    with suppress(Exception):  # of a store that has ended with its process
        world.store().set(_key(verb, rank), f"{type(error).__name__}: {error}")
        return len(_told(verb, size)) == size
    return False


def _account(verb: int) -> DistributedError:
    """Return the error of the process that failed first, as far as it is known."""
    told: dict[int, str] = {}
    with suppress(Exception):
        told = _told(verb, 1)
    if not told:
        return DistributedError(
            "Another process of this run has ended or does not answer. Look for its error above; a process that was "
            "killed has often run out of memory."
        )
    rank, said = next(iter(told.items()))
    return DistributedError(f"Process {rank} failed: {said}")


def _told(verb: int, number: int) -> dict[int, str]:
    """Return the errors told by the processes, by rank, once there are enough or for lack of patience."""
    end, size = time.monotonic() + _PATIENCE, world.joined().size
    while True:
        keys = {rank: _key(verb, rank) for rank in range(size)}
        told = {rank: world.store().get(key).decode() for rank, key in keys.items() if world.store().check([key])}
        if len(told) >= number or time.monotonic() > end:
            return told
        time.sleep(0.05)


def _key(verb: int, rank: int) -> str:
    return f"finetune/error/{verb}/{rank}"
