"""Figures show themselves in a notebook, whatever backend it has, in one look, light or dark."""

from __future__ import annotations

import math
import os
from io import BytesIO
from pathlib import Path
from threading import Thread

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex, to_rgb
from matplotlib.font_manager import fontManager
from PIL import Image

from finetune import History
from finetune.data.sources.image_files import read_image
from finetune.display.figures import THEMES, drawing, figure_path, limits, new_figure, plain, save, shortened, wrapped
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
    with pytest.raises(ArgumentError, match=rf"cannot be written to .*a\.png: .*{kind}"):
        figure_path(tmp_path / "a")
    with pytest.raises(ArgumentError, match=r"no format '\.docx'.*\.pdf"):
        figure_path(tmp_path / "a.docx")
    assert os.listdir(tmp_path) == ["a.png"]


def luminance(color: str) -> float:
    """Return the relative luminance of a color (WCAG 2.2)."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))


def contrast(color: str, other: str) -> float:
    high, low = sorted((luminance(color), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def seen(color: str, blindness: str) -> np.ndarray:
    """Return a color in linear RGB as people with a color blindness see it (Machado et al. 2009)."""
    matrices = {
        "none": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    return np.clip(np.asarray(matrices[blindness]) @ parts, 0, 1) ** (1 / 2.2)


@pytest.mark.parametrize("theme", THEMES)
def test_texts_and_curves_stand_out_from_the_background(theme: str) -> None:
    look = THEMES[theme]
    for background in (look.background, look.band):
        assert all(contrast(color, background) >= 4.5 for color in (look.text, look.faint))
        assert all(contrast(color, background) >= 3 for color in (*look.colors, *look.shades(5)))
    assert 1.03 < contrast(look.band, look.background) < contrast(look.grid, look.background) < 1.6


@pytest.mark.parametrize("blindness", ["none", "protan", "deutan", "tritan"])
@pytest.mark.parametrize("theme", THEMES)
def test_training_and_validation_differ_to_color_blind_people(theme: str, blindness: str) -> None:
    training, validation = (seen(color, blindness) for color in THEMES[theme].colors[:2])
    assert np.abs(training - validation).max() > 0.25


def shown_background(figure: object) -> str:
    pixel = Image.open(BytesIO(figure._repr_png_())).convert("RGB").getpixel((0, 0))  # type: ignore[attr-defined]
    return to_hex([part / 255 for part in pixel])


def test_the_theme_follows_the_style_unless_asked_for() -> None:
    with matplotlib.style.context("dark_background"):
        dark, light = new_figure(3, 2), new_figure(3, 2, "light")
        assert shown_background(dark) == THEMES["dark"].background
        assert shown_background(light) == THEMES["light"].background
    assert shown_background(dark) == THEMES["dark"].background  # also when it is shown later
    with matplotlib.rc_context({"figure.facecolor": "none", "text.color": "white"}):
        assert shown_background(new_figure(3, 2)) == THEMES["dark"].background
    assert shown_background(new_figure(3, 2)) == THEMES["light"].background
    with pytest.raises(ArgumentError, match=r"no theme 'drak'\. Did you mean 'dark'"):
        new_figure(3, 2, "drak")


def picture(theme: str = "light") -> bytes:
    with drawing(3, 2, theme=theme) as (figure, look):
        axes = figure.subplots()
        axes.plot([1, 2], label="a", color=look.colors[0])
        axes.set(title="title", xlabel="x")
        axes.legend()
    page = BytesIO()
    with matplotlib.rc_context(
        {"xtick.color": "red", "grid.color": "red", "font.size": 30, "savefig.facecolor": "red"}
    ):
        figure.savefig(page, format="png")
    return page.getvalue()


@pytest.mark.parametrize("style", ["ggplot", "dark_background", "classic"])
def test_the_look_is_the_same_in_every_style(style: str) -> None:
    expected = picture()
    with matplotlib.style.context(style):
        before = dict(matplotlib.rcParams)
        axes = new_figure(3, 2, "light").subplots()
        assert not axes.spines["top"].get_visible()
        assert axes.get_facecolor() == (1, 1, 1, 1)
        found = Image.open(BytesIO(picture()))
        assert dict(matplotlib.rcParams) == before
    colors = {to_hex([part / 255 for part in color]) for _, color in found.convert("RGB").getcolors(10**5)}
    assert {THEMES["light"].background, THEMES["light"].colors[0], THEMES["light"].grid} <= colors
    assert "#ff0000" not in colors
    assert found.size == Image.open(BytesIO(expected)).size


def test_threads_leave_the_parameters_as_they_were() -> None:
    before = dict(matplotlib.rcParams)
    histories = [History([{"epoch": 1, "loss": 0.5}]) for _ in range(4)]
    threads = [Thread(target=lambda history=one: history.plot()._repr_png_()) for one in histories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("theme", THEMES)
def test_a_vector_image_has_the_colors_of_the_theme(tmp_path: Path, theme: str) -> None:
    History([{"epoch": 1, "loss": 0.5}]).plot(tmp_path / "a.svg", theme=theme)
    page = (tmp_path / "a.svg").read_text()
    look = THEMES[theme]
    assert all(color in page for color in (look.background, look.text, look.faint, look.colors[0]))


NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=32)


@given(st.lists(NUMBERS))
def test_limits_enclose_every_finite_value(values: list[float]) -> None:
    found = limits(values)
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        assert found is None
    else:
        assert found is not None
        assert found[0] < min(finite) <= max(finite) < found[1]


@given(st.lists(st.floats(0, 1), min_size=1))
def test_limits_hardly_leave_the_bounds(values: list[float]) -> None:
    low, high = limits(values, (0.0, 1.0)) or (math.nan, math.nan)
    assert -0.031 <= low < min(values) + 1e-12
    assert max(values) - 1e-12 < high <= 1.031
    assert limits([*values, 2.0], (0.0, 1.0)) == limits([*values, 2.0])


@given(st.text(), st.integers(4, 30))
def test_long_names_fit_and_keep_their_ends(text: str, width: int) -> None:
    short = shortened(text, width)
    assert len(short) <= width
    assert short == text or (short[0], short[-1]) == (text[0], text[-1])
    assert all(len(line) <= width for line in wrapped(text.replace("\n", ""), width).split("\n"))
    if width >= len(text):
        assert wrapped(text, width) == text.strip()


@pytest.mark.parametrize("name", ["a", "$a$", "a$b", r"a_b^c", "$$", "a%"])
def test_names_are_no_formulas(name: str) -> None:
    text = new_figure(3, 2).text(0.5, 0.5, plain(name))
    assert text._preprocess_math(text.get_text()) == (name, False)


@pytest.mark.skipif(not any("CJK" in font.name for font in fontManager.ttflist), reason="needs Debian's fonts-noto-cjk")
def test_names_in_any_language_are_drawn() -> None:
    with drawing(4, 3) as (figure, _):
        figure.suptitle("사모예드, 柴犬, しばいぬ, Dackel")
    figure.savefig(BytesIO())  # a letter without a glyph is a warning
    assert figure.texts[0].get_fontname() == "DejaVu Sans"
