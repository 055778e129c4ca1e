"""What is fuzzed: the readers of files that may come from strangers, with files for them to begin with."""

from __future__ import annotations

import io
import itertools
import tempfile
import wave
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from PIL import Image

from finetune import FineTuner
from finetune.checkpoint import verify
from finetune.data.audit import audit
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.sources.image_files import read_image, verify_image
from finetune.data.sources.open_source import open_source
from finetune.data.sources.sound_files import read_waveform
from finetune.errors import CheckpointError, FineTuneError
from tests.fuzz import mutations
from tests.helpers import hostile
from tests.helpers.image_files import picture

_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_MOST_PIXELS = 2**21  # so that a fuzzer meets the limit, and memory beyond it shows
_PLAIN = [value for value in hostile.VALUES.values() if not isinstance(value, torch.Tensor)]


class Reader(NamedTuple):
    """A reader under test.

    Attributes:
        seeds: Function that returns files to begin with.
        mutate: Function that changes one.
        read: Function that reads one, at a path in an empty folder. It returns what happened in a word, such as
            `"loaded"`, and raises an AssertionError if a promise is broken.
        megabytes: Most memory that reading may take.
        seconds: Most time that it may take.
    """

    seeds: Callable[[], list[bytes]]
    mutate: Callable[[Random, bytes], bytes]
    read: Callable[[bytes, Path], str]
    megabytes: int
    seconds: int


# ---------------------------------------------------------------------- checkpoints


def checkpoint_seeds() -> list[bytes]:
    """Return checkpoints of a run that was interrupted, of its model, and of models with other heads and inputs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hostile.run_content(folder)
        tuner = FineTuner(hostile.net(), device="cpu")
        saved = [folder / "within.safetensors", folder / "last.safetensors"]
        saved.append(tuner.save_checkpoint(folder / "plain.safetensors"))
        saved.append(tuner.replace_head(5).freeze("0").save_checkpoint(folder / "head.safetensors"))
        return [path.read_bytes() for path in saved]


def read_checkpoint(content: bytes, folder: Path) -> str:
    """Read a checkpoint in every way. One with an invalid checksum must be refused in all."""
    path = folder / "a.safetensors"
    path.write_bytes(content)
    ways: list[Callable[[], Any]] = [partial(verify.verify, path)]
    ways += [partial(hostile.WAYS[name], path, folder) for name in ("load_into", "start", "load")]
    if zlib.crc32(content) % 4 == 0:  # the slow one
        ways += [partial(hostile.resume, path, folder)]
    loaded = [_loads(way, path, CheckpointError) for way in ways]
    assert mutations.is_sealed(content) or not any(loaded), "a file with an invalid checksum is loaded"
    return "loaded" if any(loaded) else "refused"


# ---------------------------------------------------------------------- tables


def table_seeds() -> list[bytes]:
    """Return tables of every kind that is read, as CSV and Parquet."""
    texts = [
        "path,label\na.png,cat\nb.png,dog\na.png,dog\n",
        "text,label\ngood film,1\nbad film,0\nfine,1\n",
        '"text";"label"\n"a ""b""; c";"x"\n"two\nlines";"y"\n',
        "premise\thypothesis\tlabel\na b\tc d\t1\ne f\tg h\t0\n",
        "path,label_a,label_b,is_valid\na.png,1,2.5,true\nb.png,3,4,false\n",
        ",text,stars,split\n0,a b,1,train\n1,c d,2,val\n2,e f,1,test\n",
        "a.png,cat\nb.png,dog\na.png,cat\n",
        "text,label\na b,x|y\nc d,x\ne f,y\n",
    ]
    found = [text.encode() for text in texts] + [texts[1].encode("utf-16"), texts[1].encode("utf-8-sig")]
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return found
    columns: list[dict[str, Any]] = [
        {"text": ["good film", "bad film"], "label": [1, 0]},
        {"image": [{"bytes": b"P5 1 1 255 a", "path": None}, {"bytes": None, "path": "a.png"}], "label": ["a", "b"]},
        {"path": ["a.png", "b.png"], "label_a": [1.0, None], "label_b": [2, 3], "split": ["train", "val"]},
    ]
    for each in columns:
        pyarrow.parquet.write_table(pyarrow.table(each), file := io.BytesIO())
        found.append(file.getvalue())
    return found


def read_table(content: bytes, folder: Path) -> str:
    """Open a table in every way, and read its first row."""
    path = folder / ("t.parquet" if content[:4] == b"PAR1" else "t.csv")
    path.write_bytes(content)
    for name in ("a.png", "b.png"):
        picture(1, (4, 4)).save(folder / name)

    def opened(takes: str | None, labeled: bool) -> None:
        source = open_source(path, takes=takes, labeled=labeled)
        audit(source, preprocessing=Preprocessing(crop_size=(4, 4)))[0]

    ways = list(itertools.product((None, "text", "image"), (True, False)))
    loaded = [_loads(partial(opened, *way), path) for way in ways]
    return "loaded" if any(loaded) else "refused"


# ---------------------------------------------------------------------- pictures and sounds


def picture_seeds() -> list[bytes]:
    """Return small images of every format and mode, and a sound of every width."""
    found = []
    for format in _FORMATS:
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"):
            image = picture(1, (9, 7)).convert("L" if mode in ("I;16", "I", "F") else "RGB").convert(mode)
            try:
                image.save(file := io.BytesIO(), format=format)
            except (OSError, ValueError, KeyError):  # a mode that the format does not have
                continue
            found.append(file.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    options: list[dict[str, Any]] = [{"format": "PNG", "exif": exif}, {"format": "JPEG", "exif": exif}]
    for each in (*options, {"format": "JPEG", "progressive": True}):
        picture(2, (9, 7)).save(file := io.BytesIO(), **each)
        found.append(file.getvalue())
    for format in ("GIF", "PNG", "TIFF", "WEBP"):
        frames = [picture(k, (9, 7)) for k in range(3)]
        frames[0].save(file := io.BytesIO(), format=format, save_all=True, append_images=frames[1:])
        found.append(file.getvalue())
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        picture(3, (9, 7)).save(file := io.BytesIO(), format="TIFF", compression=compression)
        found.append(file.getvalue())
    for width in (1, 2, 3, 4):
        with wave.open(file := io.BytesIO(), "wb") as sound:
            sound.setparams((1 + width % 2, width, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(range(48)) * 2)
        found.append(file.getvalue())
    return found


def read_picture(content: bytes, folder: Path) -> str:
    """Read an image or a sound in every way."""
    sound = content[:4] == b"RIFF" and content[8:12] == b"WAVE"
    path = folder / ("a.wav" if sound else "a.png")
    path.write_bytes(content)
    if sound:
        return "loaded" if _loads(lambda: read_waveform(path), path) else "refused"
    with _fewer_pixels():
        verified = _loads(lambda: verify_image(path), path)
        prepared = _loads(lambda: _prepared(path), path)
    return "loaded" if verified and prepared else "refused"


def _prepared(path: Path) -> None:
    image = read_image(path)
    for channels in (1, 3):
        made = Preprocessing(crop_size=(8, 8), mean=(0.5,) * channels, std=(0.5,) * channels, channels=channels)
        made.check(image)
        assert made.prepare(image).shape == (channels, 8, 8), "a picture of another size"


@contextmanager
def _fewer_pixels() -> Iterator[None]:
    most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, _MOST_PIXELS
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = most


def _loads(read: Callable[[], Any], path: Path, kind: type[FineTuneError] = FineTuneError) -> bool:
    """Return whether a file is read, and not refused with a short error of its kind that names it."""
    try:
        read()
        return True
    except FineTuneError as error:
        said, named = str(error), path.name in str(error) or not isinstance(error, kind)
    assert named, f"the file is not named: {said}"
    assert len(said) < 4000, f"a message of {len(said)} letters"
    return False


def changed_table(rng: Random, content: bytes) -> bytes:
    """Return a table with damage, or with a line repeated."""
    lines: Sequence[bytes] = content.splitlines(keepends=True)
    if content[:4] != b"PAR1" and lines and not rng.randrange(4):
        at = rng.randrange(len(lines))
        return b"".join([*lines[:at], *[lines[at]] * rng.choice((2, 50)), *lines[at:]])
    return mutations.damaged(rng, content)


def changed_checkpoint(rng: Random, content: bytes) -> bytes:
    """Return a checkpoint with hostile content, or damage."""
    return mutations.changed_checkpoint(rng, content, _PLAIN)


READERS = {
    "checkpoint": Reader(checkpoint_seeds, changed_checkpoint, read_checkpoint, 300, 10),
    "table": Reader(table_seeds, changed_table, read_table, 100, 10),
    "picture": Reader(picture_seeds, mutations.changed_picture, read_picture, 200, 10),
}
"""All readers, by name."""
