"""`World`: the processes of a run, and the values that they exchange.

torchrun starts one process per device and describes them in environment variables. `join` reads these and opens the
process group of `torch.distributed`. Where there is one process, every method returns what it is given, so no other
file asks how many there are.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from finetune.devices.device import has_own_memory
from finetune.errors import ArgumentError, DistributedError, one_of

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TIMEOUT = timedelta(minutes=10)  # after which a process that waits for the others fails

_NONE: Any = object()

_writes: Counter[Path] = Counter()
_meetings, _series = itertools.count(), itertools.count()


@dataclass(frozen=True)
class World:
    """The processes of a run, and this one's place among them.

    Every process calls a method, in the same order, or none does, except for `written`.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        local_rank: Number of this process on its machine.
        local_size: Number of processes on this machine.
        shards: Whether the weights are divided among the processes while they train, instead of copied.

    Example:
        >>> ALONE.size, ALONE.part(torch.arange(4)), ALONE.any(False)
        (1, tensor([0, 1, 2, 3]), False)
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    shards: bool = False

    @property
    def leads(self) -> bool:
        """Whether this process writes the files of the run and speaks to the user."""
        return self.rank == 0

    def own_device(self, device: torch.device) -> torch.device:
        """Return the device of this process: of several GPUs, the one with its number on this machine.

        Raises:
            ArgumentError: If there are fewer GPUs than processes on this machine.
        """
        if self.size == 1 or not has_own_memory(device) or device.index is not None:
            return device
        count = torch.accelerator.device_count()
        if self.local_rank >= count:
            raise ArgumentError(
                f"Process {self.local_rank} of this machine has no GPU, because there are {count}. Start as many "
                f"processes: torchrun --nproc-per-node={count}."
            )
        torch.accelerator.set_device_index(self.local_rank)
        return torch.device(device.type, self.local_rank)

    def part(self, items: Tensor) -> Tensor:
        """Return this process's part of items [N, ...]: consecutive ones, as many as every other's or one more.

        The parts of all processes, in order, are the items. Of fewer items than processes, the last have none.
        """
        return items if self.size == 1 else items.tensor_split(self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set in any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(int(flag))) > 0)

    def gathered(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def agreed(self, value: T) -> T:
        """Return the value of the first process, for example a time that each has measured for itself."""
        if self.size == 1:
            return value
        values = [value if self.leads else None]
        dist.broadcast_object_list(values, src=0)
        return values[0]  # type: ignore[return-value]

    def first_known(self, value: T | None) -> T | None:
        """Return the value of the first process that has one, or None."""
        return next((known for known in self.gathered(value) if known is not None), None)

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of the first process into these tensors, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def interleaved(self, items: list[T]) -> list[T]:
        """Return the items of all processes: the first of each by rank, then the second of each, and so on."""
        if self.size == 1:
            return items
        turns = itertools.zip_longest(*self.gathered(items), fillvalue=_NONE)
        return [item for turn in turns for item in turn if item is not _NONE]

    def shared_out(self, number: int) -> Iterator[int]:
        """Yield the whole numbers below `number`, each in one process only, the next one to whoever asks first."""
        if self.size == 1:
            yield from range(number)
            return
        key = f"finetune/shared_out/{next(_series)}"
        while (taken := store().add(key, 1) - 1) < number:
            yield taken

    def all_reach(self, seconds: float) -> bool:
        """Return whether every process calls this within some seconds, which may be in another part of the work."""
        if self.size == 1:
            return True
        key, end = f"finetune/reached/{next(_meetings)}", time.monotonic() + seconds
        with suppress(Exception):  # of a store that has ended with its process
            if store().add(f"{key}/number", 1) == self.size:
                store().compare_set(key, "", "all")
            while not store().check([key]) and time.monotonic() < end:
                time.sleep(0.02)
            return bool(store().compare_set(key, "", "some") == b"all")  # the first answer holds for everyone
        return False

    def written(self, path: Path, write: Callable[[], object]) -> None:
        """Let the first process write a file, and return in each process when it is written.

        The first process does not wait for the others, so it may also be alone in calling this.

        Raises:
            DistributedError: In the other processes, if the file could not be written.
        """
        if self.size == 1:
            write()
            return
        key = f"finetune/written/{path}/{_writes[path]}"
        _writes[path] += 1
        if not self.leads:
            store().wait([key], _TIMEOUT)
            if failure := store().get(key).decode():
                raise DistributedError(f"Process 0 failed: {failure}")
            return
        try:
            write()
        except Exception as error:
            store().set(key, f"{type(error).__name__}: {error}")
            raise
        store().set(key, "")


ALONE = World()


@dataclass
class _State:
    """The world of this process, and the store of keys and values that it shares with the others."""

    world: World = ALONE
    store: Any = None


_state = _State()


def joined() -> World:
    """Return the processes that this one has joined."""
    return _state.world


def store() -> Any:
    """Return the store of keys and values that the processes share, also after the group is closed."""
    return _state.store


def join(distributed: str | bool, device: torch.device) -> World:
    """Join the processes that torchrun has started, or those of a group that is open already.

    Args:
        distributed: `"auto"`, `"fsdp"` to divide the weights, or False to stay alone.
        device: Device to train on.

    Raises:
        ArgumentError: If `distributed` is something else.

    Example:
        >>> join("auto", torch.device("cpu")).size
        1
    """
    if distributed is not False:
        one_of("distributed", distributed, ("auto", "fsdp"), "False")
    if distributed is False or not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        started = all(name in os.environ for name in _VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1
        if not started or _state.world.size > 1:  # in a world that was left, nobody answers
            return _state.world
        own = f",{device.type}:{dist.get_default_backend_for_device(device)}" if has_own_memory(device) else ""
        dist.init_process_group(f"cpu:gloo{own}", timeout=_TIMEOUT)
        atexit.register(leave)
    if _state.world.size == 1:
        rank, size = dist.get_rank(), dist.get_world_size()
        on_machine = int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size))
        _state.world = World(rank, size, *on_machine)
        _state.store = dist.distributed_c10d._get_default_store()
        if rank > 0:  # the first process speaks for all
            for name in ("finetune", "finetune.series"):
                logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
    return replace(_state.world, shards=distributed == "fsdp" and _state.world.size > 1)


def leave() -> None:
    """Close the connections to the other processes. Those that wait for this one fail at once."""
    with suppress(Exception):
        if dist.is_initialized():
            dist.destroy_process_group()
