"""The planner: a store pays only where filling and reading it take less than computing, and it has room."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.caching import planner
from finetune.caching.costs import Costs
from finetune.caching.planner import DEVICE, DISK, MEMORY, Need
from finetune.data.loading.batches import Batches
from finetune.data.sources.arrays import Arrays

CPU = torch.device("cpu")
seconds = st.floats(0, 10)
costs = st.builds(Costs, load=seconds, plain=seconds, compute=seconds, served=seconds, backward=seconds)


def need(samples: int = 3200, epochs: int = 2, views: int = 1, batch_size: int = 32) -> Need:
    X = torch.zeros(samples, 1)
    batches = Batches(Arrays(X, torch.zeros(samples, dtype=torch.int64)), batch_size=batch_size, shuffle=True)
    return replace(Need.of([batches], epochs), **in_views(batches, epochs, views))


def in_views(batches: Batches, epochs: int, views: int) -> dict[str, int]:
    """Return what of a need depends on how many views there are of each sample."""
    samples, shown = len(batches.source), min(views, epochs)
    return {
        "rows": views * samples,
        "spared_samples": samples * (epochs - shown),
        "filling": len(batches) * shown,
        "reading": len(batches) * (epochs - shown),
    }


def test_what_is_needed() -> None:
    assert need(70, epochs=5) == Need(samples=70, rows=70, spared_samples=280, filling=3, reading=12)
    train, val = (Batches(Arrays(torch.zeros(n, 1), None), batch_size=32, shuffle=True) for n in (70, 20))
    assert Need.of([train, val], 5) == Need(samples=90, rows=90, spared_samples=360, filling=4, reading=16)


@given(
    costs=costs, bytes=st.integers(1, 10**6), samples=st.integers(1, 200), epochs=st.integers(2, 50),
    views=st.integers(1, 4), tier=st.sampled_from([DEVICE, MEMORY, DISK]),
)  # fmt: skip
def test_what_pays_in_some_epochs_pays_in_more(
    costs: Costs, bytes: int, samples: int, epochs: int, views: int, tier: str
) -> None:
    if planner.pays(costs, need(samples, epochs, views), bytes, tier):
        assert planner.pays(costs, need(samples, epochs + 1, views), bytes, tier)
        assert planner.pays(costs, need(samples, epochs, views), bytes, MEMORY)
        assert planner.pays(replace(costs, plain=costs.plain + 1), need(samples, epochs, views), bytes, tier)


def test_what_pays() -> None:
    """By hand: 100 batches, a whole pass 1 s of which the prefix is 0.9 s."""
    usual = Costs(load=0.0, plain=1.0, compute=0.9, served=0.1, backward=0.1)
    small, large = 30_000, 30_000_000  # a megabyte and a gigabyte a batch
    assert planner.pays(usual, need(epochs=2), small, MEMORY)
    assert planner.pays(usual, need(epochs=2), small, DISK)
    assert not planner.pays(usual, need(epochs=10), large, DISK)
    assert planner.pays(usual, need(epochs=10), large, MEMORY)
    assert planner.pays(usual, need(epochs=10, views=8), small, MEMORY)
    assert not planner.pays(usual, need(epochs=10, views=10), small, MEMORY)
    slow_replay = replace(usual, compute=0.001, plain=0.002, served=0.004, backward=0.001)
    assert not planner.pays(slow_replay, need(epochs=100), small, MEMORY)
    assert planner.pays(replace(slow_replay, load=0.1), need(epochs=100), small, MEMORY)  # pictures need no decoding
    assert not planner.pays(usual, need(epochs=1), small, MEMORY)


def test_what_is_too_short() -> None:
    """What 400 batches are spared, less half a pass of a few samples to read it back, has to be 160 such passes."""
    spared, too_little = need(100 * 32, epochs=5), "there is too little to compute for it to pay"
    usual = Costs(load=0.0, plain=0.001, few=0.001)
    assert planner.too_short(replace(usual, plain=0.00091), spared) is None
    assert planner.too_short(replace(usual, plain=0.00089), spared) == too_little
    assert planner.too_short(replace(usual, plain=0.00089, load=0.001), spared) is None
    assert planner.too_short(replace(usual, ahead=0.91), spared) is None
    assert planner.too_short(replace(usual, ahead=0.89), spared) == too_little


def test_what_is_not_sought() -> None:
    assert planner.not_sought(need(10**5, epochs=1), asked=True) == "no picture or sample is seen twice"
    assert planner.not_sought(need(100, epochs=3), asked=False) == "there are too few samples and epochs for it to pay"
    assert planner.not_sought(need(100, epochs=3), asked=True) is None
    assert planner.not_sought(need(100, epochs=10), asked=False) is None
    assert planner.not_sought(need(100, epochs=10, views=8), asked=False) is not None
    assert planner.not_sought(need(1000, epochs=2), asked=False) is None


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
