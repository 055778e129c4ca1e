"""A source-target pair: a backbone pretrained on one domain, and images of another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.pairs.backbones import FOLDER, RECIPE, Recipe, backbone, new_network
from benchmarks.pairs.domains import Domain
from benchmarks.pairs.rendering import Rendering
from benchmarks.pairs.stencils import generator

Images = tuple[Tensor, Tensor]


class Data(NamedTuple):
    """Normalized images float [N, 1, 16, 16] with labels int64 [N].

    Attributes:
        train: Training images.
        test: Test images of the same distribution.
        shifted: Test images out of distribution: rotated, fainter, blurred and with different noise.
    """

    train: Images
    test: Images
    shifted: Images


@dataclass(frozen=True)
class Pair:
    """A transfer from a source domain to a target domain.

    Attributes:
        network: Architecture of the backbone, `"batchnorm"` or `"groupnorm"`.
        rendering: Rendering of the target images, by default that of the target domain.
        recipe: Settings of the pretraining.
        folder: Folder of the backbone's file.
    """

    name: str
    source: Domain
    target: Domain
    network: str
    rendering: Rendering | None = None
    recipe: Recipe = RECIPE
    folder: Path = FOLDER

    @property
    def num_classes(self) -> int:
        return len(self.target.classes)

    @property
    def source_accuracy(self) -> float:
        """Accuracy of the backbone on held-out images of the source domain."""
        return backbone(self.network, self.source, self.recipe, self.folder)[1]

    def model(self, seed: int = 0) -> nn.Module:
        """Return the pretrained network, including the head for its source domain.

        The first call trains the backbone if needed, which takes up to a minute. All seeds share one backbone, like
        a published checkpoint.
        """
        weights, _ = backbone(self.network, self.source, self.recipe, self.folder)
        model = new_network(self.network, len(self.source.classes))
        model.load_state_dict(weights)
        return model

    def data(self, seed: int, shots: int = 10, *, imbalance: float = 1.0, test: int = 100) -> Data:
        """Draw disjoint training and test images for a seed.

        Args:
            seed: Seed for the images and the order of class sizes.
            shots: Training images per class, on average.
            imbalance: Ratio of the largest class to the smallest. Sizes in between are geometric, in random order.
            test: Test images per class.

        Raises:
            ValueError: If a class of real images has fewer than requested.
        """
        rendering = self.rendering or self.target.rendering
        order = torch.randperm(self.num_classes, generator=generator(self.name, seed))
        counts = torch.tensor(sizes(shots, self.num_classes, imbalance))[order].tolist()
        drawn = self.target.stencils
        for name, count in zip(self.target.classes, counts, strict=True):
            if count + test > drawn.available(name):
                raise ValueError(
                    f"There are {drawn.available(name)} images of {name!r}, but {count} were requested for training "
                    f"and {test} for testing. Reduce shots, imbalance or test."
                )
        train = [drawn.draw(name, n, "train", seed) for name, n in zip(self.target.classes, counts, strict=True)]
        tested = torch.cat([drawn.draw(name, test, "test", seed) for name in self.target.classes])
        classes = torch.arange(self.num_classes)
        labels = classes.repeat_interleave(test)

        def drawn_as(rendering: Rendering, part: str, stencils: Tensor) -> Tensor:
            return rendering.render(stencils, generator(self.name, part, seed))

        return Data(
            (drawn_as(rendering, "train", torch.cat(train)), classes.repeat_interleave(torch.tensor(counts))),
            (drawn_as(rendering, "test", tested), labels),
            (drawn_as(rendering.shifted(), "shifted", tested), labels.clone()),
        )


def sizes(shots: int, classes: int, imbalance: float) -> list[int]:
    """Return geometric class sizes, ascending, with a mean near `shots` and the given ratio of last to first."""
    shares = [imbalance ** (k / (classes - 1)) for k in range(classes)]
    smallest = max(1, round(shots * classes / sum(shares)))
    return [round(smallest * share) for share in shares]
