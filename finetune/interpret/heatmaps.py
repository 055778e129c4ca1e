"""`Heatmaps`: the parts of images that speak for the answers of a model."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from finetune.display import html
from finetune.display.numbers import and_more
from finetune.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = 20  # images in a notebook
_SATURATION = 0.3
_STRONGEST = 0.65  # opacity of the color where the evidence is largest


@dataclass(frozen=True, eq=False)
class Heatmaps:
    """The parts of images that speak for an answer of a model, by Grad-CAM (arXiv 1610.02391).

    Attributes:
        maps: Evidence for the answer, float32 [N, H, W] in [0, 1], at the size of the model's input. Each map is scaled
            by its largest value. It is zero where nothing speaks for the answer.
        images: Images as the model sees them, resized and cropped, uint8 [N, 3, H, W].
        answers: Class, label or output that each map speaks for.
        names: Name of each sample.
        layer: Full name of the layer whose features the maps show.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)
        ... )
        >>> found = FineTuner(model, device="cpu").heatmaps(torch.rand(5, 3, 16, 16))
        >>> found.maps.shape, found.layer
        (torch.Size([5, 16, 16]), '0')
        >>> found.overlay(0).size
        (16, 16)
    """

    maps: Tensor
    images: Tensor
    answers: tuple[str, ...]
    names: tuple[str, ...]
    layer: str

    def __len__(self) -> int:
        return len(self.maps)

    def __repr__(self) -> str:
        height, width = self.maps.shape[1:]
        return f"{type(self).__name__}({len(self)} images of {height} x {width}, layer {self.layer!r})"

    def _repr_html_(self) -> str:
        rows = [
            (html.image(self.png(index), printable(name)), printable(name), printable(self.caption(index)))
            for index, name in enumerate(self.names[:_SHOWN])
        ]
        more = and_more(len(self), _SHOWN)
        return html.table(["", "sample", "evidence for"], rows, text=3) + (html.paragraph(*more) if more else "")

    def is_empty(self, index: int) -> bool:
        """Return whether nothing in an image speaks for the answer, so that its map is zero.

        Args:
            index: Number of the sample.

        Example:
            >>> import torch
            >>> maps = Heatmaps(torch.zeros(1, 4, 4), torch.zeros(1, 3, 4, 4), ("cat",), ("1.png",), "conv")
            >>> maps.is_empty(0)
            True
        """
        return not self.maps[index].any()

    def caption(self, index: int) -> str:
        """Return the answer that a map speaks for, and whether the map is empty.

        Args:
            index: Number of the sample.

        Example:
            >>> import torch
            >>> maps = Heatmaps(torch.zeros(1, 4, 4), torch.zeros(1, 3, 4, 4), ("cat",), ("1.png",), "conv")
            >>> maps.caption(0)
            'cat, nowhere'
        """
        return self.answers[index] + (", nowhere" if self.is_empty(index) else "")

    def overlay(self, index: int) -> Image.Image:
        """Return an image as the model sees it, with its map laid over it in color.

        Args:
            index: Number of the sample.

        Example:
            >>> import torch
            >>> maps = Heatmaps(torch.eye(4)[None], torch.zeros(1, 3, 4, 4), ("cat",), ("1.png",), "conv")
            >>> maps.overlay(0).getpixel((1, 0))
            (0, 0, 0)
        """
        import numpy as np
        from matplotlib import colormaps

        evidence, pixels = self.maps[index].numpy(), self.images[index].permute(1, 2, 0).float().numpy()
        gray = pixels.mean(2, keepdims=True)  # the colors of the image would hide those of the map
        faded = gray + _SATURATION * (pixels - gray)
        colors = 255 * colormaps["inferno"](0.25 + 0.7 * evidence)[..., :3]
        opacity = _STRONGEST * evidence[..., None]
        return Image.fromarray(np.round((1 - opacity) * faded + opacity * colors).astype(np.uint8))

    def png(self, index: int, side: int = 160) -> bytes:
        """Return an overlay as a PNG file, for a page.

        Args:
            index: Number of the sample.
            side: Length of the longer side in pixels, at most.

        Example:
            >>> import torch
            >>> maps = Heatmaps(torch.eye(4)[None], torch.zeros(1, 3, 4, 4), ("cat",), ("1.png",), "conv")
            >>> maps.png(0)[1:4]
            b'PNG'
        """
        picture, content = self.overlay(index), io.BytesIO()
        picture.thumbnail((side, side))
        picture.save(content, "PNG")
        return content.getvalue()

    def plot(self, path: str | Path | None = None, *, theme: str | None = None) -> Figure:
        """Plot the images with their maps laid over them, the first 24 of more.

        Args:
            path: Path to also save the figure to; the suffix sets the format.
            theme: `"light"`, `"dark"`, or None for dark if matplotlib's style is dark.

        Returns:
            The matplotlib figure.

        Example:
            >>> import torch
            >>> maps = Heatmaps(torch.eye(4)[None], torch.zeros(1, 3, 4, 4), ("cat",), ("1.png",), "conv")
            >>> figure = maps.plot("maps.png")
        """
        from finetune.interpret.plots.overlays import draw_overlays

        return draw_overlays(self, path, theme)
