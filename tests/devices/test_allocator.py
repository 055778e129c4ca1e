"""Freed memory is kept for the next step during training, and only then."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the allocator is that of glibc on Linux")

# Processes of their own, because the state of the heap depends on all earlier allocations.
ALONE = """
import json, resource
import tests.helpers.lean
import torch
from finetune.devices.allocator import freed_memory_kept

def pages_cleared():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        blocks = [torch.ones(size * 2**18) for size in (1, 8, 40, 64)]  # megabytes
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = {"outside": pages_cleared()}
with freed_memory_kept(torch.device("cpu")):
    pages_cleared()
    found["inside"] = pages_cleared()
"""

IN_FIT = """
from finetune import FineTuner
from finetune.callbacks import Callback

class Count(Callback):
    def on_epoch_end(self, run):
        found["in fit"] = min(pages_cleared() for _ in range(4))  # the first ones grow the heap

data = (torch.randn(20, 8), torch.arange(20) % 5)
FineTuner(torch.nn.Linear(8, 5), device="cpu").fit(data, epochs=1, callbacks=[Count()], progress=False)
with open("/proc/self/statm") as statm:
    before = int(statm.read().split()[1])
with freed_memory_kept(torch.device("cpu")):
    torch.ones(200 * 2**18)
with open("/proc/self/statm") as statm:
    found["left"] = int(statm.read().split()[1]) - before
"""


def measured(script: str, **environment: str) -> dict[str, int]:
    """Return the number of pages zeroed for blocks of 1 to 64 MB, and the number kept after freeing 200 MB."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    ended = subprocess.run(
        [sys.executable, "-c", f"{script}\nprint(json.dumps(found))"],
        env=given | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(ended.stdout.splitlines()[-1])
    return found


def test_freed_memory_is_reused_during_training_and_returned_at_the_end() -> None:
    found = measured(ALONE + IN_FIT)

    assert found["inside"] < found["outside"] / 20
    assert found["in fit"] < found["outside"] / 20
    assert found["left"] * os.sysconf("SC_PAGE_SIZE") < 20e6


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_allocator_settings_in_the_environment_take_precedence(name: str) -> None:
    found = measured(ALONE, **{name: "1" if name == "MALLOC_ARENA_MAX" else "glibc.malloc.arena_max=1"})

    assert found["inside"] > found["outside"] / 2
