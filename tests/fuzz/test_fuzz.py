"""A sample of each fuzzing campaign, and what a campaign notices."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from finetune.errors import DataError
from tests.fuzz.campaign import Campaign, mutations
from tests.fuzz.mutations import changed_checkpoint, damaged, is_sealed, sealed, unpacked
from tests.fuzz.readers import READERS, Reader, _loads, checkpoint_seeds


@pytest.mark.parametrize(("name", "count"), [("checkpoint", 25), ("table", 50), ("picture", 200)])
def test_hostile_files_are_read_or_refused(name: str, count: int, tmp_path: Path) -> None:
    campaign = Campaign(READERS[name], tmp_path, limited=False)
    for content in itertools.islice(mutations(READERS[name], Random(0)), count):
        campaign.try_one(content)

    assert not {name: path.with_suffix(".txt").read_text() for name, path in campaign.findings.items()}
    assert campaign.outcomes.keys() == {"loaded", "refused"}, "both are met"


def test_a_changed_checkpoint_has_a_valid_checksum_and_a_damaged_one_has_not() -> None:
    seed = checkpoint_seeds()[0]
    found = unpacked(seed)
    assert found is not None
    assert is_sealed(seed)
    assert is_sealed(sealed(*found))
    rng = Random(0)
    assert 20 < sum(is_sealed(changed_checkpoint(rng, seed, [None])) for _ in range(40)) < 40
    assert not any(is_sealed(other) for _ in range(40) if (other := damaged(rng, seed)) != seed)


def raises_another_error(content: bytes, folder: Path) -> str:
    raise KeyError("a")


def takes_memory(content: bytes, folder: Path) -> str:
    return "loaded" if bytearray(40 << 20) else "refused"


def takes_time(content: bytes, folder: Path) -> str:
    while True:
        pass


def warns_often(content: bytes, folder: Path) -> str:
    for k in range(200):
        warnings.warn(f"{k}", UserWarning, stacklevel=1)
    return "loaded"


def names_no_file(content: bytes, folder: Path) -> str:
    def read() -> None:
        raise DataError("The table is damaged.")

    return "loaded" if _loads(read, folder / "a.csv") else "refused"


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (raises_another_error, "KeyError"),
        (takes_memory, "memory after loaded"),
        (takes_time, "TimeUp"),
        (warns_often, "records"),
        (names_no_file, "the file is not named"),
    ],
)
def test_a_broken_promise_is_found(read: Callable[[bytes, Path], str], found: str, tmp_path: Path) -> None:
    campaign = Campaign(Reader(list, damaged, read, 10, 1), tmp_path)
    outcome = campaign.try_one(b"content")
    campaign.write()

    assert found.casefold() in outcome.casefold()
    assert [path.read_bytes() for path in campaign.findings.values()] == [b"content"]
    assert json.loads((tmp_path / "figures.json").read_text())["found"] == 1
