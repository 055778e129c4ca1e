"""Labels that datasets declare, and the numbering of their classes."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split

from finetune.data.loading.batches import Batches
from finetune.data.sources.labels import Meaning
from finetune.data.sources.open_source import open_source
from finetune.data.targets import TargetRule
from finetune.errors import DataError

Labels = list[Any]


class Declared(Dataset[Any]):
    """A dataset with an attribute of labels, and items of its own."""

    def __init__(self, items: Labels, *, classes: Any = None, **attributes: Any) -> None:
        self.items = items
        vars(self).update(attributes)
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(2), self.items[index]


def labels_of(source: Any) -> Labels:
    return [int(source[index][1]) for index in range(len(source))]


@pytest.mark.parametrize("attribute", ["labels", "targets"])
@pytest.mark.parametrize(
    ("declared", "items"),
    [
        ([1, 2, 3, 1], [0, 1, 2, 0]),  # raw labels that the items shift
        ([0, 1, 1, 0], [1, 0, 0, 1]),
        ([0, 1, 2, 2], [0, 1, 1, 1]),  # classes that the items merge
        (["a", "b", "a", "b"], [0, 1, 0, 1]),
        (np.array([0.0, 1.0, 2.0, 3.0]), [0.5, 1.5, 2.5, 3.5]),
        (torch.tensor([[0], [1], [0], [1]]), [0, 1, 1, 0]),
    ],
)
def test_items_outrank_the_attribute(
    attribute: str, declared: Any, items: Labels, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source(Declared(items, **{attribute: declared}))

    assert source.targets is None
    assert [float(source[index][1]) for index in range(len(items))] == items
    assert "labels of the items are used" in caplog.text


@pytest.mark.parametrize("items", [[0, 1, 2], [np.int32(0), 1, 2], [torch.tensor(0), 1, 2], [[0], [1], [2]]])
def test_an_attribute_that_agrees_with_the_items_is_used(items: Labels) -> None:
    assert open_source(Declared(items, targets=[0, 1, 2])).targets.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("items", "declared", "expected"),
    [
        ([0, 1, 2], [0.0, 1.0, 2.0], torch.int64),  # as a column of pandas with a gap
        ([0.0, 1.0, 2.0], [0, 1, 2], torch.float32),
        ([0, 1, 2], [0, 1, 2], torch.int64),
        ([0.5, 1.5, 2.0], [0.5, 1.5, 2.0], torch.float32),
    ],
)
def test_declared_numbers_are_of_the_type_of_the_items(items: Any, declared: Any, expected: torch.dtype) -> None:
    source = open_source(Declared(items, labels=declared))
    assert source.targets is not None
    assert (source.targets.dtype, source.targets.tolist()) == (expected, items)


@pytest.mark.parametrize(
    "classes",
    [
        ["a", "b"],
        np.array(["a", "b"]),
        pd.Index(["a", "b"]),
        {0: "a", 1: "b"},
        {1: "b", 0: "a"},
        {"a": 0, "b": 1},
        {np.int64(0): "a", np.int64(1): "b"},
        (("a",), ("b",)),
    ],
    ids=repr,
)
def test_class_names_in_every_form_are_read(classes: Any) -> None:
    for index in ({}, {"class_to_idx": {"a": 0, "b": 1}}):
        assert open_source(Declared([0, 1], classes=classes, **index)).classes == ("a", "b")
    with pytest.raises(DataError, match="number 0 of its `classes`, and number 1 in its `class_to_idx`"):
        open_source(Declared([0, 1], classes=classes, class_to_idx={"a": 1, "b": 0}))


@pytest.mark.parametrize("classes", [{1: "a", 2: "b"}, {"a": "b"}, "ab", 2, None, {}, np.array([])], ids=repr)
def test_other_attributes_are_no_class_names(classes: Any) -> None:
    assert open_source(Declared([0, 1], classes=classes)).classes is None


def test_names_in_items_are_encoded_like_those_of_a_table() -> None:
    data = Declared(["dog", "cat", "dog"])

    source = open_source(data)
    assert (source.classes, source.targets.tolist(), labels_of(source)) == (("cat", "dog"), [1, 0, 1], [1, 0, 1])
    assert labels_of(open_source(data, classes=["dog", "cat"])) == [0, 1, 0]
    with pytest.raises(DataError, match="sample 1 has the class 'cat'"):
        labels_of(open_source(data, classes=["dog", "owl"]))
    assert labels_of(pickle.loads(pickle.dumps(source))) == [1, 0, 1]  # as for worker processes that are spawned


def test_a_list_of_numbers_is_one_target() -> None:
    data = open_source(Declared([[0, 1], [1, 0], [1, 1]]))
    batches = Batches(data, batch_size=3, shuffle=False, rule=TargetRule())
    custom = Batches(data, batch_size=3, shuffle=False, rule=TargetRule(as_tensors=False))

    assert next(iter(batches.epoch(0)))[1].tolist() == [[0, 1], [1, 0], [1, 1]]
    assert isinstance(next(iter(custom.epoch(0)))[1], list)  # as torch collates it


PARTS = ConcatDataset([
    Declared([0, 1], targets=[0, 1], classes=["cat", "dog"]), Declared([0, 1], classes=["dog", "wolf"]),
])  # fmt: skip


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (PARTS, [0, 1, 1, 2]),
        (Subset(PARTS, [3, 0, 2]), [2, 0, 1]),
        (ConcatDataset([PARTS, Subset(PARTS, [2])]), [0, 1, 1, 2, 1]),
        (ConcatDataset([Subset(PARTS.datasets[1], [1]), PARTS.datasets[0]]), [2, 0, 1]),
    ],
)
def test_parts_are_numbered_by_name(data: Any, expected: list[int]) -> None:
    source = open_source(data)

    assert source.classes == ("cat", "dog", "wolf")
    assert labels_of(source) == expected
    assert labels_of(pickle.loads(pickle.dumps(source))) == expected


def test_parts_take_the_classes_of_the_training_data() -> None:
    assert labels_of(open_source(PARTS, classes=["wolf", "dog", "cat"])) == [2, 1, 1, 0]
    with pytest.raises(DataError, match="sample 3 has the class 'wolf'"):
        labels_of(open_source(PARTS, classes=["dog", "cat"]))


def test_parts_that_agree_keep_their_targets() -> None:
    part = Declared([0, 1], targets=[0, 1], classes=["a", "b"])
    source = open_source(ConcatDataset([part, part]))
    assert (source.targets.tolist(), source.classes) == ([0, 1, 0, 1], ("a", "b"))


def test_parts_that_cannot_be_renumbered_are_refused() -> None:
    with pytest.raises(DataError, match="cat, dog and no names"):
        open_source(ConcatDataset([PARTS.datasets[0], Declared([0, 1])]))
    with pytest.raises(DataError, match=r"cat, dog and dog, wolf\. Pass the ConcatDataset itself"):
        open_source(DataLoader(PARTS))


class Wrapper(Dataset[Any]):
    """A dataset that passes on the items of others, with a function of the index and the label."""

    def __init__(self, *parts: Any, label: Any = lambda index, label: label) -> None:
        self.base = parts[0] if len(parts) == 1 else list(parts)
        self.label = label

    def __len__(self) -> int:
        return len(self._joined)

    def __getitem__(self, index: int) -> Any:
        item, label = self._joined[index]
        return item + 1, self.label(index, label)

    @property
    def _joined(self) -> Any:
        return ConcatDataset(self.base) if isinstance(self.base, list) else self.base


@pytest.mark.parametrize(
    "data",
    [
        Wrapper(PARTS),
        Wrapper(*PARTS.datasets),
        Wrapper(Wrapper(PARTS)),
        Wrapper(Subset(PARTS, [0, 1, 2])),
        Subset(Wrapper(PARTS), [0, 2]),
        ConcatDataset([Wrapper(PARTS), Wrapper(PARTS)]),
        random_split(Wrapper(PARTS), [3, 1])[0],
    ],
)
def test_a_wrapper_does_not_hide_that_parts_disagree(data: Any) -> None:
    for given in (data, DataLoader(data)):
        with pytest.raises(DataError, match=r"cat, dog and dog, wolf"):
            open_source(given)


def test_a_wrapper_may_renumber_its_parts() -> None:
    data = Wrapper(PARTS, label=lambda index, label: label + index // 2)
    assert labels_of(open_source(data)) == [0, 1, 1, 2]
    assert len(open_source(DataLoader(data)).iterable) == 4


@pytest.mark.parametrize("parts", [PARTS.datasets[:1], [PARTS.datasets[0], Declared([0, 1])], PARTS.datasets[:1] * 2])
def test_a_wrapper_of_parts_that_agree_is_read(parts: Any) -> None:
    assert open_source(Wrapper(*parts)).targets is None


def test_a_label_beyond_the_names_of_its_dataset() -> None:
    with pytest.raises(DataError, match="sample 1 has the label 2, but its dataset has 2 classes"):
        labels_of(open_source(Declared([0, 2], classes=["a", "b"]), classes=["b", "a"]))


def test_integers_name_classes_that_are_other_numbers() -> None:
    classes = ("1", "2", "30")
    assert labels_of(open_source(Declared([30, 1, 2]), classes=classes)) == [2, 0, 1]
    assert open_source(Declared([30, 1], targets=[30, 1]), classes=classes).targets.tolist() == [2, 0]
    assert labels_of(open_source(Declared([30, 1]), meaning=Meaning(classes, numbers=True))) == [30, 1]
    with pytest.raises(DataError, match="sample 0 has the class '0'"):
        labels_of(open_source(Declared([0, 1]), classes=classes))
    with pytest.raises(DataError, match="could be the name of a class or its position"):
        open_source(DataLoader(Declared([1, 2])), classes=classes)
