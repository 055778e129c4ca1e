"""The trial of every contender: a pretrained network with a new head, a few images, and a budget."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.data import DataLoader, Dataset, TensorDataset

from finetune import FineTuner

HeadFactory = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Task:
    """Settings of a trial, as saved in its row.

    Args:
        pair: Name of the source-target pair.
        seed: Seed for the images, the head and the order.
        shots: Training images per class.
        epochs: Number of epochs.
        batch_size: Images per batch.
    """

    pair: str
    seed: int
    shots: int = 10
    epochs: int = 15
    batch_size: int = 16


class Trial:
    """The network and the data of a task, for one run. Contenders train the network in place.

    Args:
        task: Settings of the trial.
        source: Pretrained network with its old head. It is copied.
        data: Object with `train`: images float32 [N, C, H, W] and labels int64 [N].
        num_classes: Number of target classes.
        head: Function of the number of features that returns a contender's own head.

    Attributes:
        tuner: Tuner of the network with its new head. Peers use its `model` only.
    """

    def __init__(
        self, task: Task, source: nn.Module, data: Any, num_classes: int, head: HeadFactory | None = None
    ) -> None:
        self.task, self.data = task, data
        tuner = FineTuner(copy.deepcopy(source), device="cpu", seed=task.seed)
        self.tuner = tuner.replace_head(num_classes, head=head)
        self.head = self.tuner.head

    @property
    def samples(self) -> int:
        """Number of samples over all epochs."""
        return len(self.data.train[1]) * self.task.epochs

    def dataset(self) -> Dataset[Any]:
        """Return the training images and labels."""
        return TensorDataset(*self.data.train)

    def loader(self) -> DataLoader[Any]:
        """Return shuffled batches of `dataset`."""
        return DataLoader(self.dataset(), self.task.batch_size, shuffle=True)

    def split(self) -> nn.Sequential:
        """Split the network into a backbone and a head, in a sequential module."""
        network = self.tuner.model
        X = self.data.train[0][:2]
        expected = _outputs(network, X)
        name = next(name for name, module in network.named_modules() if module is self.head)
        network.set_submodule(name, nn.Identity())
        halves = nn.Sequential(network, self.head)
        torch.testing.assert_close(_outputs(halves, X), expected)  # true only if the head is the last layer
        return halves


def accuracy(model: nn.Module, images: tuple[Tensor, Tensor]) -> float:
    """Return the accuracy of a model on some images."""
    X, y = images
    outputs = torch.cat([_outputs(model, some) for some in X.split(256)])
    return float((outputs.argmax(1) == y).double().mean())


@contextmanager
def samples_counted(head: nn.Module) -> Iterator[list[int]]:
    """Count the samples whose gradients are accumulated in the head, in the single entry of the list.

    Calls of `torch.autograd.grad`, for example to time them, accumulate no gradients and do not count.
    """
    count, batch = [0], [0]

    def remember(gradient: Tensor) -> None:
        batch[0] = len(gradient)

    def watch(module: nn.Module, _: Any, outputs: Any) -> None:
        if module is head and outputs.requires_grad:
            outputs.register_hook(remember)

    def add(_: Tensor) -> None:
        count[0] += batch[0]

    weight = next(head.parameters())
    handles = [register_module_forward_hook(watch), weight.register_post_accumulate_grad_hook(add)]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _outputs(model: nn.Module, X: Tensor) -> Tensor:
    outputs: Tensor = model.eval()(X)
    return outputs
