"""The planner: a store pays only where filling and reading it take less than computing, and it has room."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.features import planner
from finetune.features.costs import Costs
from finetune.features.planner import DEVICE, DISK, MEMORY, Need

CPU = torch.device("cpu")
seconds = st.floats(0, 10)
costs = st.builds(Costs, seconds, seconds, seconds, seconds, seconds)
needs = st.builds(Need, st.integers(1, 10**6), st.integers(1, 10**4), st.integers(1, 10**12))


@given(costs=costs, need=needs, epochs=st.integers(1, 50), tier=st.sampled_from([DEVICE, MEMORY, DISK]))
def test_what_pays_in_some_epochs_pays_in_more(costs: Costs, need: Need, epochs: int, tier: str) -> None:
    if planner.pays(costs, need, epochs, tier):
        assert planner.pays(costs, need, epochs + 1, tier)
        assert planner.pays(costs, need, epochs, MEMORY)
        assert planner.pays(replace(costs, plain=costs.plain + 1), need, epochs, tier)


def test_what_pays() -> None:
    """By hand: 100 batches, a whole pass 1 s of which the prefix is 0.9 s."""
    usual = Costs(load=0.0, plain=1.0, compute=0.9, served=0.1, backward=0.1)
    need = Need(3200, 100, 10**8)
    assert planner.pays(usual, need, 2, MEMORY)
    assert planner.pays(usual, need, 2, DISK)  # a megabyte a batch
    assert not planner.pays(usual, replace(need, bytes=10**11), 10, DISK)  # a gigabyte a batch
    assert planner.pays(usual, replace(need, bytes=10**11), 10, MEMORY)
    slow_replay = replace(usual, compute=0.001, plain=0.002, served=0.004, backward=0.001)
    assert not planner.pays(slow_replay, need, 100, MEMORY)
    assert planner.pays(replace(slow_replay, load=0.1), need, 100, MEMORY)  # pictures need no decoding
    assert not planner.pays(usual, need, 1, MEMORY)


def test_what_is_too_short() -> None:
    assert planner.too_short(Costs(load=0.0, plain=0.001), 100, 5) == "there is too little to compute for it to pay"
    assert planner.too_short(Costs(load=0.005, plain=0.001), 100, 5) is None


def test_what_is_not_sought() -> None:
    assert planner.not_sought(10**6, 1) == "each sample is seen only once"
    assert planner.not_sought(100, 3) == "there are too few samples and epochs for it to pay"
    assert planner.not_sought(100, 10) is None
    assert planner.not_sought(1000, 2) is None


def test_the_first_place_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {DEVICE: 10**6, MEMORY: 10**7, DISK: 10**8}
    monkeypatch.setattr(planner, "free", lambda tier, device: free[tier])
    tiers, cuda = (DEVICE, MEMORY, DISK), torch.device("cuda")
    found = [planner.place_for(wanted, cuda, tiers) for wanted in (400_000, 400_001, 5_000_000, 5_000_001, 90_000_001)]
    assert found == [DEVICE, MEMORY, MEMORY, DISK, None]
    assert planner.place_for(1, CPU, tiers) == MEMORY
    assert planner.place_for(5_000_001, CPU, (DEVICE, MEMORY)) is None


def test_what_is_free() -> None:
    assert 0 < planner.free(MEMORY, CPU) < 1 << 62
    assert planner.free(DISK, CPU) >= 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_a_disk_in_memory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = Path("/proc/mounts").read_text().split("\n")
    memory = next((mount.split()[1] for mount in mounts if " tmpfs " in mount), None)
    if memory is None:
        pytest.skip("nothing is mounted in memory")
    monkeypatch.setattr("tempfile.tempdir", memory)
    assert planner.free(DISK, CPU) == 0


def test_bytes_in_words() -> None:
    assert [planner.readable(size) for size in (7, 1e3, 2.5e6, 3e9, 4e12)] == [
        "7 B", "1 kB", "2 MB", "3.0 GB", "4000.0 GB",
    ]  # fmt: skip
