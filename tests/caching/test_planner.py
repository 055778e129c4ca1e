"""The planner: a store pays only if filling and reading it take less time than computing, and there is room for it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.caching import planner
from finetune.caching.declined import Declined
from finetune.caching.planner import DEVICE, DISK, MEMORY, Workload
from finetune.caching.timings import Timings
from finetune.data.loading.batches import Batches
from finetune.data.sources.arrays import Arrays

CPU = torch.device("cpu")
seconds = st.floats(0, 10)
timings = st.builds(Timings, load=seconds, forward=seconds, prefix=seconds, replay=seconds, backward=seconds)


def workload(samples: int = 3200, epochs: int = 2, views: int = 1, batch_size: int = 32) -> Workload:
    X = torch.zeros(samples, 1)
    batches = Batches(Arrays(X, torch.zeros(samples, dtype=torch.int64)), batch_size=batch_size, shuffle=True)
    return replace(Workload.of([batches], epochs), **in_views(batches, epochs, views))


def in_views(batches: Batches, epochs: int, views: int) -> dict[str, int]:
    """Return the fields of a workload that depend on the number of views."""
    samples, shown = len(batches.source), min(views, epochs)
    return {
        "rows": views * samples,
        "spared_samples": samples * (epochs - shown),
        "filling": len(batches) * shown,
        "reading": len(batches) * (epochs - shown),
    }


def test_workload() -> None:
    assert workload(70, epochs=5) == Workload(samples=70, rows=70, spared_samples=280, filling=3, reading=12)
    train, val = (Batches(Arrays(torch.zeros(n, 1), None), batch_size=32, shuffle=True) for n in (70, 20))
    assert Workload.of([train, val], 5) == Workload(samples=90, rows=90, spared_samples=360, filling=4, reading=16)


@given(
    timings=timings, bytes=st.integers(1, 10**6), samples=st.integers(1, 200), epochs=st.integers(2, 50),
    views=st.integers(1, 4), tier=st.sampled_from([DEVICE, MEMORY, DISK]),
)  # fmt: skip
def test_caching_that_pays_in_some_epochs_pays_in_more(
    timings: Timings, bytes: int, samples: int, epochs: int, views: int, tier: str
) -> None:
    if planner.pays(timings, workload(samples, epochs, views), bytes, tier):
        assert planner.pays(timings, workload(samples, epochs + 1, views), bytes, tier)
        assert planner.pays(timings, workload(samples, epochs, views), bytes, MEMORY)
        slower = replace(timings, forward=timings.forward + 1)
        assert planner.pays(slower, workload(samples, epochs, views), bytes, tier)


def test_when_caching_pays() -> None:
    """Worked out by hand for 100 batches, with a pass of 1 s of which the prefix takes 0.9 s."""
    usual = Timings(load=0.0, forward=1.0, prefix=0.9, replay=0.1, backward=0.1)
    small, large = 30_000, 30_000_000  # bytes per sample: a megabyte and a gigabyte per batch
    assert planner.pays(usual, workload(epochs=2), small, MEMORY)
    assert planner.pays(usual, workload(epochs=2), small, DISK)
    assert not planner.pays(usual, workload(epochs=10), large, DISK)
    assert planner.pays(usual, workload(epochs=10), large, MEMORY)
    assert planner.pays(usual, workload(epochs=10, views=8), small, MEMORY)
    assert not planner.pays(usual, workload(epochs=10, views=10), small, MEMORY)
    slow_replay = replace(usual, prefix=0.001, forward=0.002, replay=0.004, backward=0.001)
    assert not planner.pays(slow_replay, workload(epochs=100), small, MEMORY)
    assert planner.pays(
        replace(slow_replay, load=0.1), workload(epochs=100), small, MEMORY
    )  # a replay decodes no images
    assert not planner.pays(usual, workload(epochs=1), small, MEMORY)


def test_too_little_time() -> None:
    """The time saved on 400 batches, less half a small pass each for reading back, must be 160 small passes."""
    spared, too_little = workload(100 * 32, epochs=5), Declined("there is too little to compute for caching to pay")
    usual = Timings(load=0.0, forward=0.001, small_forward=0.001)
    assert planner.too_little_time(replace(usual, forward=0.00091), spared) is None
    assert planner.too_little_time(replace(usual, forward=0.00089), spared) == too_little
    assert planner.too_little_time(replace(usual, forward=0.00089, load=0.001), spared) is None
    assert planner.too_little_time(replace(usual, frozen_share=0.91), spared) is None
    assert planner.too_little_time(replace(usual, frozen_share=0.89), spared) == too_little


def test_too_few_samples() -> None:
    assert planner.too_few_samples(workload(10**5, epochs=1), requested=True) == Declined("no sample is seen twice")
    few = Declined("there are too few samples and epochs for caching to pay")
    assert planner.too_few_samples(workload(100, epochs=3), requested=False) == few
    assert planner.too_few_samples(workload(100, epochs=3), requested=True) is None
    assert planner.too_few_samples(workload(100, epochs=10), requested=False) is None
    assert planner.too_few_samples(workload(100, epochs=10, views=8), requested=False) is not None
    assert planner.too_few_samples(workload(1000, epochs=2), requested=False) is None


def test_the_first_tier_with_room() -> None:
    sizes = {DEVICE: 10**6, MEMORY: 10**7, DISK: 10**8}

    def chosen(wanted: int, device: str, *tiers: str) -> str | None:
        return planner.choose_tier(wanted, torch.device(device), tiers, free=lambda tier, _: sizes[tier])

    wanted = (400_000, 400_001, 5_000_000, 5_000_001, 90_000_001)
    found = [chosen(size, "cuda", DEVICE, MEMORY, DISK) for size in wanted]
    assert found == [DEVICE, MEMORY, MEMORY, DISK, None]
    assert chosen(1, "cpu", DEVICE, MEMORY, DISK) == MEMORY
    assert chosen(5_000_001, "cpu", DEVICE, MEMORY) is None


def test_free_bytes() -> None:
    assert 0 < planner.free_bytes(MEMORY, CPU) < 1 << 62
    assert planner.free_bytes(DISK, CPU) >= 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_a_disk_in_memory_has_no_free_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = Path("/proc/mounts").read_text().split("\n")
    memory = next((mount.split()[1] for mount in mounts if " tmpfs " in mount), None)
    if memory is None:
        pytest.skip("nothing is mounted in memory")
    monkeypatch.setattr("tempfile.tempdir", memory)
    assert planner.free_bytes(DISK, CPU) == 0


def test_bytes_as_text() -> None:
    assert [planner.format_bytes(size) for size in (7, 1e3, 2.5e6, 3e9, 4e12)] == [
        "7 B", "1 kB", "2 MB", "3.0 GB", "4000.0 GB",
    ]  # fmt: skip
