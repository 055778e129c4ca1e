"""Print digests of ten short runs over different models and strategies, to compare two commits bit for bit.

    python -m benchmarks.digests > before.txt     # on one commit
    python -m benchmarks.digests > after.txt      # on another, on the same machine
    diff before.txt after.txt

A digest covers the trained weights and the history, except for its times and what follows from the rest. The runs use
the public interface only, so the same file works on any commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from finetune import FineTuner, LayerDecay, Phase
from finetune.callbacks import EMA, L2SP, EarlyStopping, Mixup

LEFT_OUT = ("seconds", "samples_per_second", "lr_start")
IMAGES = {"crop_size": (32, 32), "resize_size": 36}


def convolutions() -> nn.Module:
    """Return a small convolutional network with batch norm and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 5)),
    )


def layers(outputs: int = 3) -> nn.Module:
    """Return a small multilayer perceptron."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 8), nn.Linear(8, outputs))


def numbers(n: int = 96) -> tuple[Tensor, Tensor]:
    """Return X [n, 4] and class indices [n]."""
    y = torch.arange(n) % 3
    return torch.eye(3, 4)[y] * 2 + torch.randn(n, 4, generator=torch.Generator().manual_seed(0)), y


def images(n: int = 48) -> tuple[Tensor, Tensor]:
    """Return X [n, 3, 24, 24] and class indices [n]."""
    y = torch.arange(n) % 3
    noise = torch.randn(n, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    return noise + y.view(-1, 1, 1, 1), y


def folder(place: Path) -> Path:
    """Write an image folder with three classes of twelve images each."""
    random = np.random.default_rng(0)
    for k in range(3):
        (place / f"class{k}").mkdir(parents=True, exist_ok=True)
        for i in range(12):
            values = random.integers(0, 150, (40, 48, 3), dtype=np.uint8) + np.uint8(40 * k)
            Image.fromarray(values).save(place / f"class{k}" / f"{i}.png")
    return place


def fitted(tuner: FineTuner, data: Any, val: Any = None, **options: Any) -> FineTuner:
    """Call `fit` and return the tuner."""
    tuner.fit(data, val, progress=False, **options)
    return tuner


def resumed(place: Path) -> FineTuner:
    """Train for two epochs, then resume from the checkpoint for another three."""
    options: dict[str, Any] = {"batch_size": 16, "lr": 1e-2, "checkpoint_dir": place / "run"}
    fitted(FineTuner(layers(), device="cpu"), numbers(), numbers(48), epochs=2, **options)
    return fitted(FineTuner(layers(), device="cpu"), numbers(), numbers(48), epochs=5, resume_from="auto", **options)


def runs(place: Path) -> dict[str, Callable[[], FineTuner]]:
    """Return the runs by name."""
    resnet: dict[str, Any] = {"weights": None, "device": "cpu", "preprocessing": IMAGES}
    by_hand = [Phase("9", 2, 1e-2), Phase(["3", "9"], 2, {"3": 1e-3, "9": 1e-2})]
    return {
        "resnet18, head, folder, augmented": lambda: fitted(
            FineTuner("resnet18", **resnet).replace_head(3).freeze(), folder(place / "images"), epochs=3
        ),
        "resnet18, last stage, cache on disk": lambda: fitted(
            FineTuner("resnet18", **resnet).replace_head(3),
            folder(place / "images"),
            strategy="last_stage",
            epochs=2,
            cache="disk",
            augment=False,
        ),
        "squeezenet, full, arrays": lambda: fitted(
            FineTuner("squeezenet1_1", weights=None, device="cpu").replace_head(3),
            images(),
            strategy="full_finetune",
            epochs=2,
        ),
        "perceptron, LP-FT, SGD, accumulation": lambda: fitted(
            FineTuner(layers(), optimizer="sgd", gradient_accumulation_steps=3, max_grad_norm=1.0, device="cpu"),
            numbers(),
            0.25,
            strategy="lp_ft",
            epochs=6,
            batch_size=8,
        ),
        "convolutions, gradual unfreezing": lambda: fitted(
            FineTuner(convolutions(), device="cpu").replace_head(3),
            images(),
            images(24),
            strategy="gradual_unfreezing",
            epochs=4,
            schedule="one_cycle",
        ),
        "convolutions, phases, cache in memory": lambda: fitted(
            FineTuner(convolutions(), device="cpu"), images(), strategy=by_hand, cache="memory"
        ),
        "convolutions, mixup, EMA, early stopping": lambda: fitted(
            FineTuner(convolutions(), device="cpu").replace_head(3),
            images(),
            images(24),
            epochs=6,
            callbacks=[Mixup(), EMA(0.9), EarlyStopping(patience=2)],
        ),
        "perceptron, regression, L2-SP, layer decay": lambda: fitted(
            FineTuner(layers(1), device="cpu", seed=3),
            (numbers()[0], numbers()[0].sum(1)),
            epochs=4,
            lr=LayerDecay(1e-2),
            callbacks=[L2SP(0.1)],
        ),
        "perceptron, LoRA": lambda: fitted(FineTuner(layers(), device="cpu"), numbers(), strategy="lora", epochs=3),
        "perceptron, resumed": lambda: resumed(place),
    }


def digest(tuner: FineTuner) -> str:
    """Return a digest of the weights and the history."""
    content = hashlib.sha256()
    for name, value in sorted(tuner.model.state_dict().items()):
        content.update(name.encode() + value.contiguous().numpy().tobytes())
    rows = [{key: value for key, value in row.items() if key not in LEFT_OUT} for row in tuner.history]
    content.update(json.dumps(rows, sort_keys=True).encode())
    return content.hexdigest()[:16]


def main() -> None:
    """Print the digest and name of each run."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.digests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    logging.disable()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        for name, run in runs(Path(place)).items():
            print(f"{digest(run())}  {name}", flush=True)


if __name__ == "__main__":
    main()
