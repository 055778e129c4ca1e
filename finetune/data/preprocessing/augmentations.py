"""Augmentations of images: one table of names for training, and mixing of whole batches.

Any function of a PIL image can serve as augmentation. The built-in ones also state how they can be cached,
through the protocol `CacheableAugmentation`. To add one, add an entry to `AUGMENTATIONS`, which makes it
available as `fit(augment="its_name")`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from finetune.data.preprocessing.base import IMAGE
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.pixels import with_channels
from finetune.errors import ArgumentError, one_of

if TYPE_CHECKING:
    from torchvision.transforms import v2

# A PIL image -> a PIL image, uint8 [C, H, W], or a float tensor that is already normalized.
Augmentation = Callable[[Image.Image], "Image.Image | Tensor"]

# Smallest crop, as a share of the area. Crops down to 8 % suit training from scratch for hundreds of
# epochs. A few epochs on a pretrained model learn more from crops that still show the object; 35 % is fastai's.
_MIN_AREA = 0.35


@runtime_checkable
class CacheableAugmentation(Protocol):
    """An augmentation that states how its images can be cached.

    Attributes:
        uses_pixels_only: Whether the result depends only on the pixels of the image, so that a cached
            copy can replace the decoded file, which also has a name and metadata.
        stand_ins: Augmentations for the views of each sample, one per view, that replace this one if the
            features of each view are cached. Empty if it must never be replaced.
    """

    @property
    def uses_pixels_only(self) -> bool: ...

    @property
    def stand_ins(self) -> tuple[Augmentation, ...]: ...

    def __call__(self, image: Image.Image) -> Image.Image | Tensor: ...

    def describe(self, seed: int, view: int, index: int) -> str:
        """Return a description that changes whenever the image does, to key the cache.

        Args:
            seed: Seed of the run.
            view: Number of the view, which seeds a random augmentation.
            index: Index of the sample, which also seeds it.
        """
        ...


@dataclass(frozen=True)
class Unaugmented:
    """The augmentation that changes nothing: the image as in evaluation."""

    preprocessing: Preprocessing
    uses_pixels_only = True
    stand_ins = ()

    def __call__(self, image: Image.Image) -> Tensor:
        """Return uint8 [C, H, W] of the preprocessing's crop size."""
        return self.preprocessing.geometry(image)

    def describe(self, seed: int, view: int, index: int) -> str:
        return "as evaluated"


@dataclass(frozen=True)
class CropAndFlip:
    """A random crop of random size and a horizontal flip, optionally followed by an automatic policy.

    Args:
        preprocessing: Preprocessing of the model, for the size and the interpolation of the crop.
        policy: Name of an automatic augmentation in `torchvision.transforms.v2`, such as
            "RandAugment", applied with its defaults after the flip, as in torchvision's recipes.
    """

    preprocessing: Preprocessing
    policy: str | None = None
    uses_pixels_only = True

    @property
    def stand_ins(self) -> tuple[Augmentation, ...]:
        """Image as in evaluation, and three random versions.

        With only four views, the evaluated image makes up for the lost variety; see `benchmarks.views`.
        """
        return Unaugmented(self.preprocessing), self, self, self

    def __call__(self, image: Image.Image) -> Tensor:
        """Return uint8 [C, H, W] of the preprocessing's crop size."""
        from torchvision.transforms import functional as F

        image = with_channels(image, self.preprocessing.channels)
        pixels: Tensor = F.pil_to_tensor(_crop_and_flip(self.preprocessing, self.policy)(image))
        return pixels

    def describe(self, seed: int, view: int, index: int) -> str:
        policy = "" if self.policy is None else f" and {self.policy}"
        # Part of the keys of cache folders: a change of wording would invalidate their entries.
        return f"{_MIN_AREA} to 1 of the area and a flip{policy}, drawn from {seed}, {view}, {index}"


@lru_cache(maxsize=8)
def _crop_and_flip(preprocessing: Preprocessing, policy: str | None) -> Callable[[Image.Image], Image.Image]:
    from torchvision.transforms import InterpolationMode, v2

    interpolation = InterpolationMode(preprocessing.interpolation)
    crop = v2.RandomResizedCrop(list(preprocessing.crop_size), (_MIN_AREA, 1.0), interpolation=interpolation)
    steps = [crop, v2.RandomHorizontalFlip()]
    if policy is not None:
        steps.append(getattr(v2, policy)(interpolation=InterpolationMode.BILINEAR))
    augmentation: Callable[[Image.Image], Image.Image] = v2.Compose(steps)
    return augmentation


DEFAULT = "crop_and_flip"

# Names that `fit(augment=...)` accepts, each with a function of the model's preprocessing.
AUGMENTATIONS: dict[str, Callable[[Preprocessing], Augmentation]] = {
    DEFAULT: CropAndFlip,
    "randaugment": partial(CropAndFlip, policy="RandAugment"),  # arXiv 1909.13719
    "trivialaugment": partial(CropAndFlip, policy="TrivialAugmentWide"),  # arXiv 2103.10158
}


class ChosenAugmentation(NamedTuple):
    """Augmentation of a run, None for none, and its stand-ins for cached features."""

    augment: Augmentation | None
    stand_ins: tuple[Augmentation, ...] = ()


def chosen_augmentation(
    augment: bool | str | Augmentation, preprocessing: Any, kind: str | None, *, views: int | None = None
) -> ChosenAugmentation:
    """Resolve the `augment` argument of `fit`.

    Args:
        augment: True for the default, False for none, a name in `AUGMENTATIONS`, or a function of a
            PIL image.
        preprocessing: Preprocessing of the model.
        kind: Kind of raw item that the data holds. True augments only images.
        views: Number of views per sample that the user requested. Stand-ins are used only if it is None.

    Raises:
        ArgumentError: If the name is unknown, or given for data other than images.
    """
    name = DEFAULT if augment is True else augment
    if callable(name):  # a custom function is never replaced by stand-ins
        return ChosenAugmentation(name)
    if name is False or name is None:
        return ChosenAugmentation(None)
    name = one_of("augmentation", name, AUGMENTATIONS, "True, False or a function of a PIL image")
    if kind != IMAGE or not isinstance(preprocessing, Preprocessing):
        if augment is True:
            return ChosenAugmentation(None)
        raise not_images()
    built = AUGMENTATIONS[name](preprocessing)
    if isinstance(built, CacheableAugmentation) and views is None:
        return ChosenAugmentation(built, built.stand_ins)
    return ChosenAugmentation(built)


def not_images() -> ArgumentError:
    """Return the error for augmenting data other than PIL images."""
    return ArgumentError(
        "An augmentation takes PIL images, but the items of this data are not images. Augment inside the dataset, "
        "or pass images."
    )


def mixing(alpha: float, cutmix: float, num_classes: int) -> v2.Transform:
    """Return a transform that mixes the images [N, C, H, W] of a batch and their labels [N].

    Args:
        alpha: Parameter of mixup. 0 disables it.
        cutmix: Parameter of CutMix. 0 disables it. With both above 0, each batch draws one of them.
        num_classes: Number of classes.
    """
    from torchvision.transforms import v2

    chosen: list[v2.Transform] = []
    if alpha > 0:
        chosen.append(v2.MixUp(alpha=alpha, num_classes=num_classes))
    if cutmix > 0:
        chosen.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
    return v2.RandomChoice(chosen)
