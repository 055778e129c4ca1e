"""Flipped bits and lost ends: who notices them, and whether a run resumes from its previous file, to the same end."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from benchmarks.digests import convolutions
from benchmarks.reliability.children import in_child
from benchmarks.reliability.safeties import take_out
from benchmarks.reliability.setups import content
from benchmarks.rows import Row
from finetune import CheckpointError, FineTuner
from finetune.checkpoint import file
from finetune.checkpoint.resume import LAST, NUMBERED
from finetune.nested import tensors_of

TITLE = "Damaged files"
COUNTS = {"files": "files", "refused": "noticed", "silent": "loaded in silence", "raw": "failed otherwise"}
FAULTS = ("silent", "raw")
CONTROLS = ("the checksum", "the previous file")

_RUN = "full_finetune, batch norm, dropout"
_FLIPS, _CUTS, _RESUMED = "bit flips", "truncations", "a damaged last, resumed"
_EACH = 100  # files of a trial
_MEGABYTES, _SECONDS = 4000, 300


class _Files(NamedTuple):
    """The same tensors in three formats, a run to resume, and the digest of that run."""

    finetune: bytes
    torch: bytes
    safetensors: bytes
    run: dict[str, bytes]
    digest: str


def trials(*, sample: bool) -> Iterator[tuple[str, str, int]]:
    """Yield the safety that is taken out, the case and the number of each trial."""
    for kind, rounds in ((_FLIPS, 10), (_CUTS, 5)):
        for number in range(1 if sample else rounds):
            for reader in _READERS:
                yield "", f"{kind}, {reader}", number
    for number in range(1 if sample else 3):  # truncations show in the header, too
        yield "the checksum", f"{_FLIPS}, finetune", number
    for number in range(1 if sample else 20):
        yield "", _RESUMED, number
        yield "the previous file", _RESUMED, number


def run(safety: str, case: str, draw: random.Random) -> Row:
    """Damage files and read them."""
    seed = draw.getrandbits(32)
    if case == _RESUMED:
        digest = _files(safety).digest
        work: Callable[[], Row] = partial(_resumed, safety, _files(safety).run, digest, seed)
    else:
        kind, reader = case.split(", ")
        work = partial(_read, safety, getattr(_files(""), reader.removesuffix(".load")), kind, reader, seed)
    ended = in_child(work, seconds=_SECONDS, megabytes=_MEGABYTES)
    if ended.value is None:
        raise RuntimeError(f"{case}: {ended}")
    other = case != _RESUMED and not case.endswith("finetune")  # the faults of other readers are theirs
    return {**dict.fromkeys(COUNTS, 0), **ended.value, "megabytes": ended.megabytes, "other": other}


_READERS: dict[str, tuple[Callable[[Path], Any], type[Exception]]] = {
    "finetune": (lambda path: FineTuner.load_checkpoint(path, convolutions(), device="cpu"), CheckpointError),
    "torch.load": (lambda path: torch.load(path, weights_only=True), Exception),
    "safetensors": (safetensors.torch.load_file, Exception),
}


def _read(safety: str, whole: bytes, kind: str, reader: str, seed: int) -> Row:
    take_out(safety)
    draw = random.Random(seed)
    read, expected = _READERS[reader]
    found = {"files": _EACH, "refused": 0, "silent": 0, "raw": 0}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / ("file.pt" if reader == "torch.load" else "file.safetensors")
        path.write_bytes(whole)
        read(path)  # or the reader refuses every file
        for _ in range(_EACH):
            path.write_bytes(_damaged(whole, kind, draw))
            try:
                read(path)
                found["silent"] += 1
            except expected:
                found["refused"] += 1
            except Exception:
                found["raw"] += 1
    return found


def _resumed(safety: str, run: dict[str, bytes], digest: str, seed: int) -> Row:
    """Damage the `last` of a run and go on; "noticed" if it goes on from a whole file to the same end."""
    take_out(safety)
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "run"
        place.mkdir()
        for name, whole in run.items():
            damaged = name == LAST
            (place / name).write_bytes(_damaged(whole, draw.choice([_FLIPS, _CUTS]), draw) if damaged else whole)
        try:
            same = content(_RUN, place) == digest
        except CheckpointError:
            return {"files": 1, "raw": 1}  # nothing is left to go on from
        return {"files": 1, "refused": int(same), "silent": int(not same)}


def _damaged(whole: bytes, kind: str, draw: random.Random) -> bytes:
    if kind == _CUTS:
        return whole[: draw.randrange(len(whole))]
    damaged = bytearray(whole)
    damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


@cache
def _files(safety: str) -> _Files:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "run"
        content(_RUN, Path(scratch) / "first")  # imports what the set-up needs
        digest = in_child(partial(_train, safety, place)).value
        run = {path.name: path.read_bytes() for path in place.glob("*.safetensors") if not path.match(NUMBERED)}
        tensors = {str(i): tensor.clone() for i, tensor in enumerate(tensors_of(file.read(place / LAST).content))}
        torch.save(tensors, Path(scratch) / "saved")
        saved = (Path(scratch) / "saved").read_bytes()
        return _Files(run[LAST], saved, safetensors.torch.save(tensors), run, digest)


def _train(safety: str, place: Path) -> str:
    take_out(safety)
    return content(_RUN, place)
