"""Plots are sharp and small, and samples are small copies."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from PIL import Image

from finetune.display.figures import new_figure
from finetune.report.images import figure_image, plot, sample_image
from tests.helpers.image_files import picture


def content(uri: str) -> bytes:
    return base64.b64decode(uri.split(",")[1])


def test_a_plot_has_two_themes() -> None:
    found = plot(lambda theme: new_figure(4, 3, theme), "alt", "caption")
    assert found.light.uri.startswith("data:image/svg+xml;base64,")
    assert found.light.uri != found.dark.uri
    assert (found.light.width, found.light.height) == (384, 288)


def test_many_points_are_a_bitmap() -> None:
    figure = new_figure(4, 3, "light")
    figure.subplots().plot(*np.random.default_rng(0).normal(size=(2, 9000)), ".")
    found = figure_image(figure)
    assert (found.width, found.height) == (384, 288)
    assert Image.open(BytesIO(content(found.uri))).size == (768, 576)
    assert len(found.uri) < 200_000


def test_the_smaller_of_two_formats() -> None:
    photo, graphic = picture(0, (300, 200)), Image.new("RGB", (300, 200), (10, 20, 30))
    assert sample_image(photo).uri.startswith("data:image/jpeg")
    assert sample_image(graphic).uri.startswith("data:image/png")
    assert photo.size == (300, 200)  # a copy was made
    small = Image.open(BytesIO(content(sample_image(graphic).uri)))
    assert small.size == (224, 149)
    assert small.convert("RGB").getpixel((0, 0)) == (10, 20, 30)
