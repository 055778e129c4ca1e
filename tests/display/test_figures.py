"""Figures show themselves in a notebook, whatever backend it has."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from finetune import History
from finetune.display.figures import new_figure


def test_a_figure_is_an_image_of_its_size() -> None:
    image = Image.open(BytesIO(new_figure(3, 2)._repr_png_()))
    assert (image.format, image.size) == ("PNG", (300, 200))


def test_a_plot_shows_itself() -> None:
    assert History([{"epoch": 1, "loss": 0.5}]).plot()._repr_png_()[1:4] == b"PNG"
