"""The plot of a confusion matrix, from 2 to 1,000 classes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from finetune.data.sources.image_files import read_image
from finetune.interpret.plots.confusion import most_confused_classes
from tests.helpers.answers import interpreted, random_answers


def labels_of(figure: object, axis: str) -> list[str]:
    axes = figure.axes[0]  # type: ignore[attr-defined]
    return [label.get_text() for label in getattr(axes, f"get_{axis}ticklabels")()]


@pytest.mark.parametrize("classes", [2, 10, 120])
def test_every_class_is_there(classes: int, tmp_path: Path) -> None:
    found = random_answers("classification", 400, classes, 0, classes=[f"c{place}" for place in range(classes)])
    figure = found.plot_confusion(tmp_path / "plot.png")
    assert labels_of(figure, "x") == labels_of(figure, "y") == list(found.labels)
    (image,) = figure.axes[0].images
    shares = found.confusion / found.confusion.sum(1, keepdim=True)
    assert np.allclose(image.get_array().filled(-1), shares.nan_to_num(-1))
    counts = sorted(int(text.get_text()) for text in figure.axes[0].texts)
    expected = sorted(found.confusion[found.confusion > 0].tolist()) if classes <= 10 else []
    assert counts == expected
    assert max(read_image(tmp_path / "plot.png").size) < 2500


def test_no_name_covers_another() -> None:
    names = [f"soft-coated wheaten terrier {place}" for place in range(120)]
    figure = random_answers("classification", 400, 120, 0, classes=names).plot_confusion()
    figure.savefig("/dev/null", format="png", dpi=120)
    for axis, edges in (("x", ("x0", "x1")), ("y", ("y0", "y1"))):
        boxes = [label.get_window_extent() for label in getattr(figure.axes[0], f"get_{axis}ticklabels")()]
        places = sorted(tuple(getattr(box, edge) for edge in edges) for box in boxes)
        assert all(before[1] <= after[0] + 1 for before, after in pairwise(places))


def test_of_many_classes_the_most_confused_part_is_shown_and_said() -> None:
    targets = torch.arange(1000)
    outputs = torch.eye(1000) * 9
    outputs[[700, 700]] = torch.eye(1000)[3] * 9
    outputs[5] = torch.eye(1000)[8] * 9
    found = interpreted("classification", outputs, targets, [f"c{place}" for place in range(1000)])
    figure = found.plot_confusion()
    assert figure.axes[0].get_title("left") == "The 40 most confused of 1,000 classes"
    assert labels_of(figure, "y")[:4] == ["c5", "c8", "c700", "c3"]
    assert labels_of(figure, "x") == [*labels_of(figure, "y"), "others"]
    (image,) = figure.axes[0].images
    assert np.allclose(image.get_array().sum(1), 1)


def test_the_other_answers_of_a_part_are_counted() -> None:
    confusion = torch.zeros(300, 300, dtype=torch.int64)
    confusion[7, 9], confusion[7, 200:290] = 5, 1
    outputs = torch.cat([torch.eye(300)[[9] * 5], torch.eye(300)[200:290]])
    figure = interpreted("classification", outputs, torch.full((95,), 7)).plot_confusion()
    row = figure.axes[0].images[0].get_array()[0]
    assert labels_of(figure, "y")[:2] == ["7", "9"]
    assert row[1] == pytest.approx(5 / 95)
    assert row[-1] == pytest.approx(1 - 5 / 95 - 38 / 95)  # 40 classes without 7 and 9


def test_a_class_without_samples_is_marked() -> None:
    figure = interpreted("classification", torch.eye(3), torch.tensor([0, 1, 1])).plot_confusion()
    masked = np.ma.getmaskarray(figure.axes[0].images[0].get_array())
    assert masked.all(1).tolist() == [False, False, True]


def test_classes_of_one_pair_stand_side_by_side() -> None:
    confusion = torch.tensor([[3, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 4, 1]])
    assert most_confused_classes(confusion, tuple("abcd"), 3) == [3, 2, 0]


def test_names_are_no_formulas() -> None:
    figure = interpreted("classification", torch.eye(2), torch.arange(2), ("$x^", "a\nb$")).plot_confusion()
    figure.savefig("/dev/null", format="png")
    assert labels_of(figure, "x") == [r"\$x^", r"a b\$"]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_numbers_stand_out_from_their_cells(theme: str) -> None:
    found = interpreted("classification", 9 * torch.eye(3)[[0, 0, 1, 2, 0, 1]], torch.tensor([0, 0, 1, 2, 2, 2]))
    axes = found.plot_confusion(theme=theme).axes[0]
    (image,) = axes.images
    for text in axes.texts:
        column, row = map(int, text.get_position())
        cell, color = image.to_rgba(image.get_array())[row, column][:3], to_rgb(text.get_color())
        assert abs(sum(cell) - sum(color)) > 0.9, f"{text.get_text()} in row {row}, column {column}"


@pytest.mark.parametrize(("name", "rotation"), [("{}", 0), ("class {}", 90)])
def test_names_are_upright_only_if_they_are_wider_than_a_cell(name: str, rotation: int) -> None:
    found = random_answers("classification", 50, 10, 0, classes=[name.format(place) for place in range(10)])
    assert {label.get_rotation() for label in found.plot_confusion().axes[0].get_xticklabels()} == {rotation}
