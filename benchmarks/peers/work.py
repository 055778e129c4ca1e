"""The work that every peer does: pictures, network and what of it trains."""

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
    """What a run is to do, as it stands in a row of results.

    Args:
        part: a key of `PARTS`.
        size: the side of the pictures, in pixels.
        precision: "fp32" or "bf16".
        device: "cpu" or "cuda".
        folder: a folder of JPEGs, one folder a class; "" for pictures in memory.
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
        """The optimizer updates that it takes."""
        return self.epochs * -(-self.samples // self.batch_size)


@dataclass
class Work:
    """A task with its pictures and its network, for one run.

    Attributes:
        updates: what a peer whose optimizer is none of torch's says it made.
        seconds: what `timed` took.
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
        """Pictures uint8 [N, 3, S, S] and labels int64 [N], on the CPU."""
        return pictures(self.task.samples, self.task.size)

    @cached_property
    def network(self) -> nn.Module:
        """The ResNet-18, random weights, with what is frozen frozen; on the device. Each run trains this very one."""
        from torchvision.models import resnet18

        torch.manual_seed(0)
        network: nn.Module = resnet18(num_classes=CLASSES)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name.startswith(PARTS[self.task.part]))
        return network.to(self.device)

    def model(self, *, autocast: bool = False) -> Normalised:
        """Return the network as the peers take it: uint8 [B, 3, S, S] in, float32 [B, CLASSES] out.

        `autocast` is for peers that have none of their own.
        """
        return Normalised(self.network, PARTS[self.task.part], autocast=autocast and self.task.precision == "bf16")

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that train."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def dataset(self) -> Dataset[Any]:
        """Return pairs of uint8 [3, S, S] and label."""
        if self.task.folder:
            from torchvision.datasets import ImageFolder
            from torchvision.transforms.functional import pil_to_tensor

            pictures: Dataset[Any] = ImageFolder(self.task.folder, pil_to_tensor)
            return pictures
        return TensorDataset(*self.arrays)

    def loader(self) -> DataLoader[Any]:
        """Return shuffled batches of `dataset`."""
        return DataLoader(
            self.dataset(), self.task.batch_size, shuffle=True, pin_memory=self.device.type == "cuda", num_workers=0
        )

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Take the time of the block, on the device too."""
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        self.seconds = time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Normalised(nn.Module):
    """A network over bytes, whose frozen children stay in eval mode as a careful user has them."""

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


def pictures(samples: int, size: int) -> tuple[Tensor, Tensor]:
    """Return noise uint8 [N, 3, S, S] over a tint that tells the class, and labels int64 [N]."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % CLASSES
    tints = torch.randint(64, 192, (CLASSES, 3, 1, 1), generator=generator)
    noise = torch.randint(-48, 48, (samples, 3, size, size), generator=generator, dtype=torch.int16)
    return (noise + tints[labels]).clamp_(0, 255).to(torch.uint8), labels


def write_jpegs(folder: Path, samples: int, size: int) -> None:
    """Write the same pictures into a folder with a folder per class."""
    from torchvision.transforms.functional import to_pil_image

    for number, (picture, label) in enumerate(zip(*pictures(samples, size), strict=True)):
        path = folder / f"class{int(label)}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(picture).save(path, quality=95)
