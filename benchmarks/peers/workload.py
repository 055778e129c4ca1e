"""The workload of every peer: images, network and trainable parameters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

CLASSES = 10
RATE = 1e-3
WEIGHT_DECAY = 0.01
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PARTS = {
    "head": ("fc",),
    "last stage": ("layer4", "fc"),
    "full": ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"),
}


@dataclass(frozen=True)
class Task:
    """Settings of a run, as saved in its row.

    Args:
        part: Trainable part of the network, a key of `PARTS`.
        samples: Number of training images.
        epochs: Number of epochs.
        size: Image size in pixels.
        batch_size: Images per batch.
        precision: "fp32" or "bf16".
        device: "cpu" or "cuda".
        folder: Folder of JPEGs with one folder per class, or "" for images in memory.
    """

    part: str
    samples: int
    epochs: int = 10
    size: int = 160
    batch_size: int = 32
    precision: str = "fp32"
    device: str = "cpu"
    folder: str = ""

    def as_row(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)

    @property
    def updates(self) -> int:
        """Number of optimizer updates."""
        return self.epochs * -(-self.samples // self.batch_size)


@dataclass
class Workload:
    """The images and the network of a task, for one run.

    Attributes:
        updates: Number of updates as reported by a peer whose optimizer is not a torch optimizer.
        seconds: Duration of the `timed` block.
    """

    task: Task
    updates: int | None = None
    seconds: float = field(default=0.0, init=False)

    @property
    def device(self) -> torch.device:
        """The device to train on."""
        return torch.device(self.task.device)

    @cached_property
    def arrays(self) -> tuple[Tensor, Tensor]:
        """Images uint8 [N, 3, S, S] and labels int64 [N], on the CPU."""
        return images(self.task.samples, self.task.size)

    @cached_property
    def network(self) -> nn.Module:
        """A ResNet-18 with random weights and frozen layers, on the device. The run trains it in place."""
        from torchvision.models import resnet18

        torch.manual_seed(0)
        network: nn.Module = resnet18(num_classes=CLASSES)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith(PARTS[self.task.part]))
        return network.to(self.device)

    def model(self, *, autocast: bool = False) -> Normalised:
        """Return the network for the peers: it maps uint8 [B, 3, S, S] to float32 [B, CLASSES].

        Args:
            autocast: Whether to apply the precision of the task, for peers without mixed precision of their own.
        """
        return Normalised(self.network, PARTS[self.task.part], autocast=autocast and self.task.precision == "bf16")

    def trained(self) -> list[nn.Parameter]:
        """Return the trainable parameters."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def dataset(self) -> Dataset[Any]:
        """Return pairs of uint8 [3, S, S] and label."""
        if self.task.folder:
            from torchvision.datasets import ImageFolder
            from torchvision.transforms.functional import pil_to_tensor

            images: Dataset[Any] = ImageFolder(self.task.folder, pil_to_tensor)
            return images
        return TensorDataset(*self.arrays)

    def loader(self) -> DataLoader[Any]:
        """Return shuffled batches of `dataset`."""
        return DataLoader(
            self.dataset(), self.task.batch_size, shuffle=True, pin_memory=self.device.type == "cuda", num_workers=0
        )

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time the block, including pending work on the device."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds = time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Normalised(nn.Module):
    """A network for images as bytes. Its frozen children stay in eval mode, as good practice demands."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, parts: tuple[str, ...], *, autocast: bool) -> None:
        super().__init__()
        self.network, self._parts, self._autocast = network, parts, autocast
        self.register_buffer("mean", 255 * torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD)[:, None, None], persistent=False)
        self.to(next(network.parameters()).device)

    def train(self, mode: bool = True) -> Normalised:
        super().train(mode)
        for name, child in self.network.named_children():
            if list(child.parameters()) and name not in self._parts:
                child.eval()
        return self

    def forward(self, X: Tensor) -> Tensor:
        X = (X.float() - self.mean) / self.std
        with torch.autocast(X.device.type, torch.bfloat16, enabled=self._autocast):
            logits: Tensor = self.network(X)
        return logits.float() if self._autocast else logits


def images(samples: int, size: int) -> tuple[Tensor, Tensor]:
    """Return images uint8 [N, 3, S, S] of noise around a color per class, and labels int64 [N]."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % CLASSES
    tints = torch.randint(64, 192, (CLASSES, 3, 1, 1), generator=generator)
    noise = torch.randint(-48, 48, (samples, 3, size, size), generator=generator, dtype=torch.int16)
    return (noise + tints[labels]).clamp_(0, 255).to(torch.uint8), labels


def write_jpegs(folder: Path, samples: int, size: int) -> None:
    """Write the same images as JPEGs, in one folder per class."""
    from torchvision.transforms.functional import to_pil_image

    for number, (image, label) in enumerate(zip(*images(samples, size), strict=True)):
        path = folder / f"class{int(label)}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(image).save(path, quality=95)
