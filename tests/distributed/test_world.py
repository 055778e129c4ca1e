"""The exchange of values between processes, and one process that does without."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from finetune import ArgumentError, DistributedError
from finetune.devices.device import resolve_device
from finetune.distributed.world import ALONE, World, join, joined
from tests.helpers.worlds import in_processes


@given(items=st.integers(0, 50), size=st.integers(1, 5))
def test_parts_are_the_items_in_order_and_differ_by_one_at_most(items: int, size: int):
    parts = [World(rank, size).part(torch.arange(items)) for rank in range(size)]
    assert torch.cat(parts).tolist() == list(range(items))
    assert len(parts[0]) - len(parts[-1]) <= 1


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert join("auto", torch.device("cpu")) == joined() == ALONE
    assert ALONE.gathered("a") == ["a"]
    assert ALONE.interleaved([1, 2]) == [1, 2]
    assert ALONE.any(True)


def test_another_kind_of_parallel_training_is_refused():
    with pytest.raises(ArgumentError, match="no distributed 'ddp'"):
        join("ddp", torch.device("cpu"))


def test_each_process_has_a_gpu_of_its_own(accelerator: torch.device):
    count = torch.accelerator.device_count()
    for rank in reversed(range(count)):
        for name in (accelerator.type, "auto"):
            own = World(rank, count + 1, rank, count + 1).own_device(resolve_device(name))
            assert own == torch.device(accelerator.type, rank)
            assert torch.empty(0, device=accelerator.type).device == own
    with pytest.raises(ArgumentError, match=f"has no GPU, because there are {count}"):
        World(count, count + 1, count, count + 1).own_device(accelerator)


def test_a_device_with_a_number_and_the_cpu_are_shared(accelerator: torch.device):
    for device in (torch.device(accelerator.type, 0), torch.device("cpu")):
        assert World(1, 2, 1, 2).own_device(device) == device


def test_values_are_exchanged_in_the_order_of_the_ranks():
    def work(rank: int) -> object:
        world = join("auto", torch.device("cpu"))
        mine = torch.tensor([rank, 1])
        values = world.sum(mine).tolist(), world.gathered(rank), world.agreed(rank), world.any(rank == 2)
        assert (world.first_known([None, 0, 1][rank]), world.first_known(None)) == (0, None)
        return values, world.interleaved(["ab", "cd", "e"][rank]), mine.tolist()

    for rank, (values, items, mine) in enumerate(in_processes(3, work)):
        assert values == ([3, 3], [0, 1, 2], 0, True)
        assert items == ["a", "c", "e", "b", "d"]
        assert mine == [rank, 1]


def test_only_the_first_process_writes_and_the_others_hear_of_its_failure(tmp_path: Path):
    def work(rank: int) -> str:
        world = join("auto", torch.device("cpu"))
        file = tmp_path / "written"
        world.written(file, lambda: file.write_text(str(rank)))
        read = file.read_text()
        if rank == 0:
            world.written(tmp_path / "alone", lambda: None)  # nobody waits for it
        try:
            world.written(file, lambda: (tmp_path / "missing" / "file").write_text(""))
        except (DistributedError, OSError) as error:
            return f"{read} {type(error).__name__} {error}"
        return "no error"

    first, second = in_processes(2, work)
    assert first.startswith("0 FileNotFoundError")
    assert second.startswith("0 DistributedError Process 0 failed: FileNotFoundError")


def test_the_group_of_the_user_is_joined_and_the_others_are_silent():
    def work(rank: int) -> object:
        dist.init_process_group("gloo")
        os.environ.pop("LOCAL_RANK")
        world = join("auto", torch.device("cpu"))
        said = logging.getLogger("finetune").filter(logging.LogRecord("finetune", logging.INFO, "", 0, "", (), None))
        return world.rank, world.size, join(False, torch.device("cpu")).size, bool(said)

    assert in_processes(2, work) == [(0, 2, 1, True), (1, 2, 1, False)]
