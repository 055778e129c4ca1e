"""Memory that a step frees is there for the next one, while training and no longer."""

import resource
import sys

import pytest
import torch

from finetune import FineTuner
from finetune.callbacks import Callback
from finetune.demo import DigitNet
from finetune.training.allocation import freed_memory_kept

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is that of Linux")


def pages_cleared() -> int:
    """Return how many pages the system hands out for blocks of 1 to 64 MB that are taken and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [torch.ones(size * 2**18) for size in (1, 8, 40, 64)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_taken_again_within_the_block_and_goes_back_at_its_end():
    outside = pages_cleared()
    with freed_memory_kept(torch.device("cpu")):
        pages_cleared()
        inside = pages_cleared()

    assert inside < outside / 20
    assert pages_cleared() > outside / 2


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_who_set_the_allocator_keeps_those_settings(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    outside = pages_cleared()
    with freed_memory_kept(torch.device("cpu")):
        assert pages_cleared() > outside / 2


def test_it_is_kept_while_fit_trains():
    cleared = {}

    class Count(Callback):
        def on_epoch_end(self, run) -> None:
            cleared["before"] = pages_cleared()
            cleared["during"] = pages_cleared()

    data = (torch.randn(20, 1, 8, 8), torch.arange(20) % 5)
    FineTuner(DigitNet(5), device="cpu").fit(data, callbacks=[Count()], progress=False)

    assert cleared["during"] < pages_cleared() / 20
