"""A pair: a backbone that knows one world, and pictures of another to move to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.pairs.backbones import backbone, new_network
from benchmarks.pairs.looks import Look
from benchmarks.pairs.stencils import generator
from benchmarks.pairs.worlds import World

Images = tuple[Tensor, Tensor]


class Data(NamedTuple):
    """Pictures float [N, 1, 16, 16], normalised, with labels int64 [N].

    Attributes:
        train: to train on.
        test: others, of the same kind.
        shifted: the test pictures out of distribution: turned, fainter, blurred, with other noise.
    """

    train: Images
    test: Images
    shifted: Images


@dataclass(frozen=True)
class Pair:
    """From a source world to a target world.

    Attributes:
        network: the backbone's architecture, `"batchnorm"` or `"groupnorm"`.
        look: of the target's pictures, where it is not that of their world.
    """

    name: str
    source: World
    target: World
    network: str
    look: Look | None = None

    @property
    def num_classes(self) -> int:
        return len(self.target.classes)

    def model(self, seed: int = 0) -> nn.Module:
        """Return the pretrained network with the head of its source on.

        The first call may train it, which takes up to a minute. There is one backbone for all seeds, as there is
        one published checkpoint.
        """
        weights, _ = backbone(self.network, self.source)
        model = new_network(self.network, len(self.source.classes))
        model.load_state_dict(weights)
        return model

    def data(self, seed: int, shots: int = 10, *, imbalance: float = 1.0, test: int = 100) -> Data:
        """Draw the pictures of a seed; train and test have no picture in common, be they drawn or real.

        Args:
            shots: training pictures a class, with an imbalance about so many on average.
            imbalance: how many times as many the largest class has as the smallest; geometric between. The seed
                decides which is which.
            test: test pictures a class.

        Raises:
            ValueError: a class of real pictures has not so many.
        """
        look = self.look or self.target.look
        order = torch.randperm(self.num_classes, generator=generator(self.name, seed))
        counts = torch.tensor(sizes(shots, self.num_classes, imbalance))[order].tolist()
        drawn = self.target.stencils
        for name, count in zip(self.target.classes, counts, strict=True):
            if count + test > drawn.available(name):
                raise ValueError(
                    f"There are {drawn.available(name)} pictures of {name!r}, but {count} were asked for to train and "
                    f"{test} to test. Ask for fewer: shots, imbalance or test."
                )
        train = [drawn.draw(name, n, "train", seed) for name, n in zip(self.target.classes, counts, strict=True)]
        tested = torch.cat([drawn.draw(name, test, "test", seed) for name in self.target.classes])
        classes = torch.arange(self.num_classes)
        labels = classes.repeat_interleave(test)

        def drawn_as(look: Look, part: str, stencils: Tensor) -> Tensor:
            return look.pictures(stencils, generator(self.name, part, seed))

        return Data(
            (drawn_as(look, "train", torch.cat(train)), classes.repeat_interleave(torch.tensor(counts))),
            (drawn_as(look, "test", tested), labels),
            (drawn_as(look.shifted(), "shifted", tested), labels.clone()),
        )


def sizes(shots: int, classes: int, imbalance: float) -> list[int]:
    """Return the sizes of classes, smallest first: about `shots` on average, the last `imbalance` times the first."""
    shares = [imbalance ** (k / (classes - 1)) for k in range(classes)]
    smallest = max(1, round(shots * classes / sum(shares)))
    return [round(smallest * share) for share in shares]
