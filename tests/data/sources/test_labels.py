"""Labels: names, class numbers and numbers."""

from __future__ import annotations

import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from finetune import FineTuner, Table
from finetune.data.pipeline import Pipeline
from finetune.data.prepare import prepare
from finetune.data.sources.labels import Meaning, are_other_numbers, batch_targets, in_order, lists_of_names
from finetune.data.sources.open_source import open_source
from finetune.data.targets import MULTILABEL, TargetRule
from finetune.errors import ArgumentError, DataError
from tests.helpers.datasets import Items


def encoded(labels: Any, meaning: Meaning = Meaning()) -> tuple[list[Any], Any]:  # noqa: B008
    targets, classes = meaning.encode(labels, "sample {}".format)
    return targets.tolist(), classes


def test_encode_reads_numpy_scalars_and_bools() -> None:
    assert encoded([np.int64(3), True]) == ([1, 0], ("1", "3"))


@pytest.mark.parametrize(
    ("labels", "meaning", "targets", "classes"),
    [
        ([30, 10, 20], Meaning(), [2, 0, 1], ("10", "20", "30")),
        ([30, 10, 20], Meaning(numbers=True), [30, 10, 20], None),
        ([30, 10, 20], Meaning(numbers=True, names=False), [30, 10, 20], None),
        ([1.5, 2.0], Meaning(), [1.5, 2.0], None),
        ([1.0, 2.0], Meaning(numbers=False), [0, 1], ("1", "2")),
        ([2.0, 1.0], Meaning(("1", "2")), [1, 0], ("1", "2")),
        (["10", "9"], Meaning(), [1, 0], ("9", "10")),
        (["b", "a"], Meaning(), [1, 0], ("a", "b")),
        (["b", "a"], Meaning(("b", "a")), [0, 1], ("b", "a")),
        (["b", "a"], Meaning(numbers=True), [1, 0], ("a", "b")),
        ([2, "a"], Meaning(), [0, 1], ("2", "a")),
    ],
)
def test_the_meaning_decides_between_numbers_and_classes(
    labels: Any, meaning: Meaning, targets: list[Any], classes: Any
) -> None:
    assert encoded(labels, meaning) == (targets, classes)


@pytest.mark.parametrize(
    ("labels", "meaning", "message"),
    [
        (["a", None], Meaning(), "sample 1 has no label"),
        (["a", ""], Meaning(), "sample 1 has no label"),
        ([1.0, float("nan")], Meaning(), "sample 1 has no label"),
        ([[0, 1], [1]], Meaning(), r"sample 0 has the label \[0, 1\]\. Expected a name or a number"),
        ([0.5, 1.0], Meaning(numbers=False), "sample 0 has the label 0.5, which is not a whole number"),
        (["a", "c"], Meaning(("a", "b")), "sample 1 has the class 'c'"),
        (["cat", "dog"], Meaning(numbers=True, names=False), r"names \(cat, dog\).*tuner\.classes = \(\.\.\.\)"),
    ],
)
def test_labels_without_a_meaning_are_errors(labels: Any, meaning: Meaning, message: str) -> None:
    with pytest.raises(DataError, match=message):
        meaning.encode(labels, "sample {}".format)


@given(st.lists(st.integers(-5, 30), min_size=1, max_size=12))
def test_integers_in_any_container_name_the_same_classes(labels: list[int]) -> None:
    names = in_order(map(str, labels))
    meaning = Meaning(names)
    expected = [names.index(str(k)) for k in labels] if are_other_numbers(names) else labels

    for given_labels in (labels, np.array(labels, np.int32), torch.tensor(labels), np.array(labels, object)):
        assert meaning.targets_of(given_labels, "sample {}".format)[0].tolist() == expected


def test_one_name_in_two_unicode_forms_is_one_class() -> None:
    forms = [unicodedata.normalize(form, "고양이") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    assert encoded(forms) == ([0, 0], (forms[0],))
    assert encoded([forms[1]], Meaning(("개", forms[0])))[0] == [1]


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (torch.tensor([1.0, 2.0]), ("1", "2", "3"), [0, 1]),
        (np.array([3.0, 1.0]), ("1", "2", "3"), [2, 0]),
        ([2.0, 3.0], ("1", "2", "3"), [1, 2]),
        (torch.tensor([[1], [3]]), ("1", "2", "3"), [0, 2]),
        (torch.tensor([[1.0], [3.0]]), ("1", "2", "3"), [0, 2]),
        (torch.tensor([1, 2]), ("1", "2", "background"), [0, 1]),
        (torch.tensor([1, 2]), ("0", "1", "background"), [1, 2]),
        (torch.tensor([[0, 1, 0]]), ("1", "2", "3"), [[0, 1, 0]]),
    ],
)
def test_whole_numbers_of_any_type_and_shape_are_class_names(labels: Any, classes: Any, expected: Any) -> None:
    assert Meaning(classes).targets_of(labels, "sample {}".format)[0].tolist() == expected


def test_fractions_are_not_class_names() -> None:
    with pytest.raises(DataError, match=r"label 1\.5, which is not a whole number"):
        Meaning(("1", "2")).targets_of(torch.tensor([1.0, 1.5]), "sample {}".format)


def test_bytes_are_no_labels_of_a_batch() -> None:
    with pytest.raises(DataError, match=r"b'cat'.*label\.decode\(\)"):
        batch_targets((b"cat", b"dog"), 2, ("cat", "dog"), "batch 0")


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([1, 0], [1, 0]),
        ((1.5, 0.0), [1.5, 0.0]),
        (np.array([1, 0], np.int32), [1, 0]),
        ([torch.tensor([1, 0, 1]), torch.tensor([0, 0, 1])], [[1, 0], [0, 0], [1, 1]]),  # as torch collates lists
        (["b", "a"], [1, 0]),
    ],
)
def test_lists_in_batches_become_tensors(targets: Any, expected: list[Any]) -> None:
    found = batch_targets(targets, len(expected), ("a", "b"), "batch 0")
    assert found.tolist() == expected


@pytest.mark.parametrize("targets", [None, torch.tensor([1]), {"boxes": 1}, [{"boxes": 1}], [torch.zeros(2, 2)]])
def test_other_targets_in_batches_are_unchanged(targets: Any) -> None:
    assert batch_targets(targets, 1, None, "batch 0") is targets


def test_names_in_batches_need_class_names() -> None:
    with pytest.raises(DataError, match=r"labels of batch 3 are names, such as 'b'.*dataset's `classes`"):
        batch_targets(["b"], 1, None, "batch 3")
    with pytest.raises(DataError, match="sample 0 of batch 3 has the class 'c'"):
        batch_targets(["c"], 1, ("a", "b"), "batch 3")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("e\u0301", "\u00e9", "b"), "outputs 0 and 1 are both called 'é'"),
        (("b", "\uac00", "\u1100\u1161"), "outputs 1 and 2 are both called '가'"),
        (["a", "b", "a"], "outputs 0 and 2 are both called 'a'"),
        ("abc", "sequence of names"),
        ({"a", "b"}, "sequence of names"),
        ({"a": 0, "b": 1}, "sequence of names"),
        ((1, 2), "sequence of names"),
        (("a", None), "sequence of names"),
        (("a", " "), "sequence of names"),
        ((), "sequence of names"),
        (3, "sequence of names"),
    ],
)
def test_given_classes_that_are_no_names_of_outputs_are_refused(names: Any, message: str) -> None:
    tuner = FineTuner(nn.Linear(4, 3), device="cpu")
    with pytest.raises(ArgumentError, match=message):
        tuner.classes = names
    assert tuner.classes is None


@pytest.mark.parametrize("names", [("a", "b"), ["a", "b"], np.array(["a", "b"]), iter("ab")])
def test_given_classes_in_any_sequence(names: Any) -> None:
    tuner = FineTuner(nn.Linear(4, 2), device="cpu")
    tuner.classes = names
    assert tuner.classes == ("a", "b")
    assert all(type(name) is str for name in tuner.classes)
    tuner.classes = None
    assert tuner.classes is None


# ---------------------------------------------------------------------- one numbering for all data

y = torch.arange(90) % 3
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))[y] * 3 + torch.sin(torch.arange(360.0)).reshape(90, 4)


def linear(outputs: int = 3) -> FineTuner:
    torch.manual_seed(0)
    return FineTuner(nn.Linear(4, outputs), device="cpu")


class Named(torch.utils.data.Dataset):
    """Samples whose labels are indices of class names."""

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        return X[index], int(y[index])


def test_integers_stay_positions_where_names_were_set_by_hand() -> None:
    tuner, items = linear(), [(x, int(label)) for x, label in zip(X, y, strict=True)]
    tuner.classes = ("1", "2", "3")
    tuner.fit((X, y), (X[y > 0], y[y > 0]), epochs=20, lr=0.1, progress=False)
    plain = linear()
    plain.fit((X, y), (X[y > 0], y[y > 0]), epochs=20, lr=0.1, progress=False)
    assert tuner.history[-1]["val_accuracy"] == plain.history[-1]["val_accuracy"] == 1
    for data in ((X, y), items, torch.utils.data.DataLoader(items, batch_size=9), (X, [str(int(k) + 1) for k in y])):
        assert tuner.evaluate(data)["accuracy"] == pytest.approx(1)

    plain.classes = ("1", "2", "3")
    assert plain.evaluate((X, y))["accuracy"] == 1
    tuner.fit((X, y), (X[y > 0], y[y > 0]), lr=1e-3, progress=False)
    assert tuner.history[-1]["val_accuracy"] == 1


@pytest.mark.parametrize("names", [["01", "02", "03"], ["1", "2", "3"], ["007", "008", "100"]])
def test_integers_are_no_positions_of_names_of_digits(names: list[str]) -> None:
    tuner = linear()
    tuner.fit((X, [names[k] for k in y]), progress=False)
    assert tuner.classes == tuple(names)
    items = [(x, int(label)) for x, label in zip(X, y, strict=True)]
    for data in ((X, y), items, torch.utils.data.DataLoader(items, batch_size=9)):
        with pytest.raises(DataError, match=r"has the class '0'|could be the name of a class or its position"):
            tuner.evaluate(data)


def test_named_datasets_after_numbers_need_the_order_of_the_names() -> None:
    tuner = linear()
    tuner.fit((X, y), epochs=20, lr=0.1, progress=False)
    named, loader = Named(["b", "a", "c"]), torch.utils.data.DataLoader(Named(["b", "a", "c"]), batch_size=9)
    for data in (named, loader):
        for verb in (tuner.evaluate, lambda val: linear().fit((X, y), val, progress=False)):
            with pytest.raises(DataError, match=r"names \(a, b, c\).*tuner\.classes"):
                verb(data)
    assert tuner.evaluate(Named(["0", "1", "2"]))["accuracy"] == 1
    tuner.classes = ("b", "a", "c")
    assert [tuner.evaluate(data)["accuracy"] for data in (named, loader)] == [1, 1]


@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_a_custom_step_on_one_output_gets_numbers(step: str, tmp_path: Path) -> None:
    given: list[torch.Tensor] = []

    def own(self: FineTuner, batch: Any) -> torch.Tensor:
        given.append(batch[1])
        return (self.model(batch[0])[:, 0] - batch[1].float()).square().mean()

    for k in range(10):
        Image.new("RGB", (8, 8), (20 * k,) * 3).save(tmp_path / f"{k}.png")
    table = tmp_path / "ages.csv"
    table.write_text("path,label\n" + "".join(f"{k}.png,{20 + 7 * (k % 5)}\n" for k in range(10)), encoding="utf-8")
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1))
    tuner = type("Own", (FineTuner,), {step: own})(
        model, device="cpu", loss=None if step == "training_step" else "mse", preprocessing={"crop_size": 8}
    )
    tuner.fit(table, False if step == "training_step" else table, progress=False)
    assert {*torch.cat(given).tolist()} == {20, 27, 34, 41, 48}
    assert tuner.classes is None


# ---------------------------------------------------------------------- several labels per sample

NAMES = ("cat", "big dog", "cow")
SETS = st.lists(st.sets(st.sampled_from(NAMES)), min_size=2, max_size=6).filter(any)


def flags(rows: list[set[str]], classes: tuple[str, ...]) -> list[list[float]]:
    return [[float(name in row) for name in classes] for row in rows]


def read(data: Any) -> tuple[tuple[str, ...], Tensor]:
    source = open_source(data)
    assert source.classes is not None
    assert source.targets is not None
    return source.classes, source.targets


@given(SETS, st.sampled_from(["|", ",", ";"]))
def test_every_form_gives_the_same_targets(rows: list[set[str]], separator: str) -> None:
    texts = [f"text {k}" for k in range(len(rows))]
    lists = [sorted(row) for row in rows]
    frame = pd.DataFrame({"text": texts, "label": lists})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame.to_csv(folder / "listed.csv", index=False)
        frame.to_parquet(folder / "listed.parquet")
        separated = [separator.join(row) for row in lists]
        pd.DataFrame({"text": texts, "label": separated}).to_csv(folder / "separated.csv", index=False)
        forms = [
            frame, folder / "listed.csv", folder / "listed.parquet", (texts, lists), (texts, rows),
            (texts, pd.Series(lists)), (texts, np.array([*lists, None], dtype=object)[:-1]),
            Table(folder / "separated.csv", label_separator=separator),
        ]  # fmt: skip
        expected = tuple(sorted(set().union(*rows)))
        for form in forms:
            classes, targets = read(form)
            assert classes == expected
            assert targets.tolist() == flags(rows, classes)


@given(st.lists(st.lists(st.sampled_from([0, 1]), min_size=3, max_size=3), min_size=2, max_size=5))
def test_columns_of_zeros_and_ones_are_classes(rows: list[list[int]]) -> None:
    frame = pd.DataFrame(rows, columns=list(NAMES))
    frame.insert(0, "text", [f"text {k}" for k in range(len(rows))])
    for data in (frame, Table(frame, columns=("text", NAMES))):
        classes, targets = read(data)
        assert classes == NAMES
        assert targets.tolist() == rows


def test_columns_are_named_where_others_stand_beside_them() -> None:
    frame = pd.DataFrame({"text": ["a b", "c d"], "width": [3, 4], "cat": [0, 1], "dog": [1, 1]})
    with pytest.raises(DataError, match=r"For several columns with a 0 or 1 per class, name them: columns=\('text', "):
        open_source(frame)
    classes, targets = read(Table(frame, columns=("text", ["dog", "cat"])))
    assert (classes, targets.tolist()) == (("dog", "cat"), [[1, 0], [1, 1]])


def test_a_label_column_comes_before_flags() -> None:
    frame = pd.DataFrame({"text": ["a b", "c d"], "label": ["x", "y"], "seen": [0, 1], "new": [1, 0]})
    assert open_source(frame).classes == ("x", "y")


def test_the_classes_of_training_are_kept() -> None:
    meaning = Meaning(("dog", "cat", "cow"))
    targets, classes = meaning.encode([["cat"], [], ["cow", "dog"]], "sample {}".format)
    assert (classes, targets.tolist()) == (("dog", "cat", "cow"), [[0, 1, 0], [0, 0, 0], [1, 0, 1]])
    with pytest.raises(DataError, match="sample 1 has the class 'cats', which the training data does not have"):
        meaning.encode([["cat"], ["cats"]], "sample {}".format)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([["cat"], ["dog", "dog"]], "sample 1 has the label 'dog' twice.* outputs .N, C, T."),
        ([["cat"], ["dog", None]], "sample 1 has no label"),
        ([["cat"], ["dog", ""]], "sample 1 has no label"),
        ([["cat"], "dog"], "sample 0 has the label .*Expected a name or a number"),
    ],
)
def test_labels_that_are_no_set_of_names(labels: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        Meaning().encode(labels, "sample {}".format)


@pytest.mark.parametrize(
    "labels",
    [
        [1, 2], ["a", "b"], [[1, 2], [3, 4]], [[0.5], [0.1]], [[], []], [], torch.zeros(2, 3), np.zeros((2, 3)), "text",
        {"a": ["b"]}, [[["a"]], [["b"]]], pd.DataFrame({"a": [0, 1]}), None,
    ],
)  # fmt: skip
def test_other_labels_are_no_lists_of_names(labels: Any) -> None:
    assert lists_of_names(labels) is None


def test_a_model_trains_and_answers_with_the_names() -> None:
    torch.manual_seed(0)
    X = torch.randn(60, 4)
    y = [[name for name, value in zip(NAMES, row, strict=False) if value > 0] for row in X]
    tuner = FineTuner(nn.Linear(4, 3), device="cpu")
    tuner.fit((X, y), epochs=30, lr=0.1, batch_size=8)
    assert tuner.classes == ("big dog", "cat", "cow")
    answers = tuner.classify(X)
    assert sum({*answer.classes} == {*row} for answer, row in zip(answers, y, strict=True)) > 50
    assert tuner.evaluate((X, y))["loss"] < 0.3


SEVERAL = Meaning(("cat", "dog", "owl", "red fox", "a|b"), several=True)
FORMS_OF_NAMES: dict[str, Any] = {
    "list": lambda names: (torch.zeros(len(names), 2), names),
    "array": lambda names: (torch.zeros(len(names), 2), np.array(names)),
    "table": lambda names: Table(pd.DataFrame({"text": ["a"] * len(names), "label": names})),
    "dataset": lambda names: Items([(torch.zeros(2), name) for name in names]),
    "indices": lambda names: Items(
        [(torch.zeros(2), sorted({*names}).index(name)) for name in names], classes=sorted({*names})
    ),
    "loader": lambda names: DataLoader(Items([(torch.zeros(2), name) for name in names]), batch_size=2),
}


@pytest.mark.parametrize("form", FORMS_OF_NAMES)
@given(names=st.lists(st.sampled_from(SEVERAL.classes or ()), min_size=1, max_size=6))
def test_one_name_per_sample_of_several_is_a_row(form: str, names: list[str]) -> None:
    rows = [[float(name == known) for known in SEVERAL.classes or ()] for name in names]
    takes = "text" if form == "table" else None
    source = open_source(FORMS_OF_NAMES[form](names), meaning=SEVERAL, takes=takes)
    if source.targets is not None:
        assert source.targets.tolist() == rows
    if form != "table":
        batches = Pipeline().batches(source, 2, rule=TargetRule(MULTILABEL, 5)).epoch(0)
        assert torch.cat([targets for _, targets in batches]).tolist() == rows


@pytest.mark.parametrize("classes", [("a", "b"), ("a",)])
def test_validation_has_the_form_of_training(classes: tuple[str, ...]) -> None:
    X = torch.zeros(2, 2)
    data = prepare((X, [[*classes], []]), (X, ["a", "a"]))
    assert data.val is not None
    assert data.val.targets is not None
    assert data.val.targets.tolist() == [[float(name == "a") for name in classes]] * 2


def test_an_index_beyond_the_names_of_a_dataset_is_named() -> None:
    with pytest.raises(DataError, match="sample 1 has the label 3, but its dataset has 2 classes"):
        open_source(
            Items([(torch.zeros(2), 0), (torch.zeros(2), 3)], classes=["cat", "dog"], targets=[0, 3]),
            meaning=Meaning(("cat", "dog"), several=True),
        )
