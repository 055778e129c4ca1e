"""What every contender is given: a pretrained network with a new head, a few pictures, and a budget."""

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
    """What a run is to do, as it stands in a row of results.

    Args:
        pair: the name of a pair of source and target.
        seed: of the pictures, the head and the order.
        shots: pictures a class to train on.
    """

    pair: str
    seed: int
    shots: int = 10
    epochs: int = 15
    batch_size: int = 16


class Work:
    """A task with its network and pictures, for one run: contenders train the network in place.

    Args:
        source: the pretrained network with its old head; it is copied.
        data: with `train`, pictures float32 [N, C, H, W] and labels int64 [N].
        num_classes: of the target.
        head: a function of the number of features that makes a head of a contender's own.

    Attributes:
        tuner: holds the network with its new head; whoever does without the tuner takes its `model`.
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
        """How many samples the whole training sees."""
        return len(self.data.train[1]) * self.task.epochs

    def dataset(self) -> Dataset[Any]:
        """Return the training pictures and labels."""
        return TensorDataset(*self.data.train)

    def loader(self) -> DataLoader[Any]:
        """Return shuffled batches of `dataset`."""
        return DataLoader(self.dataset(), self.task.batch_size, shuffle=True)

    def split(self) -> nn.Sequential:
        """Return the same network as a backbone and a head, for those that want it in two."""
        network = self.tuner.model
        X = self.data.train[0][:2]
        expected = _outputs(network, X)
        name = next(name for name, module in network.named_modules() if module is self.head)
        network.set_submodule(name, nn.Identity())
        halves = nn.Sequential(network, self.head)
        torch.testing.assert_close(_outputs(halves, X), expected)  # the head is the last that the network does
        return halves


def accuracy(model: nn.Module, pictures: tuple[Tensor, Tensor]) -> float:
    """Return the share of pictures that a model gets right."""
    X, y = pictures
    outputs = torch.cat([_outputs(model, some) for some in X.split(256)])
    return float((outputs.argmax(1) == y).double().mean())


@contextmanager
def samples_counted(head: nn.Module) -> Iterator[list[int]]:
    """Count the samples whose gradients are accumulated in the head; the count is the one entry of the list.

    What is asked of `torch.autograd.grad`, as to measure how long that takes, is not learned from.
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
