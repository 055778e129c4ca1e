"""The served model, photographs for it, and `finetune serve` as a process."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from finetune import FineTuner

CLASSES = 10
_MIN_SECONDS = 1.0


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        port: Port on loopback.
        process: Number of its process.
    """

    port: int
    process: int

    @property
    def megabytes(self) -> float:
        """Resident memory in MB."""
        pages = int(Path(f"/proc/{self.process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def save_model(name: str, crop: int, files: list[bytes], path: Path) -> FineTuner:
    """Save a model with random weights, whose answers to these images differ, and return its tuner."""
    torch.manual_seed(0)
    tuner = FineTuner(name, weights=None, device="cpu", preprocessing={"crop_size": crop}).replace_head(CLASSES)
    tuner.classes = [f"class {label}" for label in range(CLASSES)]
    head = next(module for module in reversed(list(tuner.model.modules())) if isinstance(module, torch.nn.Linear))
    logits = tuner.predict(files)
    with torch.no_grad():
        head.weight.div_(logits.std(0)[:, None])
        head.bias.sub_(logits.mean(0)).div_(logits.std(0))
    tuner.save_checkpoint(path)
    return tuner


def photographs(count: int, size: tuple[int, int] = (640, 480)) -> list[bytes]:
    """Return different JPEG files with smooth colors and some noise, about as large as photographs of this size."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        coarse = torch.rand(1, 3, 6, 8, generator=generator) * torch.rand(1, 3, 1, 1, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=size[::-1], mode="bicubic")[0]
        pixels = (255 * smooth + 6 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).byte()
        file = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=85)
        found.append(file.getvalue())
    return found


@contextmanager
def served(checkpoint: Path, threads: int, *options: str) -> Iterator[Server]:
    """Run `finetune serve` on a free port, with a number of threads per forward pass."""
    command = [sys.executable, "-m", "finetune", "serve", str(checkpoint), "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = next((word for word in process.stdout.readline().split() if word.startswith("http://")), "")
        try:
            yield Server(int(url.rpartition(":")[2]), process.pid)
        finally:
            process.terminate()


def own_limits(tuner: FineTuner, files: Sequence[bytes], batch_size: int) -> tuple[float, float]:
    """Return the images per second of the model alone on prepared images, and of `classify` on files, in batches."""
    assert tuner.preprocessing is not None
    pictures = [Image.open(io.BytesIO(file)) for file in files]
    prepared = torch.stack([tuner.preprocessing.prepare(picture) for picture in pictures])
    batch = prepared.repeat(-(-batch_size // len(prepared)), 1, 1, 1)[:batch_size]
    several = [files[place % len(files)] for place in range(batch_size)]
    return (
        _rate(lambda: tuner.predict(batch, batch_size=batch_size), batch_size),
        _rate(lambda: tuner.classify(several, batch_size=batch_size), batch_size),
    )


def _rate(function: object, items: int) -> float:
    assert callable(function)
    function()  # warms up
    begun, calls = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begun) < _MIN_SECONDS or not calls:
        function()
        calls += 1
    return calls * items / seconds
