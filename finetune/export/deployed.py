"""`Deployed`: a model with everything around it that a file can hold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from finetune.data.preprocessing.images import Preprocessing
from finetune.model.outputs import forwarded, logits_of
from finetune.nested import is_group

SAMPLES, LENGTH = "N", "T"


@dataclass(frozen=True)
class Input:
    """One input of an exported file.

    Attributes:
        name: Its name.
        dtype: Its dtype, such as `"uint8"`.
        shape: Its sizes; `"N"` for the number of samples, `"T"` for another size that may vary.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"

    @property
    def free(self) -> list[int]:
        """Dimensions that may vary."""
        return [dim for dim, size in enumerate(self.shape) if isinstance(size, str)]


class Deployed(nn.Module):
    """A model with the normalization before it, and with the meaning of its outputs after it.

    Its forward takes the tensors of the inputs in order, without the nesting around them.

    Args:
        model: The model, in eval mode.
        example: Inputs of two samples. With a preprocessing, uint8 [N, C, H, W].
        answers: Function from outputs [N, ...] to answers.
        preprocessing: Preprocessing whose normalization the file contains, which then takes bytes [N, H, W, C].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        answers: Callable[[Tensor], Tensor],
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self._answers = answers
        leaves, self._structure = tree_flatten(example)
        self._constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._preprocessing = preprocessing
        if preprocessing is not None:
            self.register_buffer("mean", torch.tensor(preprocessing.mean).view(-1, 1, 1), persistent=False)
            self.register_buffer("std", torch.tensor(preprocessing.std).view(-1, 1, 1), persistent=False)

    @property
    def normalizes(self) -> bool:
        """Whether it takes bytes."""
        return self._preprocessing is not None

    def around(self, model: nn.Module) -> Deployed:
        """Return the same around another model."""
        other = copy.copy(self)
        other._modules = {**self._modules, "model": model}
        return other

    def forward(self, *tensors: Tensor) -> Tensor:
        if self._preprocessing is not None:
            tensors = (self._normalized(tensors[0]),)
        leaves = list(self._constants)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        output = logits_of(forwarded(self.model, tree_unflatten(leaves, self._structure)))
        return self._answers(output.float())

    def tensors(self, inputs: Any) -> list[Tensor]:
        """Return the arguments of `forward` for inputs of the form of the example."""
        found = [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor)]
        return [found[0].permute(0, 2, 3, 1).contiguous()] if self._preprocessing is not None else found

    def inputs(self, example: Any, varying: Mapping[str, list[int]]) -> list[Input]:
        """Return the inputs of a file.

        Args:
            example: Inputs of two samples.
            varying: Dimensions that vary besides the number of samples, by name of the input.
        """
        if self._preprocessing is not None:
            names = ["images"]
        elif isinstance(example, Mapping):
            names = list(map(str, example))
        else:
            names = _parameters(self.model) if is_group(example) else ["inputs"]
        tensors = self.tensors(example)
        if len({*names[: len(tensors)]}) != len(tensors):
            names = [f"input_{number}" for number in range(len(tensors))]
        return [_described(name, tensor, varying.get(name, [])) for name, tensor in zip(names, tensors, strict=False)]

    def _normalized(self, images: Tensor) -> Tensor:
        images = images.permute(0, 3, 1, 2)
        if self._preprocessing is not None and self._preprocessing.bgr:
            images = images.flip(1)
        return images.to(torch.float32).div(255).sub(self.mean).div(self.std)  # in the order of `Preprocessing`


def _parameters(model: nn.Module) -> list[str]:
    try:
        parameters = signature(model.forward).parameters.values()
    except ValueError:  # compiled code
        return []
    return [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]


def _described(name: str, tensor: Tensor, varying: list[int]) -> Input:
    shape: list[int | str] = list(tensor.shape)
    shape[0] = SAMPLES
    for dim in varying:
        shape[dim] = LENGTH
    return Input(name, str(tensor.dtype).removeprefix("torch."), tuple(shape))
