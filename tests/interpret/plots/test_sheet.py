"""The sheet of the worst mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data.sources.base import Request
from finetune.data.sources.folders import open_folder
from finetune.interpret.interpretation import Interpretation
from finetune.interpret.plots.sheet import draw_sheet
from finetune.interpret.predictions import Predictions
from finetune.training.tasks import infer_task
from tests.helpers.answers import interpreted, random_answers
from tests.helpers.sounds import write_sound


def test_images_are_those_of_the_worst_mistakes_in_order(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 6, 6), generator=generator, dtype=torch.uint8)
    found = random_answers("classification", 40, 5, 0, inputs=images, classes="abcde")
    figure = found.plot_mistakes(5, tmp_path / "sheet.png")
    shown = [axes for axes in figure.axes if axes.images]
    rows = found.mistakes(5)
    assert len(shown) == 5
    for axes, row in zip(shown, rows, strict=True):
        assert np.array_equal(axes.images[0].get_array(), images[row.index].permute(1, 2, 0))
        caption = f"true: {row.true}\nanswer: {row.answer} {row.probabilities[row.answer]:.2f}"
        assert axes.get_title(loc="left") == caption
    assert figure.get_suptitle() == f"The worst 5 of {len(found.mistakes(100))} mistakes"
    assert (tmp_path / "sheet.png").exists()


def test_sounds_are_shown_by_their_files(tmp_path: Path) -> None:
    for name in ("bark", "meow"):
        write_sound(tmp_path / name / "1.wav", np.arange(900))
    source, targets = open_folder(tmp_path, Request(takes="waveform")), torch.tensor([0, 1])
    task = infer_task("cross_entropy", None, 2)
    found = Interpretation(Predictions(torch.eye(2).flip(0), task, source, source.classes, targets))
    written = ["".join(axes.texts[0].get_text().split()) for axes in found.plot_mistakes().axes]
    assert written == ["".join(source.name(index).split()) for index in (0, 1)]


@pytest.mark.parametrize("kind", ["binary", "multilabel", "regression"])
def test_other_samples_are_shown_by_their_names(kind: str) -> None:
    found = random_answers(kind, 30, 1 if kind == "binary" else 3, 0)
    figure = found.plot_mistakes(6)
    written = [axes.texts[0].get_text() for axes in figure.axes if axes.texts]
    assert written == [row.sample for row in found.mistakes(6)]
    assert (figure.get_suptitle() == "The largest errors") == (kind == "regression")


def test_a_long_title_fits_a_narrow_sheet() -> None:
    figure = draw_sheet([], "Checked 200 training and 60 validation samples: 1 error and 4 warnings")
    figure.canvas.draw()
    title = figure.texts[0].get_window_extent()
    assert 0 <= title.x0 < title.x1 <= figure.bbox.width
    assert title.y1 <= figure.bbox.height


def test_no_mistakes() -> None:
    figure = interpreted("classification", torch.eye(3), torch.arange(3)).plot_mistakes()
    assert figure.get_suptitle() == "No mistakes"
