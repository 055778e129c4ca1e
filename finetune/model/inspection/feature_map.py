"""`FeatureMap`: a layer whose output has a position for each part of an image, and the search for the deepest one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.model.inspection.forward_graph import outputs_kept

Grid = tuple[int, int]

CHANNELS_FIRST, CHANNELS_LAST, TOKENS, TOKENS_FIRST = "[N, C, H, W]", "[N, H, W, C]", "[N, T, C]", "[T, N, C]"

_MOST_EXTRA = 16  # tokens beside those of the patches: of the class, of distillation, registers
_FINE = 4  # rows and columns from which a grid is fine enough to point at something
_MISFIT = 0.3  # between the aspect ratios of grid and image, as logarithms: the sides of a grid are rounded


@dataclass(frozen=True)
class FeatureMap:
    """A layer whose output has positions.

    Attributes:
        layer: Full name of the layer.
        form: Order of the dimensions of its output.
        grid: Number of rows and columns of the positions.
    """

    layer: str
    form: str
    grid: Grid

    @property
    def is_sequence(self) -> bool:
        """Whether the positions are tokens of a sequence, as in a vision transformer."""
        return self.form in (TOKENS, TOKENS_FIRST)

    def of(self, output: Tensor) -> Tensor:
        """Return an output of the layer, or its gradient, as [N, C, H, W], without the tokens before the patches.

        Example:
            >>> FeatureMap("encoder.ln", TOKENS, (14, 14)).of(torch.zeros(2, 197, 768)).shape
            torch.Size([2, 768, 14, 14])
        """
        if self.form == CHANNELS_FIRST:
            return output
        if self.form == CHANNELS_LAST:
            return output.permute(0, 3, 1, 2)
        tokens = output.transpose(0, 1) if self.form == TOKENS_FIRST else output
        patches: Tensor = tokens[:, -math.prod(self.grid) :].transpose(1, 2).unflatten(2, self.grid)
        return patches


def find_feature_map(
    model: nn.Module, scores: Callable[[], Tensor], size: Grid, samples: int, layer: str | None = None
) -> FeatureMap | None:
    """Return the deepest layer with positions on which the scores depend, or None if there is none.

    In a model with attention, it is the deepest one before the last attention. What comes after that mixes positions,
    and in a vision transformer the scores depend on the class token alone. A layer with fewer than four rows or columns
    is taken only if no other has more.

    Args:
        model: The model.
        scores: Function that calls the model on images that require gradients, and returns the scores [N].
        size: Height and width of the images.
        samples: Number of images, N.
        layer: Full name of the only layer to consider; None for all.
    """
    with torch.enable_grad(), outputs_kept(model, _is_attention) as (outputs, before):
        total = scores().sum()
    followed = {name: output for name, output in outputs.items() if output.requires_grad}
    if not total.requires_grad or not followed:
        return None
    gradients = torch.autograd.grad(total, [*followed.values()], allow_unused=True)
    read = zip(_read(followed, size, samples), followed.values(), gradients, strict=True)
    placed = [
        (each, gradient)
        for each, output, gradient in read
        if each is not None and gradient is not None and layer in (None, each.layer) and _differs(each.of(output))
    ]
    found = [each for each, gradient in placed if _positions(each.of(gradient)) > 1]
    found = found or [each for each, gradient in placed if not gradient.any()]  # before a head whose weights are zero
    found = [each for each in found if each.layer in before] or found
    fine = [each for each in found if min(each.grid) >= _FINE]
    return next(reversed(fine or found), None)


def attends(model: nn.Module) -> bool:
    """Return whether a model has attention, which mixes positions.

    Example:
        >>> attends(nn.MultiheadAttention(4, 1)), attends(nn.Conv2d(1, 1, 1))
        (True, False)
    """
    return any(map(_is_attention, model.modules()))


def _is_attention(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower()


def _read(outputs: dict[str, Tensor], size: Grid, samples: int) -> Iterator[FeatureMap | None]:
    """Yield how the output of each layer is to be read, in the order of the calls; None for one without positions."""
    lengths = {output.shape[1] for output in outputs.values() if output.dim() == 3}
    grids: list[Grid] = []
    for name, output in outputs.items():
        form, grid = _form(output, size, samples, grids)
        attention = form == CHANNELS_FIRST and grid[0] == grid[1] and grid[0] in lengths
        if form == CHANNELS_FIRST and not attention:
            grids.append(grid)
        yield None if math.prod(grid) < 2 or attention else FeatureMap(name, form, grid)


def _form(output: Tensor, size: Grid, samples: int, grids: Collection[Grid]) -> tuple[str, Grid]:
    """Return the order of dimensions of an output, and its grid, which has no position if there is none."""
    if output.dim() == 4 and len(output) == samples:
        _, *first, last = output.shape
        forms = {CHANNELS_FIRST: (first[1], last), CHANNELS_LAST: (first[0], first[1])}
        form, grid = min(forms.items(), key=lambda each: _misfit(each[1], size))
        return form, grid if _misfit(grid, size) < _MISFIT else (0, 0)
    if output.dim() == 3 and samples in output.shape[:2]:
        form = TOKENS if len(output) == samples else TOKENS_FIRST
        return form, _grid_of(output.shape[1 if form == TOKENS else 0], size, grids)
    return "", (0, 0)


def _grid_of(tokens: int, size: Grid, grids: Collection[Grid]) -> Grid:
    """Return the grid of a number of tokens: that of an earlier layer, or the one closest to the image's shape."""
    known = [grid for grid in grids if 0 <= tokens - math.prod(grid) <= _MOST_EXTRA]
    if known:
        return max(known, key=math.prod)
    possible = [
        (rows, patches // rows)
        for patches in range(tokens, max(0, tokens - _MOST_EXTRA - 1), -1)
        for rows in range(1, patches + 1)
        if patches % rows == 0
    ]
    best = min(possible, key=lambda grid: _misfit(grid, size), default=(0, 0))  # the first has the most patches
    return best if _misfit(best, size) < _MISFIT else (0, 0)


def _misfit(grid: Grid, size: Grid) -> float:
    """Return how far a grid is from the shape of an image, infinite if it is larger."""
    if not all(0 < cells <= side for cells, side in zip(grid, size, strict=True)):
        return math.inf
    return abs(math.log(grid[0] / grid[1]) - math.log(size[0] / size[1]))


def _differs(feature_map: Tensor) -> bool:
    """Return whether the features [N, C, H, W] differ between positions, unlike those of an enlarged 1 x 1 map."""
    return bool((feature_map != feature_map[..., :1, :1]).any())


def _positions(gradient: Tensor) -> int:
    """Return the largest number of positions of a sample at which a gradient [N, C, H, W] is not zero."""
    return int((gradient != 0).any(1).flatten(1).sum(1).max())
