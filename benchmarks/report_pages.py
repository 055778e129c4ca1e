"""Write a report of each kind, from 2 to 1,000 classes, to look at, and print their sizes and times.

    python -m benchmarks.report_pages --folder pages
    python -m benchmarks.report_pages --folder pages --only classes-1000 text

The images are drawn: a class is a shape in a color, so classes of neighboring colors are confused. Some names are as
unpleasant as names can be.
"""

from __future__ import annotations

import argparse
import colorsys
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from finetune import FineTuner
from finetune.callbacks import Report

SHAPES = ("disc", "square", "triangle", "ring", "cross")
NAMES = ("<script>alert('class')</script>", "Überlänge & Söhne", "שלום עולם", "a" * 60, "$x_1$ {{ 7 * 7 }}")
SIDE = 64


def draw(label: int, classes: int, rng: random.Random) -> Image.Image:
    """Return an image of a class."""
    hues = max(1, classes // len(SHAPES))
    hue = (label // len(SHAPES) + rng.gauss(0, 0.35)) / hues
    color = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, 0.7, 0.85))
    noise = np.random.default_rng(rng.randrange(2**32)).integers(150, 210, (SIDE, SIDE, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    pen, radius = ImageDraw.Draw(picture), rng.randint(12, 24)
    x, y = (rng.randint(radius, SIDE - radius) for _ in "xy")
    box = (x - radius, y - radius, x + radius, y + radius)
    match SHAPES[label % len(SHAPES)]:
        case "disc":
            pen.ellipse(box, fill=color)
        case "square":
            pen.rectangle(box, fill=color)
        case "triangle":
            pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=color)
        case "ring":
            pen.ellipse(box, outline=color, width=6)
        case _:
            pen.line((x - radius, y, x + radius, y), fill=color, width=8)
            pen.line((x, y - radius, x, y + radius), fill=color, width=8)
    return picture


def names_of(classes: int) -> list[str]:
    """Return the names of classes, among them the unpleasant ones."""
    plain = [f"{SHAPES[label % len(SHAPES)]} of color {label // len(SHAPES) + 1}" for label in range(classes)]
    return plain if classes <= 10 else [*NAMES, *plain[len(NAMES) :]]


def arrays(classes: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images uint8 [N, 3, H, W] and class indices [N]."""
    rng = random.Random(seed)
    labels = [index % classes for index in range(samples)]
    pictures = np.stack([np.asarray(draw(label, classes, rng)) for label in labels])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def network(outputs: int, **settings: Any) -> FineTuner:
    """Return a tuner of a small convolutional network."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, outputs))
    return FineTuner(model, device="cpu", preprocessing={"resize_size": SIDE, "crop_size": SIDE}, **settings)


def of_classes(path: Path, classes: int, samples: int, epochs: int) -> None:
    """Write the report on a classifier, by the callback."""
    train, val = arrays(classes, samples, 0), arrays(classes, max(samples // 4, 2 * classes), 1)
    tuner = network(classes)
    strategy = "lp_ft" if classes == 10 else None
    tuner.fit(train, val, epochs=epochs, strategy=strategy, callbacks=[Report(path)], progress=False)
    tuner.classes = names_of(classes)
    tuner.report(path, val)


def of_folder(path: Path) -> None:
    """Write the report on a classifier of a folder of files, from its checkpoint."""
    folder, rng = path.parent / "shapes", random.Random(0)
    for part, count in (("train", 60), ("val", 20)):
        for label, name in enumerate(("disc", "square")):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                draw(label, 2, rng).resize((300, 200)).save(folder / part / name / f"{index} <b>{name}.jpg")
    tuner = FineTuner("resnet18", weights=None, device="cpu", preprocessing={"crop_size": 64, "resize_size": 64})
    tuner.replace_head(2).fit(folder / "train", folder / "val", epochs=3, progress=False)
    tuner.calibrate(folder / "val").save_checkpoint(path.with_suffix(".safetensors"))
    FineTuner.load_checkpoint(path.with_suffix(".safetensors")).report(path, folder / "val", train=folder / "train")


def of_labels(path: Path) -> None:
    """Write the report on a multi-label model."""
    images, labels = arrays(40, 1000, 0)
    targets = nn.functional.one_hot(labels % 5, 5) + nn.functional.one_hot(labels // 5, 8)[:, :5] > 0
    tuner = network(5)
    tuner.fit((images[:800], targets[:800].float()), epochs=6, progress=False)
    tuner.classes = [*SHAPES[:4], NAMES[0]]
    tuner.report(path, (images[800:], targets[800:].float()))


def of_values(path: Path) -> None:
    """Write the report on a regression with two outputs."""
    images, labels = arrays(20, 1000, 0)
    targets = torch.stack([labels / 10 + 0.1 * torch.randn(1000), images.float().mean((1, 2, 3))], 1)
    tuner = network(2, loss="mse")
    tuner.fit((images[:800], targets[:800]), (images[800:], targets[800:]), epochs=8, progress=False)
    tuner.report(path, (images[800:], targets[800:]))


def of_texts(path: Path) -> None:
    """Write the report on a text classifier."""
    from examples.text import generate_reviews, small_bert

    texts, labels = generate_reviews()
    texts = [f"{text} <img src=x onerror=alert(1)>" if index % 9 == 0 else text for index, text in enumerate(texts)]
    model, tokenizer = small_bert()
    tuner = FineTuner(model, preprocessing=tokenizer, device="cpu", loss="cross_entropy")
    wrong = ["bad" if index % 7 == 0 else label for index, label in enumerate(labels)]
    tuner.fit((texts, wrong), val=0.3, epochs=12, lr=3e-3, callbacks=[Report(path)], progress=False)


PAGES: dict[str, Callable[[Path], None]] = {
    "classes-2": of_folder,
    "classes-10": lambda path: of_classes(path, 10, 1000, 8),
    "classes-120": lambda path: of_classes(path, 120, 2400, 8),
    "classes-1000": lambda path: of_classes(path, 1000, 4000, 4),
    "labels": of_labels,
    "values": of_values,
    "texts": of_texts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("report-pages"))
    parser.add_argument("--only", nargs="+", choices=PAGES, default=list(PAGES))
    options = parser.parse_args()
    for name in options.only:
        begun, path = time.perf_counter(), options.folder / f"{name}.html"
        PAGES[name](path)
        print(f"{name:<14}{path.stat().st_size / 1e6:6.2f} MB{time.perf_counter() - begun:7.1f} s with training")


if __name__ == "__main__":
    main()
