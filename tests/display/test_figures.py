"""Figures show themselves in a notebook, whatever backend it has."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from finetune import History
from finetune.data.sources.image_files import read_image
from finetune.display.figures import new_figure, save
from finetune.errors import ArgumentError
from tests.helpers.files import SPECIAL, make_special


def test_a_figure_is_an_image_of_its_size() -> None:
    image = Image.open(BytesIO(new_figure(3, 2)._repr_png_()))
    assert (image.format, image.size) == ("PNG", (300, 200))


def test_a_plot_shows_itself() -> None:
    assert History([{"epoch": 1, "loss": 0.5}]).plot()._repr_png_()[1:4] == b"PNG"


def test_a_saved_figure_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    old, link = tmp_path / "old.png", tmp_path / "link.png"
    old.write_bytes(b"old")
    old.chmod(0o600)
    link.symlink_to("old.png")
    save(new_figure(3, 2), link)
    assert link.is_symlink()
    assert old.stat().st_mode & 0o777 == 0o600
    assert read_image(old).size == (360, 240)
    save(new_figure(3, 2), tmp_path / "new" / "chart")
    assert read_image(tmp_path / "new" / "chart.png").size == (360, 240)


@pytest.mark.parametrize("kind", SPECIAL)
def test_a_figure_replaces_nothing_but_a_file(tmp_path: Path, kind: str) -> None:
    make_special(tmp_path / "a.png", kind)
    for name, why in (("a.png", kind), ("a.docx", "'docx' is not supported")):
        with pytest.raises(ArgumentError, match=rf"cannot be written to .*{name}: .*{why}.*Expected the path"):
            save(new_figure(3, 2), tmp_path / name)
    assert os.listdir(tmp_path) == ["a.png"]
