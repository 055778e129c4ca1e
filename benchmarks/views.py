"""Measure the accuracy cost of fixed views: a head trained on a few augmented versions per image, or on fresh ones.

    python -m benchmarks.views
    python -m benchmarks.views --smallest     # a smoke test, which writes no table

In each of five small transfers, a backbone is pretrained on half of the classes and frozen for the other half. Images
are PNG files in a folder per class, and the augmentation is the library's default. All augmentations are compared with
the same images, initial head, order and number of epochs, which the seed determines.
"""

from __future__ import annotations

import argparse
import math
import platform
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from benchmarks.machine import processor
from benchmarks.pairs.shapes import SHAPES
from finetune import FineTuner
from finetune.comparison.statistics import half_width
from finetune.data.preprocessing.augmentations import AUGMENTATIONS, Augmentation, CropAndFlip, Unaugmented
from finetune.data.preprocessing.images import Preprocessing

RESULTS = Path(__file__).parent / "results" / "views.md"
SEEDS = range(10, 20)  # not those on which the library's default was chosen
EPOCHS = (10, 30)
SHOTS, PRETRAINING, TEST = 20, 200, 80  # images per class
BATCH_SIZE, LR = 16, 1e-2


@dataclass(frozen=True)
class OtherViews:
    """The library's default augmentation, with a different set of views for cached features."""

    default: CropAndFlip
    stand_ins: tuple[Augmentation, ...]
    uses_pixels_only = True

    def __call__(self, image: Image.Image) -> Tensor:
        return self.default(image)

    def describe(self, seed: int, view: int, index: int) -> str:
        return self.default.describe(seed, view, index)


def _with_mirrored(preprocessing: Preprocessing) -> OtherViews:
    mirrored = lambda image: preprocessing.geometry(image).flip(-1)  # noqa: E731
    return OtherViews(CropAndFlip(preprocessing), (Unaugmented(preprocessing), mirrored))


def _with_random(count: int, preprocessing: Preprocessing) -> OtherViews:
    default = CropAndFlip(preprocessing)
    return OtherViews(default, (Unaugmented(preprocessing), *count * (default,)))


AUGMENTATIONS.update(
    {
        "original + mirrored": _with_mirrored,
        "original + 1 random": partial(_with_random, 1),
        "original + 5 random": partial(_with_random, 5),
    }
)

# Arguments of `fit` for each augmentation. The others are compared with the first.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "fresh every epoch": {"augment_views": 0},
    "none": {"augment": False},
    "original + mirrored": {"augment": "original + mirrored"},
    "original + 1 random": {"augment": "original + 1 random"},
    "original + 3 random": {},  # the library's default
    "original + 5 random": {"augment": "original + 5 random"},
    "4 random": {"augment_views": 4},
    "8 random": {"augment_views": 8},
}

Draw = Callable[[str, random.Random], Image.Image]


class Net(nn.Module):
    """A small residual network for images [N, 3, H, W], with a linear head over pooled features."""

    def __init__(self, num_classes: int, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = _Block(width, 2 * width)
        self.layer2 = _Block(2 * width, 4 * width)
        self.layer3 = _Block(4 * width, 8 * width)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, num_classes]."""
        logits: Tensor = self.head(self.layer3(self.layer2(self.layer1(self.stem(images)))).mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.skip = nn.Conv2d(channels, out_channels, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.skip(x))


@dataclass(frozen=True)
class Transfer:
    """A transfer from one set of classes to another.

    Attributes:
        source: Classes the backbone is pretrained on.
        target: Classes the head is trained on.
        draw: Function of a class and a random generator that draws an image.
        size: Sizes in pixels to resize and crop images to.
        draw_train: Like `draw`, for training images that differ from the test images.
    """

    name: str
    source: tuple[str, ...]
    target: tuple[str, ...]
    draw: Draw
    size: tuple[int, int]
    draw_train: Draw | None = None

    @property
    def backbone(self) -> Any:
        """Key of the backbone: transfers with equal keys share one."""
        return self.source, self.draw


def transfers() -> list[Transfer]:
    """Return the transfers, which need no downloads."""
    small, large = tuple("01234"), tuple("56789")
    shapes = tuple(SHAPES)[::2], tuple(SHAPES)[1::2]
    return [
        Transfer("digits 0-4 to 5-9", small, large, _Digits(), (18, 16)),
        Transfer("textures", tuple(_TEXTURES)[::2], tuple(_TEXTURES)[1::2], _texture, (36, 32)),
        Transfer("shapes", *shapes, _shape, (36, 32)),
        Transfer("digits 5-9 to 0-4", large, small, _Digits(), (18, 16)),
        Transfer("shapes from afar", *shapes, _shape, (36, 32), draw_train=partial(_shape, largest=10.5)),
    ]


class _Digits:
    """scikit-learn's handwritten digits, split so that training and test images are disjoint."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (digits.images * (255 / 16)).astype("uint8")
        self._of = {str(n): [Image.fromarray(p) for p in images[digits.target == n]] for n in range(10)}

    def __call__(self, name: str, generator: random.Random) -> Image.Image:
        return generator.choice(self._of[name])

    def folds(self, name: str, seed: int) -> tuple[list[Image.Image], list[Image.Image]]:
        """Return disjoint training and test images of a class: the first images are for the test."""
        images = self._of[name]
        return random.Random(f"{name} {seed}").sample(images[TEST:], SHOTS), images[:TEST]


def _noisy(image: Image.Image, generator: random.Random) -> Image.Image:
    noise = Image.frombytes("RGB", image.size, generator.randbytes(3 * image.width * image.height))
    return Image.blend(image, noise, 0.3 + 0.2 * generator.random())


_TEXTURES = {
    "rows": lambda u, v: math.sin(v),
    "dots": lambda u, v: math.cos(u) + math.cos(v) - 0.8,
    "columns": lambda u, v: math.sin(u),
    "checks": lambda u, v: math.sin(u) * math.sin(v),
    "slopes": lambda u, v: math.sin(0.7 * (u + v)),
    "rings": lambda u, v: math.sin(math.hypot(u, v)),
    "waves": lambda u, v: math.sin(v + 2 * math.sin(u / 2)),
    "bricks": lambda u, v: min(abs(math.sin(v)), abs(math.sin(u / 2 + math.pi / 2 * (int(v // math.pi) % 2)))) - 0.3,
    "grid": lambda u, v: 0.3 - min(abs(math.sin(u / 1.5)), abs(math.sin(v / 1.5))),
    "rays": lambda u, v: math.sin(5 * math.atan2(v, u)),
}


def _texture(name: str, generator: random.Random) -> Image.Image:
    back = tuple(generator.randrange(256) for _ in range(3))
    image = Image.new("RGB", (48, 40), back)
    front = tuple((value + generator.randrange(70, 186)) % 256 for value in back)
    scale = generator.uniform(0.5, 1.1)
    left, top = generator.uniform(-24, 0), generator.uniform(-20, 0)
    tilt = generator.uniform(-0.15, 0.15)
    for x in range(image.width):
        for y in range(image.height):
            u, v = scale * (x + left - tilt * y), scale * (y + top + tilt * x)
            if _TEXTURES[name](u, v) > 0:
                image.putpixel((x, y), front)
    return _noisy(image, generator)


def _shape(name: str, generator: random.Random, largest: float = 16.0) -> Image.Image:
    back, front = (tuple(generator.randrange(*light) for _ in range(3)) for light in ((0, 90), (165, 256)))
    image = Image.new("RGB", (48, 40), back)
    radius, turn = generator.uniform(9, largest), generator.uniform(-0.3, 0.3)
    x, y = generator.uniform(18, 30), generator.uniform(16, 24)
    corners = [
        (x + radius * (a * math.cos(turn) - b * math.sin(turn)), y + radius * (a * math.sin(turn) + b * math.cos(turn)))
        for a, b in SHAPES[name]
    ]
    ImageDraw.Draw(image).polygon(corners, fill=front)
    return _noisy(image, generator)


def write(folder: Path, name: str, images: Iterable[Image.Image]) -> None:
    """Write the images of a class."""
    (folder / name).mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder / name / f"{number:04d}.png")


def drawn(draw: Draw, name: str, count: int, *key: Any) -> list[Image.Image]:
    """Draw `count` images of a class from a generator seeded by the key."""
    generator = random.Random(" ".join(map(str, (name, *key))))
    return [draw(name, generator) for _ in range(count)]


def write_target(transfer: Transfer, folder: Path, seed: int) -> None:
    """Write the folders `train` and `test` of the target classes."""
    for name in transfer.target:
        if isinstance(transfer.draw, _Digits):
            train, test = transfer.draw.folds(name, seed)
        else:
            train = drawn(transfer.draw_train or transfer.draw, name, SHOTS, seed)
            test = drawn(transfer.draw, name, TEST, "test")
        write(folder / "train", name, train)
        write(folder / "test", name, test)


def tuner_of(transfer: Transfer, seed: int) -> FineTuner:
    """Return a tuner of a randomly initialized network for the transfer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net(len(transfer.target))  # the source has as many classes
    resize, crop = transfer.size
    return FineTuner(model, preprocessing={"resize_size": resize, "crop_size": crop}, device="cpu", seed=seed)


def pretrained(transfer: Transfer, folder: Path) -> tuple[dict[str, Tensor], float]:
    """Train the backbone from scratch and return its weights and its validation accuracy."""
    for name in transfer.source:
        write(folder, name, drawn(transfer.draw, name, PRETRAINING, "source"))
    tuner = tuner_of(transfer, 0)
    history = tuner.fit(folder, 0.2, epochs=15, batch_size=BATCH_SIZE, lr=3e-3, cache=False, progress=False)
    weights = {name: value for name, value in tuner.model.state_dict().items() if not name.startswith("head.")}
    return weights, history[-1]["val_accuracy"]


def measure(transfer: Transfer, weights: dict[str, Tensor], folder: Path, seed: int, epochs: int) -> list[float]:
    """Return the test accuracy after training with each augmentation."""
    accuracies = []
    for way in WAYS.values():
        tuner = tuner_of(transfer, seed)
        tuner.model.load_state_dict(weights, strict=False)  # the head keeps its initial weights
        tuner.freeze()
        arguments = {"cache": "memory", "epochs": epochs, "lr": LR, "batch_size": BATCH_SIZE, **way}
        tuner.fit(folder / "train", False, progress=False, **arguments)
        accuracies.append(tuner.evaluate(folder / "test", batch_size=100)["accuracy"])
    return accuracies


def interval(values: list[float]) -> str:
    """Return the mean and its 95 % confidence interval by Student's t, in percentage points."""
    half = half_width(values)
    return f"{100 * statistics.mean(values):+.2f} ± {math.nan if half is None else 100 * half:.2f}"


def row(name: str, epochs: int, runs: list[list[float]]) -> str:
    """Return a row of the table: the reference accuracy, then the paired difference of each other augmentation."""
    reference, *others = zip(*runs, strict=True)
    differences = [interval([a - b for a, b in zip(way, reference, strict=True)]) for way in others]
    return f"| {name} | {epochs} | {100 * statistics.mean(reference):.1f} | {' | '.join(differences)} |"


def tables(measured: Sequence[Transfer], budgets: Sequence[int], seeds: Sequence[int]) -> Iterator[str]:
    """Run the transfers for each number of epochs, and yield the table as Markdown after each transfer."""
    first, *others = WAYS
    head = [f"| transfer | epochs | {first}, % | {' | '.join(others)} |", "| --- |" + " --- |" * (len(WAYS) + 1)]
    rows: list[str] = []
    backbones: dict[Any, tuple[dict[str, Tensor], float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for epochs in budgets:
            all_runs: list[list[float]] = []
            for transfer in measured:
                folder = Path(scratch) / transfer.name
                if transfer.backbone not in backbones:
                    backbones[transfer.backbone] = pretrained(transfer, folder / "source")
                weights, _ = backbones[transfer.backbone]
                for seed in seeds:
                    if not (folder / str(seed)).exists():
                        write_target(transfer, folder / str(seed), seed)
                runs = [measure(transfer, weights, folder / str(seed), seed, epochs) for seed in seeds]
                rows.append(row(transfer.name, epochs, runs))
                all_runs += runs
                print(rows[-1], flush=True)
                table = [*head, *rows, row(f"all {len(all_runs)} runs", epochs, all_runs)]
                accuracies = {", ".join(classes): accuracy for (classes, _), (_, accuracy) in backbones.items()}
                yield "\n".join([*preamble(len(seeds), accuracies), *table]) + "\n"
            rows = table[len(head) :]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all transfers, updating the table after each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.views", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--smallest", action="store_true", help="run one transfer for one epoch with two seeds, as a smoke test"
    )
    if parser.parse_args(arguments).smallest:
        for text in tables(transfers()[:1], (1,), SEEDS[:2]):
            print(text)
        return
    for text in tables(transfers(), EPOCHS, SEEDS):
        RESULTS.write_text(text)


def preamble(seeds: int, accuracies: Mapping[str, float]) -> list[str]:
    """Return the lines above the table."""
    backbones = "; ".join(f"{classes}: {accuracy:.0%}" for classes, accuracy in accuracies.items())
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "pillow", "scikit-learn"))
    return [
        "# Fixed views and fresh augmentation",
        "",
        "`python -m benchmarks.views`: accuracy of a new head on a frozen backbone, "
        f"{SHOTS} training and {TEST} test images per class, {seeds} seeds, batches of {BATCH_SIZE}, learning rate "
        f"{LR}. The third column is the accuracy with fresh augmentation in every epoch; the others are paired "
        "differences from it in percentage points, with 95 % confidence intervals over the seeds. All train for the "
        "same number of epochs and see one view of each sample per epoch.",
        "",
        "`original + 3 random` is the library's default: the evaluated image and three random views. It was chosen on "
        "other seeds. `4 random` and `8 random` are `augment_views=4` and `8`. A mirrored digit is not a digit. In "
        "`shapes from afar`, test shapes are larger than training shapes: a size that only random crops produce.",
        "",
        f"Accuracy of the backbones on held-out images of their own classes: {backbones}.",
        "",
        f"{processor()}, {platform.system()}, {torch.get_num_threads()} thread(s), Python "
        f"{platform.python_version()}, {packages}.",
        "",
    ]


if __name__ == "__main__":
    main()
