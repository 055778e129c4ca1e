"""Overlays of heatmaps, and how they are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune import Heatmaps


def heatmaps(count: int, height: int = 8, width: int = 12) -> Heatmaps:
    maps = torch.zeros(count, height, width)
    maps[:, :4, :6] = 1
    images = torch.full((count, 3, height, width), 100, dtype=torch.uint8)
    return Heatmaps(maps, images, ("<cat>",) * count, tuple(f"{index}.png" for index in range(count)), "layer4")


def test_an_overlay_colors_the_evidence_and_leaves_the_rest() -> None:
    pixels = np.asarray(heatmaps(1).overlay(0)).astype(int)
    assert pixels.shape == (8, 12, 3)
    assert (pixels[4:] == 100).all()
    assert (pixels[:, 6:] == 100).all()
    assert (np.ptp(pixels[:4, :6], 2) > 40).all()


@pytest.mark.parametrize("count", [1, 7, 30])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_sheet_shows_the_first_ones(count: int, theme: str, tmp_path: Path) -> None:
    figure = heatmaps(count).plot(tmp_path / "sheet.png", theme=theme)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == min(count, 24)
    assert [axes.get_title(loc="left") for axes in shown] == ["<cat>"] * len(shown)
    assert ("the first 24 of 30" in figure.get_suptitle()) == (count == 30)
    assert (tmp_path / "sheet.png").exists()


def test_a_notebook_shows_images_with_names_that_are_escaped() -> None:
    page = heatmaps(30)._repr_html_()
    assert page.count("<img ") == 20
    assert page.count("&lt;cat&gt;") == 20
    assert "<cat>" not in page
    assert "10 more" in page
    assert repr(heatmaps(2)) == "Heatmaps(2 images of 8 x 12, layer 'layer4')"


def test_an_empty_map_is_said_to_be_one() -> None:
    found = heatmaps(2)
    found.maps[1] = 0
    assert [found.is_empty(index) for index in (0, 1)] == [False, True]
    assert [axes.get_title(loc="left") for axes in found.plot().axes if axes.images] == ["<cat>", "<cat>, nowhere"]
    assert found._repr_html_().count("&lt;cat&gt;, nowhere") == 1
