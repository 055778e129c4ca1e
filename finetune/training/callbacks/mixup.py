"""Mixup and CutMix."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from finetune.data.batch import join_batch, split_batch
from finetune.data.preprocessing.augmentations import mixing
from finetune.errors import ArgumentError, number
from finetune.training.callbacks.base import Callback
from finetune.training.run import Run
from finetune.training.tasks import as_labels, number_of_classes


class Mixup(Callback):
    """Train on mixtures of two images and of their labels (mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899).

    The loss gets probabilities [N, C] as targets, and the training metrics use the likelier of the two labels.
    Validation data is never mixed. Frozen features of the training data are not cached, because every epoch mixes new
    pairs.

    Args:
        alpha: Strength of mixup, which blends two images: the larger, the more evenly. 0 disables it.
        cutmix: Strength of CutMix, which pastes a rectangle of one image into the other. 0 disables it. If both are
            above 0, each batch gets one of the two at random.

    Raises:
        ArgumentError: If both are 0 or one is negative, or at the start of `fit`, if the task is not classification.

    Example:
        >>> from finetune import FineTuner
        >>> small = {"crop_size": 32, "resize_size": 32}
        >>> tuner = FineTuner("squeezenet1_1", weights=None, preprocessing=small).replace_head(3)
        >>> history = tuner.fit("dogs/train", "dogs/val", callbacks=[Mixup(alpha=0.2, cutmix=1.0)])
    """

    def __init__(self, alpha: float = 0.2, cutmix: float = 0.0) -> None:
        self.alpha = number("alpha", alpha, at_least=0)
        self.cutmix = number("cutmix", cutmix, at_least=0)
        if self.alpha == self.cutmix == 0:
            raise ArgumentError("Expected alpha or cutmix to be above 0, but both are 0, which mixes nothing.")
        self._mix: Any = None

    def on_fit_begin(self, run: Run) -> None:
        self._mix = mixing(self.alpha, self.cutmix, number_of_classes(run.task, run.num_outputs, "Mixup"))

    def change_batch(self, run: Run, batch: Any) -> Any:
        images, targets = split_batch(batch)
        if not isinstance(images, Tensor) or images.dim() != 4:
            raise ArgumentError(
                "Mixup expects batches of images [N, C, H, W] with labels, but this batch has another form. Remove the "
                "callback, or mix the batch in a custom training_step."
            )
        return join_batch(batch, *self._mix(images, as_labels(targets)))
