"""Malformed and hostile pictures, tables, folders and checkpoints, each read in a child with limits."""

from __future__ import annotations

import atexit
import json
import random
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from benchmarks.digests import layers
from benchmarks.reliability.children import Ended, in_child
from benchmarks.reliability.safeties import take_out
from benchmarks.rows import Row
from finetune import FineTuner
from finetune.errors import FineTuneError
from tests.fuzz.readers import READERS
from tests.helpers.files import SPECIAL, make_deep, make_special
from tests.helpers.hostile import named_content
from tests.helpers.hostile import net as hostile_net

TITLE = "Malformed inputs"
COUNTS = {
    "inputs": "inputs",
    "loaded": "read",
    "refused": "clear errors",
    "raw": "other errors",
    "hung": "hung",
    "heavy": "over 1 GB",
    "admitted": "not images, yet read",
}
FAULTS = ("raw", "hung", "heavy", "admitted")
CONTROLS = ("regular files only", "known formats only", "the pixel cap", "the limit of allocations")

_EACH = 20  # inputs of a trial of mutated files
_MEGABYTES, _SECONDS = 6000, 20
_HEAVY = 1000  # megabytes
_NOT_READ = ("special files", "other formats")  # kinds of which nothing may be read


def trials(*, sample: bool) -> Iterator[tuple[str, str, int]]:
    """Yield the safety that is taken out, the kind of input and the number of each trial."""
    for number in range(1 if sample else 20):
        yield from (("", name, number) for name in READERS)
    yield from (("", name, 0) for name in _HOSTILE)
    yield "known formats only", "other formats", 0
    if sample:  # the others wait for limits of time
        return
    yield "regular files only", "special files", 0
    yield "the pixel cap", "bombs", 0
    yield "the limit of allocations", "bombs", 0


def run(safety: str, kind: str, draw: random.Random) -> Row:
    """Read some inputs of a kind."""
    _check_sane(kind)
    found: Row = {**dict.fromkeys(COUNTS, 0), "megabytes": 0.0, "seconds": 0.0, "errors": []}
    with tempfile.TemporaryDirectory() as scratch:
        for i, read in enumerate(_inputs(kind, draw)):
            place = Path(scratch) / str(i)
            place.mkdir()
            ended = in_child(partial(_read, safety, read, place), seconds=_SECONDS, megabytes=_MEGABYTES)
            outcome = _outcome(ended)
            found["inputs"] += 1
            found[outcome] += 1
            found["heavy"] += ended.megabytes > _HEAVY
            found["admitted"] += kind in _NOT_READ and outcome == "loaded"
            found["megabytes"] = max(found["megabytes"], ended.megabytes)
            found["seconds"] = max(found["seconds"], round(ended.seconds, 2))
            if outcome in FAULTS:
                found["errors"].append(f"{i}: {ended.error or ended.code}")
    return found


def _inputs(kind: str, draw: random.Random) -> Iterator[Callable[[Path], str]]:
    if kind in READERS:
        reader = READERS[kind]
        for _ in range(_EACH):
            yield partial(reader.read, reader.mutate(draw, draw.choice(_seeds(kind))))
    else:
        _bomb()  # once, and not in a child
        for read in _HOSTILE[kind]:
            yield partial(_attempt, read)


@cache
def _check_sane(kind: str) -> None:
    """Check that what reads the hostile inputs of a kind reads sane ones, or it would refuse everything."""
    for read in _SANE.get(kind, ()):
        with tempfile.TemporaryDirectory() as place:
            ended = in_child(partial(_attempt, read, Path(place)))
            if ended.value != "loaded":
                raise RuntimeError(f"{kind}: a sane input is not read: {ended}")


def _outcome(ended: Ended) -> str:
    if ended.hung:
        return "hung"
    return ended.value if ended.value in ("loaded", "refused") else "raw"


def _read(safety: str, read: Callable[[Path], str], place: Path) -> str:
    """Read an input, and return how that ended."""
    take_out(safety)
    return read(place)


def _attempt(read: Callable[[Path], Any], place: Path) -> str:
    try:
        read(place)
    except FineTuneError as error:
        return "refused" if len(str(error)) < 4000 else "a long message"
    return "loaded"


@cache
def _seeds(kind: str) -> list[bytes]:
    return READERS[kind].seeds()


# ---------------------------------------------------------------------- hostile inputs


def _tuner() -> FineTuner:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2))
    return FineTuner(model, device="cpu", preprocessing={"crop_size": (8, 8), "resize_size": 8})


def _predict(path: Path) -> None:
    _tuner().predict([path])


def _train(folder: Path) -> None:
    _tuner().fit(folder, epochs=1, batch_size=4, progress=False)


def _folder(place: Path) -> Path:
    """Write a folder with two classes of four images each."""
    for i in range(8):
        (place / "abxy"[i % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (10, 10), (i * 30, 9, 200)).save(place / "abxy"[i % 2] / f"{i}.png")
    return place


def _png(place: Path, width: int, height: int, name: str = "a.png") -> Path:
    """Write a small PNG of many black pixels."""
    rows = zlib.compressobj(9)
    data = b"".join([*(rows.compress(bytes(1 + -(-width // 8))) for _ in range(height)), rows.flush()])
    chunks = [(b"IHDR", struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    path = place / name
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    )
    return path


def _zip_bomb(place: Path) -> None:
    FineTuner(layers(), weights=_bomb(), device="cpu")


@cache
def _bomb() -> Path:
    """Write a file of torch.save whose one tensor is 1.5 GB of zeros, compressed."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.save({"0.weight": torch.zeros(2)}, folder / "small.pt")
    with (
        zipfile.ZipFile(folder / "small.pt") as small,
        zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as large,
    ):
        for name in small.namelist():
            with large.open(name, "w", force_zip64=True) as member:
                for part in [bytes(1 << 20)] * 1500 if name.endswith("data/0") else [small.read(name)]:
                    member.write(part)
    return folder / "bomb.pt"


def _head(place: Path, outputs: int, times: int) -> None:
    """Load a checkpoint whose head is replaced several times."""
    path = FineTuner(hostile_net(), device="cpu").replace_head(5).save_checkpoint(place / "a.safetensors")
    from finetune.checkpoint import file

    stored = file.read(path)
    change = {**stored.content["replacements"][0], "n": outputs}
    file.write(path, {**stored.content, "replacements": [change] * times}, version=stored.version)
    FineTuner.load_checkpoint(path, hostile_net(), device="cpu")


def _large_model(place: Path) -> None:
    from finetune.checkpoint import file, schema

    content = named_content(place)
    content["model"]["source"] = {"family": "torchvision", "name": "vit_b_16", "options": {"image_size": 10_000}}
    content["model"]["weights"] = dict(list(content["model"]["weights"].items())[:2])
    file.write(place / "a.safetensors", content, version=schema.format_version())
    FineTuner.load_checkpoint(place / "a.safetensors", device="cpu")


def _large_header(place: Path) -> None:
    path = place / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    FineTuner.load_checkpoint(path, layers(), device="cpu")


def _large_tensor(place: Path) -> None:
    path = place / "a.safetensors"
    header = {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}, "__metadata__": {"sha256": "0" * 64}}
    plain = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(plain)) + plain)
    FineTuner.load_checkpoint(path, layers(), device="cpu")


def _table(place: Path, content: bytes) -> None:
    (place / "a.csv").write_bytes(content)
    FineTuner(layers(), device="cpu").fit(place / "a.csv", epochs=1, progress=False)


def _script(place: Path, name: str, content: bytes) -> None:
    (place / name).write_bytes(content)
    _predict(place / name)


def _of_format(format: str, place: Path) -> None:
    """Predict for an image of a format that is read by few programs, and whose name says PNG."""
    Image.new("1" if format == "MSP" else "L", (9, 9)).save(place / "a.png", format=format)
    _predict(place / "a.png")


def _special(kind: str, use: str, place: Path) -> None:
    path = place / {"picture": "a.png", "table": "a.csv", "sound": "a.wav", "weights": "a.pt"}.get(
        use, "last.safetensors"
    )
    make_special(path, kind)
    if use == "picture":
        _predict(path)
    elif use == "table":
        _table_at(path)
    elif use == "sound":
        from finetune.data.sources.sound_files import read_waveform

        read_waveform(path)
    elif use == "weights":
        FineTuner(layers(), weights=path, device="cpu")
    else:
        X, y = torch.zeros(8, 4), torch.arange(8) % 3
        FineTuner(layers(), device="cpu").fit((X, y), checkpoint_dir=place, resume_from="auto", progress=False)


def _table_at(path: Path) -> None:
    FineTuner(layers(), device="cpu").fit(path, epochs=1, progress=False)


def _with_entry(change: Callable[[Path], Any], place: Path) -> None:
    change(_folder(place))
    _train(place)


_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) show showpage\n%%EOF\n"

_SANE: dict[str, Sequence[Callable[[Path], Any]]] = {
    "special files": [lambda place: _predict(_png(place, 9, 9))],
    "other formats": [lambda place: _predict(_png(place, 9, 9))],
    "bombs": [lambda place: _predict(_png(place, 900, 900)), partial(_head, outputs=5, times=1)],
    "folders": [lambda place: _train(_folder(place))],
}

_HOSTILE: dict[str, Sequence[Callable[[Path], Any]]] = {
    "special files": [
        partial(_special, kind, use) for kind in SPECIAL for use in ("picture", "table", "sound", "weights", "last")
    ],
    "other formats": [
        partial(_script, name=name, content=content)
        for name, content in {
            "a.png": _EPS,
            "b.jpg": _EPS,
            "c.png": b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n%%EOF\n",
            "d.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "e.png": b"#!/bin/sh\ntouch there\n",
            "f.png": b"PK\x03\x04" + bytes(100),
            "g.png": b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {0x3c};\n",
        }.items()
    ]
    + [partial(_of_format, format) for format in ("PCX", "SGI", "IM", "MSP")],
    "bombs": [
        lambda place: _predict(_png(place, 30_000, 30_000)),
        lambda place: _predict(_png(place, 60_000, 60_000)),
        lambda place: _predict(_png(place, 1, 5000)),
        lambda place: _predict(_png(place, 60_000, 1)),
        lambda place: _train(_png(_folder(place) / "a", 50_000, 20_000).parent.parent),
        _zip_bomb,
        partial(_head, outputs=50_000_000, times=20),
        _large_model,
        _large_header,
        _large_tensor,
        lambda place: _table(place, b"text,label\n" + b"x" * (100 << 20) + b",a\n"),
        lambda place: _table(place, b"text,label\n\0\0\0,a\n"),
        lambda place: _table(place, b'text,label\n"' + b"a,b\n" * (5 << 20)),
        lambda place: _table(place, b"," * (2 << 20) + b"\n" + b"," * (2 << 20)),
        lambda place: _table(place, b"\xff\xfe" + bytes(range(256)) * 1000),
    ],
    "folders": [
        partial(_with_entry, change)
        for change in (
            lambda place: (place / "a" / "loop").symlink_to(".", target_is_directory=True),
            lambda place: (
                (place / "a" / "one").symlink_to("../b", target_is_directory=True),
                (place / "b" / "two").symlink_to("../a", target_is_directory=True),
            ),
            lambda place: (place / "c").symlink_to("..", target_is_directory=True),
            lambda place: (place / "a" / "gone.png").symlink_to("nowhere.png"),
            lambda place: (place / "a" / "self.png").symlink_to("self.png"),
            lambda place: make_special(place / "a" / "pipe.png", "named pipe"),
            lambda place: make_special(place / "a" / "device.png", "device"),
            lambda place: make_special(place / "a" / "socket.png", "socket"),
            lambda place: make_special(place / "a" / "folder.png", "folder"),
            lambda place: make_deep(place / "a"),
            lambda place: (place / "a" / "empty.png").write_bytes(b""),
            lambda place: (place / "empty").mkdir(),
            lambda place: _png(place / "a", 4, 4, "new\nline.png"),
            lambda place: _png(place / "a", 4, 4, "x" * 250 + ".png"),
            lambda place: _png(place / "a", 4, 4, "\udcff\udcfe.png"),
            lambda place: Image.new("RGB", (9, 9)).save(place / "a" / "other.png", format="JPEG"),
        )
    ],
}
