"""Answers in words: which classes, in which order, and as a table, a file, and a page."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from finetune import ArgumentError, FineTuner, NonFiniteError
from finetune.data.sources.open_source import open_source
from finetune.data.tables.table import Table
from finetune.interpret.calibration import Calibration
from finetune.interpret.classification import Answer, Classification, MultiLabelClassification, classify
from finetune.interpret.predictions import Predictions
from finetune.training.tasks import infer_task

ANIMALS = ("cat", "dog", "cow")


def predictions(outputs: Any, loss: str = "cross_entropy", calibration: Calibration | None = None) -> Predictions:
    tensor = torch.tensor(outputs)
    count = 1 if tensor.dim() == 1 else tensor.shape[1]
    classes = {1: ANIMALS[:2], 3: ANIMALS}.get(count) if loss != "mse" else None
    source = open_source(torch.zeros(len(tensor), 2), labeled=False)
    return Predictions(tensor, infer_task(loss, None, count), source, classes, None, calibration or Calibration())


rows = st.lists(st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3), min_size=1, max_size=5)


@given(rows, st.integers(1, 4), st.none() | st.floats(0, 1), st.none() | st.floats(0, 1))
def test_the_most_probable_classes_come_first(
    outputs: list[list[float]], top: int, threshold: float | None, reject: float | None
) -> None:
    made = predictions(outputs)
    answers = classify(made, top=top, threshold=threshold, reject=reject)
    for answer, row in zip(answers, made.probabilities.tolist(), strict=True):
        expected = [
            pair for pair in sorted(zip(row, ANIMALS, strict=True), reverse=True) if pair[0] >= (threshold or 0)
        ]
        assert answer.probabilities == tuple(p for p, _ in expected[:top])
        assert all(row[ANIMALS.index(name)] == p for name, p in answer.scores.items())
        assert answer.rejected == (reject is not None and bool(answer.scores) and answer.probabilities[0] < reject)
        assert answer.best == (None if answer.rejected or not answer.scores else answer.classes[0])


@given(rows, st.none() | st.floats(0, 1))
def test_a_multi_label_answer_has_every_label_above_its_threshold(
    outputs: list[list[float]], threshold: float | None
) -> None:
    own = (0.2, 0.5, 0.9)
    made = predictions(outputs, "bce", Calibration(thresholds=own))
    for answer, row in zip(classify(made, top=1, threshold=threshold), made.probabilities.tolist(), strict=True):
        least = own if threshold is None else (threshold,) * 3
        assert set(answer.classes) == {n for n, p, t in zip(ANIMALS, row, least, strict=True) if p >= t}
        assert list(answer.probabilities) == sorted(answer.probabilities, reverse=True)


def test_thresholds_by_name_leave_the_others_alone() -> None:
    made = predictions([[0.0, 0.0, 0.0]], "bce", Calibration(thresholds=(0.4, 0.6, 0.4)))
    assert set(classify(made)[0].classes) == {"cat", "cow"}
    assert set(classify(made, threshold={"cat": 0.9, "dog": 0.1})[0].classes) == {"dog", "cow"}


@pytest.mark.parametrize("form", [lambda row: [[row]], lambda row: [row]])
@pytest.mark.parametrize(("threshold", "expected"), [(None, "cat"), (0.2, "dog"), (0.3, "cat")])
def test_the_threshold_of_a_binary_task_decides_for_the_second_class(form: Any, threshold: Any, expected: str) -> None:
    made = predictions(form(-1.0), "bce")  # a probability of 0.2689 for the dog
    answer = classify(made, threshold=threshold)[0]
    assert answer.classes == (expected, "dog" if expected == "cat" else "cat")
    assert answer.scores["dog"] == pytest.approx(0.2689, abs=1e-4)
    assert sum(answer.probabilities) == pytest.approx(1)


def test_a_calibrated_threshold_decides_for_a_binary_task() -> None:
    assert classify(predictions([[-1.0]], "bce", Calibration(thresholds=(0.25,))))[0].best == "dog"


def test_values_of_a_regression() -> None:
    answers = classify(predictions([[1.5, -2.0]], "mse"))
    assert answers.to_dicts() == [{"sample": "sample 0", "0": 1.5, "1": -2.0}]
    assert str(answers) == "sample 0  0 1.5000  1 -2.0000"
    assert not answers[0].rejected


@pytest.mark.parametrize(
    ("loss", "arguments", "words"),
    [
        ("mse", {"reject": 0.5}, "are for probabilities, but this is a regression"),
        ("mse", {"threshold": 0.5}, "are for probabilities, but this is a regression"),
        ("bce", {"reject": 0.5}, "reject is for one class per sample.* Pass threshold"),
        ("cross_entropy", {"top": 0}, "top to be a whole number of at least 1"),
        ("cross_entropy", {"threshold": 1.1}, "threshold"),
        ("cross_entropy", {"reject": -0.1}, "reject"),
        ("bce", {"threshold": {"cat": 2}}, "threshold of cat"),
        ("bce", {"threshold": {"cats": 0.2}}, "no class 'cats'.* Did you mean 'cat'"),
    ],
)
def test_arguments_that_do_not_suit_the_task(loss: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        classify(predictions([[0.0, 1.0, 2.0]], loss), **arguments)


def test_the_threshold_of_a_binary_task_is_that_of_the_second_class() -> None:
    found = predictions([[0.5]], "bce")
    assert classify(found, threshold={"dog": 0.9})[0].best == "cat"
    with pytest.raises(ArgumentError, match=r"one threshold, that of 'dog'\. Pass it in place of one for 'cat'"):
        classify(found, threshold={"cat": 0.1})


@pytest.mark.parametrize("loss", ["cross_entropy", "bce", "mse"])
def test_outputs_that_are_nan_are_no_answer(loss: str) -> None:
    with pytest.raises(NonFiniteError, match="NaN for 1 of 2 samples; the first is sample 1"):
        classify(predictions([[0.0, 1.0, 2.0], [0.0, float("nan"), 2.0]], loss))


def test_maps_have_no_answer_per_sample() -> None:
    with pytest.raises(ArgumentError, match=r"outputs of the shape \(2, 2, 2\) per sample"):
        classify(predictions(torch.zeros(1, 2, 2, 2).tolist()))


# ---------------------------------------------------------------------- tables, files and pages

names = st.text(min_size=1, max_size=6)


@given(st.dictionaries(names, st.floats(0, 1), min_size=1, max_size=4), names)
def test_a_csv_file_reads_back(tmp_path_factory: pytest.TempPathFactory, scores: dict[str, float], name: str) -> None:
    answers = Classification([Answer(name, scores)])
    path = tmp_path_factory.mktemp("answers") / "a.csv"
    if any(0xD800 <= ord(letter) < 0xE000 for text in (name, *scores) for letter in text):
        return  # no text that a file holds
    with answers.to_csv(path).open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["sample"] == name
    assert row["answer"] == next(iter(scores))
    assert [row[f"class_{k + 1}"] for k in range(len(scores))] == list(scores)
    assert [float(row[f"probability_{k + 1}"]) for k in range(len(scores))] == list(scores.values())
    assert json.loads(answers.to_jsonl(path).read_text("utf-8")) == {
        "sample": name,
        "scores": scores,
        "rejected": False,
    }


def test_several_labels_of_a_sample_read_back_as_a_table(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    answers = MultiLabelClassification([Answer("a.png", {"cat": 0.9, "big dog": 0.8}), Answer("b.png", {"cat": 0.6})])
    path = answers.to_csv(tmp_path / "answers.csv")
    source = open_source(Table(path, columns=("sample", "classes"), label_separator="|"))
    assert source.classes == ("big dog", "cat")
    assert source.targets is not None
    assert source.targets.tolist() == [[1, 1], [0, 1]]


def test_a_separator_is_in_no_class_name() -> None:
    answers = MultiLabelClassification([Answer("a", {"cat|dog": 0.9, "cow": 0.8})])
    assert answers.to_dicts()[0]["classes"] == "cat|dog;cow"


def test_pandas_has_the_rows() -> None:
    answers = classify(predictions([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]]), top=2)
    assert answers.to_pandas().to_dict("records") == answers.to_dicts()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="cannot be written"):
        classify(predictions([[0.0, 1.0, 2.0]])).to_csv(tmp_path)


def test_a_long_table_is_cut_where_it_is_printed_and_not_where_it_is_written() -> None:
    answers = classify(predictions([[0.0, 1.0, 2.0]] * 1234), top=1)
    assert str(answers).splitlines()[-1] == "... and 1,214 more"
    assert len(answers.to_text().splitlines()) == len(answers) == len(answers.to_dicts()) == 1234
    assert "... and 1,214 more" in answers._repr_html_()


def test_an_answer_that_is_not_sure_says_so() -> None:
    answers = classify(predictions([[0.0, 0.1, 0.2]]), top=1, reject=0.9)
    assert re.fullmatch(r"sample 0  don't know \(cow 0\.\d{4}\)", str(answers))
    assert answers.to_dicts()[0]["answer"] == ""
    assert str(classify(predictions([[-9.0] * 3], "bce"))) == "sample 0  none"


def test_names_of_files_do_no_harm() -> None:
    answers = Classification([Answer("<b>\x1b[31m.png", {"<script>": 1.0})])
    assert "\x1b" not in str(answers)
    assert "<script>" not in answers._repr_html_()
    assert "<b>" not in answers._repr_html_()


def test_a_notebook_shows_the_images_of_the_rows(tmp_path: Path) -> None:
    for k, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (300, 200), colour).save(tmp_path / f"{k}.png")
    tuner = FineTuner(
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), device="cpu", preprocessing={"crop_size": 8}
    )
    tuner.classes = ANIMALS
    answers = tuner.classify(tmp_path)
    pages = re.findall(r'base64,([^"]+)" alt="([^"]+)"', answers._repr_html_())
    assert [Path(name).name for _, name in pages] == ["0.png", "1.png", "2.png"]
    assert re.findall(r'base64,([^"]+)"', answers[1:]._repr_html_()) == [content for content, _ in pages[1:]]


def test_a_pretrained_model_answers_before_it_is_trained() -> None:
    tuner = FineTuner(nn.Linear(4, 3), device="cpu")
    tuner.classes = ANIMALS
    X = torch.randn(5, 4)
    answers = tuner.classify(X, top=3)
    torch.testing.assert_close(
        torch.tensor([answer.probabilities for answer in answers]), tuner.predict(X).softmax(1).sort(descending=True)[0]
    )


def test_outputs_that_are_probabilities_are_taken_as_they_are() -> None:
    tuner = FineTuner(nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), device="cpu")
    tuner.classes = ANIMALS
    X = torch.randn(5, 4)
    assert torch.equal(tuner.predict_proba(X), tuner.predict(X))
