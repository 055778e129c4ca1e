"""Model families: libraries whose models finetune supports by their own conventions.

A family is one `Family` class in one file of this folder and one entry in `FAMILIES`. Everything
else asks `family_of(model)`.
"""

from __future__ import annotations

from torch import nn

from finetune.model.families.family import CatalogModel, Family
from finetune.model.families.huggingface import HuggingFace
from finetune.model.families.timm import Timm
from finetune.model.families.torchvision import Torchvision

__all__ = ["FAMILIES", "CatalogModel", "Family", "family_of"]

# The keys are written to checkpoints. The order decides who is asked first: a local folder named like
# another library's model is still a folder.
FAMILIES: dict[str, Family] = {
    "huggingface": HuggingFace(),
    "timm": Timm(),
    "torchvision": Torchvision(),
}

_DEFAULT = Family()


def family_of(model: nn.Module) -> Family:
    """Return the family of `model`, or the default one if no library claims it.

    Example:
        >>> from torchvision.models import resnet18
        >>> model = resnet18()
        >>> family_of(model).heads(model)
        ('fc',)
    """
    return next((family for family in FAMILIES.values() if family.owns(model)), _DEFAULT)
