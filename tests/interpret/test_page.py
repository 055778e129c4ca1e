"""The page of an interpretation says in few lines what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.data.sources.items import RawItems
from finetune.interpret.interpretation import Interpretation
from finetune.interpret.predictions import Predictions
from finetune.training.tasks import infer_task
from tests.helpers.answers import interpreted, random_answers


def test_the_page_of_classes() -> None:
    outputs = torch.eye(3)[[0, 0, 1, 1, 0, 0]] * 4
    found = interpreted("classification", outputs, torch.tensor([0, 0, 1, 1, 1, 1]), ("cat", "dog", "hare"))
    lines = str(found).splitlines()
    assert lines[0] == "Classification into 3 classes, 6 samples"
    assert lines[1].startswith("accuracy 0.6667, calibration error 0.")
    assert "Classes (1 without samples)" in lines
    assert "  dog   cat            2  0.5000" in lines
    assert lines.index("Most confused") < lines.index("Worst mistakes")
    assert lines[-1].startswith("  sample 5  dog   cat     cat 0.9647")


def test_many_classes_are_the_weakest_five() -> None:
    found = random_answers("classification", 400, 50, 0)
    page = str(found)
    assert "top-5 accuracy" in page
    part = page.split("Weakest classes\n")[1].split("\n\n", maxsplit=1)[0].splitlines()[1:]
    weakest = sorted((row for row in found.per_class if row.support), key=lambda row: (row.f1, -row.support))
    assert [line.split()[0] for line in part] == [row.name for row in weakest[:5]]
    assert len(page.splitlines()) < 30


def test_no_mistakes() -> None:
    found = interpreted("classification", torch.eye(3) * 9, torch.arange(3))
    assert "Worst mistakes\n  none" in str(found)
    assert "Worst mistakes: none" in found._repr_html_()


@pytest.mark.parametrize(
    ("kind", "count", "words"),
    [
        ("binary", 1, ("Binary classification, 30 samples", "Most confused")),
        ("multilabel", 4, ("Multi-label classification", "Labels")),
        ("regression", 3, ("Regression, 30 samples", "mae", "Outputs", "Largest errors")),
        ("regression", 1, ("mae", "Largest errors")),
    ],
)
def test_the_page_of_other_tasks(kind: str, count: int, words: tuple[str, ...]) -> None:
    found = random_answers(kind, 30, count, 0)
    for page in (str(found), found._repr_html_()):
        assert all(word in page for word in words)
    assert ("Outputs" in str(found)) == (kind == "regression" and count > 1)
    assert ("Most confused" in str(found)) == (kind == "binary")


def test_a_notebook_shows_the_images_of_the_worst_mistakes() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (30, 3, 8, 8), generator=generator, dtype=torch.uint8)
    page = random_answers("classification", 30, 5, 0, inputs=images)._repr_html_()
    assert page.count("<img") == 5


def test_texts_show_their_beginning(tmp_path: Path) -> None:
    texts, targets = ["a very good film with a plot that goes on and on", "bad"], torch.tensor([0, 1])
    source = RawItems(texts, "text", targets)
    task = infer_task("cross_entropy", None, 2)
    found = Interpretation(Predictions(torch.eye(2).flip(0) * 3, task, source, ("bad", "good"), targets))
    assert "sample 0: a very good film with a plot that..." in str(found)
    assert "sample 1: bad" in str(found)
    figure = found.plot_mistakes(path=tmp_path / "sheet.png")
    written = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert " ".join(written[0].split()) == texts[0]
    assert written[1] == "bad"
    assert (tmp_path / "sheet.png").exists()
