"""A demo in about a minute: a small network trained on the digits 0 to 4 learns the digits 5 to 9.

It needs no download. The images are scikit-learn's 1,797 handwritten digits, written as PNG files with a folder per
class, and the backbone trains in seconds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from finetune.comparison.candidates import build_model
from finetune.comparison.compare import compare
from finetune.comparison.comparison import Comparison
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.sources.open_source import open_source
from finetune.data.splitting import few_shot
from finetune.errors import ArgumentError
from finetune.interpret.plots.save_plots import folder_for_plots
from finetune.tuner import FineTuner

if TYPE_CHECKING:
    from finetune.data.sources.base import Source

SHOTS = 10
EPOCHS = 8
SEEDS = 5
LR = 1e-3
STRATEGIES = {
    "from scratch": "from_scratch",
    "frozen": "linear_probe",
    "last stage": "last_stage",
    "fine-tuned": "full_finetune",
}

_PREPROCESSING = Preprocessing(crop_size=(8, 8), resize_size=None, mean=(0.5,), std=(0.5,), channels=1)
_FOR_TUNER: dict[str, Any] = {"preprocessing": _PREPROCESSING}
_FOR_FIT: dict[str, Any] = {"lr": LR, "batch_size": 10, "augment": False}


class DigitNet(nn.Module):
    """A small residual network for grayscale images [N, 1, 8, 8], in stages like its larger relatives."""

    def __init__(self, num_classes: int, width: int = 20) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = _Block(width, width, stride=1)
        self.layer2 = _Block(width, 2 * width, stride=2)
        self.layer3 = _Block(2 * width, 4 * width, stride=1)
        self.head = nn.Linear(4 * width * 4 * 4, num_classes)
        self.example_input_array = torch.zeros(2, 1, 8, 8)  # no search for an input that fits

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, num_classes]."""
        features = self.layer3(self.layer2(self.layer1(self.stem(images))))
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


def run_demo(folder: Path, seeds: int = SEEDS) -> Comparison:
    """Run the demo in `folder`: write the images, compare the strategies, then save and reload the best model."""
    begun = time.perf_counter()
    folder = folder_for_plots(folder)
    digits = write_digits(folder / "digits")
    print(f"Wrote 1,797 handwritten digits to {digits}, with one folder per class.")
    backbone = train_backbone(digits / "source")
    print(f"The backbone has learned 0 to 4: training accuracy {backbone.history[-1]['accuracy']:.3f}.")
    print(f"Now it learns 5 to 9 from {SHOTS} images per class, with {len(STRATEGIES)} strategies and {seeds} seeds.\n")

    def pretrained() -> nn.Module:
        model = DigitNet(5)
        features = {name: value for name, value in backbone.model.state_dict().items() if not name.startswith("head.")}
        model.load_state_dict(features, strict=False)  # the new head stays random
        return model

    def data(seed: int) -> tuple[Source, Source]:
        return few_shot(open_source(digits / "target"), SHOTS, seed)

    comparison = compare(
        pretrained, data, strategies=STRATEGIES, seeds=seeds, budget=EPOCHS, cache="auto", **_FOR_TUNER, **_FOR_FIT
    )
    comparison.plot(folder / "strategies.png")
    print(comparison)

    assert comparison.best is not None
    strategy = STRATEGIES[comparison.best.strategy]
    tuner = FineTuner(build_model(pretrained, "pretrained", seed=0), seed=0, **_FOR_TUNER)
    tuner.fit(*data(seed=0), epochs=EPOCHS, strategy=strategy, progress=False, **_FOR_FIT)
    checkpoint = tuner.save_checkpoint(folder / "best.safetensors")
    image = sorted((digits / "target" / "7").glob("*.png"))[-1]
    print(f"\nWrote the plot to {folder / 'strategies.png'} and the best model to {checkpoint}.")
    print(f"Loaded again, it classifies {image} as {_classify(checkpoint, image)}.")
    print(f"The demo took {time.perf_counter() - begun:.0f} seconds.")
    return comparison


def write_digits(folder: Path) -> Path:
    """Write scikit-learn's digits as PNG files: `source/0` to `source/4` and `target/5` to `target/9`.

    Raises:
        ArgumentError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ArgumentError("The demo needs the images of scikit-learn: pip install 'torch-finetune[demo]'.") from error
    digits = load_digits()
    for number, (image, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = folder / ("source" if digit < 5 else "target") / str(digit)
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * (255 / 16)).astype("uint8")).save(part / f"{number:04d}.png")
    return folder


def train_backbone(folder: Path) -> FineTuner:
    """Train the backbone on the digits 0 to 4, from random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tuner = FineTuner(DigitNet(5), **_FOR_TUNER)
    tuner.fit(folder, val=False, epochs=12, lr=3e-3, batch_size=64, augment=False, progress=False)
    return tuner


def _classify(checkpoint: Path, image: Path) -> str:
    """Load a checkpoint, and return the most likely class of an image with its probability."""
    tuner = FineTuner.load_checkpoint(checkpoint, DigitNet(5))
    assert tuner.classes is not None
    probability, index = tuner.predict(image).softmax(1)[0].max(0)
    return f"{tuner.classes[int(index)]} ({probability:.3f})"
