"""The embedded example: a small network trained on the digits 0 to 4 moves to 5 to 9.

Nothing is fetched: the pictures are scikit-learn's 1,797 handwritten digits, written as PNG files with
a folder per class, and the backbone is trained here in seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

from finetune.data.preprocessing.pictures import Preprocessing
from finetune.data.sources.base import Source
from finetune.data.sources.open_source import open_source
from finetune.data.splitting import few_shot
from finetune.errors import ArgumentError
from finetune.tuner import FineTuner

SHOTS = 10
EPOCHS = 8
SEEDS = 5
LR = 1e-3

_PREPROCESSING = Preprocessing(crop_size=(8, 8), resize_size=None, mean=(0.5,), std=(0.5,), channels=1)


class DigitNet(nn.Module):
    """A small residual network for grey pictures [N, 1, 8, 8], in stages like its big relatives."""

    def __init__(self, num_classes: int, width: int = 20) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = _Block(width, width, stride=1)
        self.layer2 = _Block(width, 2 * width, stride=2)
        self.layer3 = _Block(2 * width, 4 * width, stride=1)
        self.head = nn.Linear(4 * width * 4 * 4, num_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return logits [N, num_classes]."""
        features = self.layer3(self.layer2(self.layer1(self.stem(pictures))))
        logits: Tensor = self.head(features.flatten(1))
        return logits


class _Block(nn.Module):
    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.skip = nn.Conv2d(channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + self.skip(x))


@dataclass
class Result:
    """What one strategy gave, a value for each seed."""

    name: str
    trained: int = 0
    accuracies: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)  # samples per second
    seconds: list[float] = field(default_factory=list)

    @property
    def spread(self) -> float:
        """The standard deviation of the accuracy over the seeds."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


# What each strategy does to a tuner whose head is new.
_STRATEGIES: dict[str, Callable[[FineTuner], FineTuner]] = {
    "from scratch": lambda tuner: tuner,
    "frozen": lambda tuner: tuner.freeze(),
    "last stage": lambda tuner: tuner.freeze().unfreeze("layer3"),
    "fine-tuned": lambda tuner: tuner,
}


def run_demo(folder: Path, seeds: int = SEEDS) -> list[Result]:
    """Run the example in `folder`: write the pictures, compare the strategies, save and load the best."""
    console = Console(soft_wrap=True)
    begun = time.perf_counter()
    pictures = write_digits(folder / "digits")
    console.print(f"1,797 handwritten digits are in {folder / 'digits'}, a folder per class.")
    with console.status("training the backbone on 0 to 4 ..."):
        backbone = train_backbone(pictures / "source")
    console.print(f"The backbone knows 0 to 4: training accuracy {backbone.history[-1]['accuracy']:.3f}.")
    results, best = compare(backbone, pictures / "target", seeds, console)
    console.print(table_of(results), soft_wrap=False)
    plot(results).savefig(folder / "strategies.png", dpi=120)
    checkpoint = best.save_checkpoint(folder / "best.safetensors")
    picture = sorted((pictures / "target" / "7").glob("*.png"))[-1]
    loaded = FineTuner.load_checkpoint(checkpoint, DigitNet(5))
    probabilities = loaded.predict(picture).softmax(1)[0]
    answer = int(probabilities.argmax())
    assert loaded.classes is not None
    console.print(f"The plot is {folder / 'strategies.png'}, the best model {checkpoint}.")
    console.print(f"Loaded again, it says that {picture} is a {loaded.classes[answer]} ({probabilities[answer]:.3f}).")
    console.print(f"{time.perf_counter() - begun:.0f} seconds in all.")
    return results


def write_digits(folder: Path) -> Path:
    """Write scikit-learn's digits as PNG files: `source/0` to `source/4` and `target/5` to `target/9`.

    Raises:
        ArgumentError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ArgumentError("The demo's pictures come with scikit-learn: pip install torch-finetune[demo].") from error
    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = folder / ("source" if digit < 5 else "target") / str(digit)
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * (255 / 16)).astype("uint8")).save(part / f"{number:04d}.png")
    return folder


def train_backbone(folder: Path) -> FineTuner:
    """Train the backbone on the digits 0 to 4, from nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tuner = FineTuner(DigitNet(5), preprocessing=_PREPROCESSING)
    tuner.fit(folder, val=False, epochs=12, lr=3e-3, batch_size=64, augment=False, progress=False)
    return tuner


def compare(backbone: FineTuner, folder: Path, seeds: int, console: Console) -> tuple[list[Result], FineTuner]:
    """Train with every strategy and seed; return the results and the best tuner of all."""
    results = {name: Result(name) for name in _STRATEGIES}
    best, best_accuracy = backbone, -1.0
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("comparing", total=seeds * len(results))
        for seed in range(seeds):
            few, rest = few_shot(open_source(folder), SHOTS, seed)
            for result in results.values():
                tuner, accuracy = measure(result, backbone, few, rest, seed)
                if accuracy > best_accuracy:
                    best, best_accuracy = tuner, accuracy
                progress.advance(task)
            line = ", ".join(f"{name} {result.accuracies[-1]:.3f}" for name, result in results.items())
            progress.console.print(f"seed {seed + 1} of {seeds}: {line}")
    return list(results.values()), best


def measure(result: Result, backbone: FineTuner, few: Source, rest: Source, seed: int) -> tuple[FineTuner, float]:
    """Train one strategy with one seed, note what it gave, and return the tuner and its accuracy."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DigitNet(5)
    if result.name != "from scratch":
        model.load_state_dict(backbone.model.state_dict())
    tuner = FineTuner(model, preprocessing=_PREPROCESSING, seed=seed).replace_head(5)
    _STRATEGIES[result.name](tuner)
    begun = time.perf_counter()
    tuner.fit(few, epochs=EPOCHS, lr=LR, batch_size=10, val=False, augment=False, progress=False)
    result.seconds.append(time.perf_counter() - begun)
    result.speeds.append(statistics.median(row["samples_per_second"] for row in tuner.history))
    result.trained = tuner.summary().trainable
    accuracy = tuner.evaluate(rest, batch_size=256)["accuracy"]
    result.accuracies.append(accuracy)
    return tuner, accuracy


def table_of(results: list[Result]) -> Table:
    """Return the table that the demo prints."""
    table = Table(title=f"Digits 5 to 9 from {SHOTS} pictures a class, {len(results[0].accuracies)} seeds")
    for header in ("strategy", "accuracy", "images/s", "trained parameters", "seconds"):
        table.add_column(header, justify="left" if header == "strategy" else "right")
    for result in results:
        table.add_row(
            result.name,
            f"{statistics.mean(result.accuracies):.3f} ± {result.spread:.3f}",
            f"{statistics.median(result.speeds):,.0f}",
            f"{result.trained:,}",
            f"{statistics.mean(result.seconds):.1f}",
        )
    return table


def plot(results: list[Result]) -> Figure:
    """Draw accuracy and throughput by strategy."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    accuracy, throughput = figure.subplots(1, 2)
    names = [result.name for result in results]
    means = [statistics.mean(result.accuracies) for result in results]
    bars = accuracy.bar(names, means, yerr=[result.spread for result in results], capsize=4, color="tab:blue")
    accuracy.bar_label(bars, [f"{mean:.2f}" for mean in means], label_type="center", color="white")
    accuracy.set(title="accuracy on new pictures", ylim=(0, 1))
    bars = throughput.bar(names, [statistics.median(result.speeds) for result in results], color="tab:orange")
    throughput.bar_label(bars, fmt="{:,.0f}", label_type="center")
    throughput.set(title="training images per second")
    return figure
