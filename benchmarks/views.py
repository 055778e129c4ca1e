"""What stored views cost in accuracy: training a head on few pictures of each sample, against new ones in every epoch.

    python -m benchmarks.views

Five small transfers, each a backbone that is trained here on one half of the classes and frozen for the other
half; the pictures are PNG files in a folder per class, and the augmentation is the library's own. Every way to
augment trains on the same pictures, from the same head, in the same order, for as many epochs; a seed draws the
pictures, the head and the order.
"""

from __future__ import annotations

import math
import platform
import random
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from benchmarks.machine import processor
from benchmarks.shapes import SHAPES
from finetune import FineTuner
from finetune.comparison.statistics import half_width
from finetune.data.preprocessing.augmentations import AUGMENTATIONS, Augmentation, CropAndFlip, Unaugmented
from finetune.data.preprocessing.images import Preprocessing

RESULTS = Path(__file__).parent / "results" / "views.md"
SEEDS = range(10, 20)  # the library's default was chosen on others
EPOCHS = (10, 30)
SHOTS, PRETRAINING, TEST = 20, 200, 80  # pictures a class
BATCH_SIZE, LR = 16, 1e-2


@dataclass(frozen=True)
class OtherViews:
    """The library's default augmentation, replaced by other views of each picture where features are cached."""

    default: CropAndFlip
    stand_ins: tuple[Augmentation, ...]
    uses_pixels_only = True

    def __call__(self, picture: Image.Image) -> Tensor:
        return self.default(picture)

    def describe(self, seed: int, view: int, index: int) -> str:
        return self.default.describe(seed, view, index)


def _with_mirror_image(preprocessing: Preprocessing) -> OtherViews:
    mirrored = lambda picture: preprocessing.geometry(picture).flip(-1)  # noqa: E731
    return OtherViews(CropAndFlip(preprocessing), (Unaugmented(preprocessing), mirrored))


def _with_random(count: int, preprocessing: Preprocessing) -> OtherViews:
    default = CropAndFlip(preprocessing)
    return OtherViews(default, (Unaugmented(preprocessing), *count * (default,)))


AUGMENTATIONS.update(
    {
        "picture, mirror image": _with_mirror_image,
        "picture, 1 random": partial(_with_random, 1),
        "picture, 5 random": partial(_with_random, 5),
    }
)

# Arguments of `fit` for each way to augment. The first is the reference of the others.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "new in every epoch": {"augment_views": 0},
    "none": {"augment": False},
    "picture, mirror image": {"augment": "picture, mirror image"},
    "picture, 1 random": {"augment": "picture, 1 random"},
    "picture, 3 random": {},  # the library's default
    "picture, 5 random": {"augment": "picture, 5 random"},
    "4 random": {"augment_views": 4},
    "8 random": {"augment_views": 8},
}

Draw = Callable[[str, random.Random], Image.Image]


class Net(nn.Module):
    """A small residual network for pictures [N, 3, H, W], with a linear head over pooled features."""

    def __init__(self, num_classes: int, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = _Block(width, 2 * width)
        self.layer2 = _Block(2 * width, 4 * width)
        self.layer3 = _Block(4 * width, 8 * width)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits [N, num_classes]."""
        logits: Tensor = self.head(self.layer3(self.layer2(self.layer1(self.stem(pictures)))).mean((2, 3)))
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
    """From some classes of pictures to others.

    `draw` makes a picture of a class from a generator; `size` is what a picture is resized to and cropped to.
    `draw_train` makes the pictures that the head is trained on, where these are to differ from all others.
    """

    name: str
    source: tuple[str, ...]
    target: tuple[str, ...]
    draw: Draw
    size: tuple[int, int]
    draw_train: Draw | None = None

    @property
    def known(self) -> Any:
        """What decides the backbone."""
        return self.source, self.draw


def transfers() -> list[Transfer]:
    """Return the transfers, small ones that need nothing from the network."""
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
    """scikit-learn's handwritten digits, each given once: the first a class for testing, the others shuffled."""

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pictures = (digits.images * (255 / 16)).astype("uint8")
        self._of = {str(n): [Image.fromarray(p) for p in pictures[digits.target == n]] for n in range(10)}

    def __call__(self, name: str, generator: random.Random) -> Image.Image:
        return generator.choice(self._of[name])

    def folds(self, name: str, seed: int) -> tuple[list[Image.Image], list[Image.Image]]:
        """Return training and test pictures of a class that have none in common."""
        pictures = self._of[name]
        return random.Random(f"{name} {seed}").sample(pictures[TEST:], SHOTS), pictures[:TEST]


def _noisy(picture: Image.Image, generator: random.Random) -> Image.Image:
    noise = Image.frombytes("RGB", picture.size, generator.randbytes(3 * picture.width * picture.height))
    return Image.blend(picture, noise, 0.3 + 0.2 * generator.random())


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
    picture = Image.new("RGB", (48, 40), back)
    front = tuple((value + generator.randrange(70, 186)) % 256 for value in back)
    scale = generator.uniform(0.5, 1.1)
    left, top = generator.uniform(-24, 0), generator.uniform(-20, 0)
    tilt = generator.uniform(-0.15, 0.15)
    for x in range(picture.width):
        for y in range(picture.height):
            u, v = scale * (x + left - tilt * y), scale * (y + top + tilt * x)
            if _TEXTURES[name](u, v) > 0:
                picture.putpixel((x, y), front)
    return _noisy(picture, generator)


def _shape(name: str, generator: random.Random, largest: float = 16.0) -> Image.Image:
    back, front = (tuple(generator.randrange(*light) for _ in range(3)) for light in ((0, 90), (165, 256)))
    picture = Image.new("RGB", (48, 40), back)
    radius, turn = generator.uniform(9, largest), generator.uniform(-0.3, 0.3)
    x, y = generator.uniform(18, 30), generator.uniform(16, 24)
    corners = [
        (x + radius * (a * math.cos(turn) - b * math.sin(turn)), y + radius * (a * math.sin(turn) + b * math.cos(turn)))
        for a, b in SHAPES[name]
    ]
    ImageDraw.Draw(picture).polygon(corners, fill=front)
    return _noisy(picture, generator)


def write(folder: Path, name: str, pictures: Iterable[Image.Image]) -> None:
    """Write the pictures of a class."""
    (folder / name).mkdir(parents=True)
    for number, picture in enumerate(pictures):
        picture.save(folder / name / f"{number:04d}.png")


def drawn(draw: Draw, name: str, count: int, *key: Any) -> list[Image.Image]:
    """Draw so many pictures of a class, from a generator of their own."""
    generator = random.Random(" ".join(map(str, (name, *key))))
    return [draw(name, generator) for _ in range(count)]


def write_target(transfer: Transfer, folder: Path, seed: int) -> None:
    """Write `train` and `test` of the classes that the backbone does not know."""
    for name in transfer.target:
        if isinstance(transfer.draw, _Digits):
            train, test = transfer.draw.folds(name, seed)
        else:
            train = drawn(transfer.draw_train or transfer.draw, name, SHOTS, seed)
            test = drawn(transfer.draw, name, TEST, "test")
        write(folder / "train", name, train)
        write(folder / "test", name, test)


def tuner_of(transfer: Transfer, seed: int) -> FineTuner:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net(len(transfer.target))  # of as many classes as the source has
    resize, crop = transfer.size
    return FineTuner(model, preprocessing={"resize_size": resize, "crop_size": crop}, device="cpu", seed=seed)


def pretrained(transfer: Transfer, folder: Path) -> tuple[dict[str, Tensor], float]:
    """Train the backbone from nothing; return its weights, and the accuracy on pictures that it was not trained on."""
    for name in transfer.source:
        write(folder, name, drawn(transfer.draw, name, PRETRAINING, "source"))
    tuner = tuner_of(transfer, 0)
    history = tuner.fit(folder, 0.2, epochs=15, batch_size=BATCH_SIZE, lr=3e-3, cache=False, progress=False)
    weights = {name: value for name, value in tuner.model.state_dict().items() if not name.startswith("head.")}
    return weights, history[-1]["val_accuracy"]


def measure(transfer: Transfer, weights: dict[str, Tensor], folder: Path, seed: int, epochs: int) -> list[float]:
    """Return the accuracy on the test pictures after training with each of the ways."""
    accuracies = []
    for way in WAYS.values():
        tuner = tuner_of(transfer, seed)
        tuner.model.load_state_dict(weights, strict=False)  # the head stays fresh
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
    """Return a row of the table: the reference's accuracy, then each other way's paired difference to it."""
    reference, *others = zip(*runs, strict=True)
    differences = [interval([a - b for a, b in zip(way, reference, strict=True)]) for way in others]
    return f"| {name} | {epochs} | {100 * statistics.mean(reference):.1f} | {' | '.join(differences)} |"


def main(seeds: Sequence[int] = SEEDS) -> None:
    """Measure, and write the table as it grows."""
    first, *others = WAYS
    head = [f"| transfer | epochs | {first}, % | {' | '.join(others)} |", "| --- |" + " --- |" * (len(WAYS) + 1)]
    rows: list[str] = []
    backbones: dict[Any, tuple[dict[str, Tensor], float]] = {}
    measured = transfers()
    with tempfile.TemporaryDirectory() as scratch:
        for epochs in EPOCHS:
            all_runs: list[list[float]] = []
            for transfer in measured:
                folder = Path(scratch) / transfer.name
                if transfer.known not in backbones:
                    backbones[transfer.known] = pretrained(transfer, folder / "source")
                weights, _ = backbones[transfer.known]
                for seed in seeds:
                    if not (folder / str(seed)).exists():
                        write_target(transfer, folder / str(seed), seed)
                runs = [measure(transfer, weights, folder / str(seed), seed, epochs) for seed in seeds]
                rows.append(row(transfer.name, epochs, runs))
                all_runs += runs
                print(rows[-1], flush=True)
                table = [*head, *rows, row(f"all {len(all_runs)} runs", epochs, all_runs)]
                known = {", ".join(classes): accuracy for (classes, _), (_, accuracy) in backbones.items()}
                RESULTS.write_text("\n".join([*preamble(len(seeds), known), *table]) + "\n")
            rows = table[len(head) :]


def preamble(seeds: int, known: Mapping[str, float]) -> list[str]:
    """Return what is said above the table."""
    backbones = "; ".join(f"{classes}: {accuracy:.0%}" for classes, accuracy in known.items())
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "pillow", "scikit-learn"))
    return [
        "# Stored views against new pictures in every epoch",
        "",
        "`python -m benchmarks.views`: accuracy of a new head over a frozen backbone, "
        f"{SHOTS} training pictures a class, {TEST} test pictures a class, {seeds} seeds, batches of {BATCH_SIZE}, "
        f"rate {LR}. The third column is the accuracy with the library's augmentation anew in every epoch; the others "
        "are paired differences to it in percentage points, with 95 % confidence intervals over the seeds. All train "
        "for the same number of epochs, and see one view of each sample an epoch, in turn.",
        "",
        "`picture, 3 random` is the library's default, the picture as it is evaluated and three random views, and "
        "was chosen on other seeds; `4 random` and `8 random` are `augment_views=4` and `8`. A digit's mirror image is "
        "none. In `shapes from afar` the test has larger shapes than the training, which only crops show.",
        "",
        f"The backbones' own accuracy on held-out pictures of their classes: {backbones}.",
        "",
        f"{processor()}, {platform.system()}, {torch.get_num_threads()} thread(s), Python "
        f"{platform.python_version()}, {packages}.",
        "",
    ]


if __name__ == "__main__":
    main()
