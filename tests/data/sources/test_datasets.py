from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import FakeData, ImageFolder

from finetune.data.preprocessing.base import IMAGE
from finetune.data.sources.open_source import open_source
from finetune.data.sources.streams.stream import Stream
from finetune.errors import DataError
from tests.helpers.datasets import Items
from tests.helpers.image_files import picture

MakeFolder = Callable[..., Path]


@pytest.mark.parametrize("attribute", ["targets", "labels"])
def test_declared_targets_are_used(attribute: str) -> None:
    items = [(torch.zeros(2), k % 3) for k in range(6)]
    known = Items(items, **{attribute: [0, 1, 2, 0, 1, 2]}, classes=["a", "b", ("c", "see")])
    source = open_source(known)
    assert source.targets is not None
    assert source.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert source.classes == ("a", "b", "c, see")
    part = open_source(Subset(known, [5, 0]))
    assert part.targets is not None
    assert part.targets.tolist() == [2, 0]
    assert part.classes == ("a", "b", "c, see")
    assert source.subset([4]).targets.tolist() == [1]
    assert open_source(Subset(Items(items), [0])).targets is None


@pytest.mark.parametrize(
    "targets",
    [
        None,
        "file",
        ["a.xml", "b.xml"],
        [1, 2, 3],
        [[1], [1, 2]],
        torch.tensor(3),
        torch.zeros(2, dtype=torch.complex64),
    ],
)
def test_attributes_that_only_look_like_targets_are_ignored(targets: Any) -> None:
    assert open_source(Items([(torch.zeros(1), 0)] * 2, targets=targets)).targets is None


def test_targets_are_not_those_before_the_transform(class_folder: MakeFolder) -> None:
    folder = str(class_folder(a=1, b=2))
    source = open_source(ImageFolder(folder, target_transform=lambda k: 1 - k))
    assert source.targets is None
    assert source.classes is None


def test_images_in_items_are_recognized() -> None:
    assert open_source(FakeData(size=3, image_size=(3, 8, 8))).kind == "picture"
    assert open_source(Items([(torch.zeros(3), 0)])).kind is None
    assert open_source(Items([])).kind is None
    keyed = open_source(Items([{"image": picture(1), "label": 2, "id": 5}]))
    assert keyed.kind == "picture"
    assert keyed[0][1] == 2
    assert open_source(Items([{"image": picture(1), "id": 5}])).kind == "picture"
    assert isinstance(open_source(Items([{"image": picture(1)}]))[0], Image.Image)


class Columns(Items):
    """The parts of a Hugging Face `Dataset` that are relied on."""

    def __init__(self, names: list[str] | None) -> None:
        super().__init__([{"text": torch.zeros(2), "label": k} for k in (1, 0, 1)])
        self.column_names = ["text", "label"]
        self.features = {"label": type("ClassLabel", (), {"names": names})()}

    def with_format(self, _: None) -> dict[str, list[int]]:
        return {"label": [1, 0, 1]}


def test_hugging_face_columns() -> None:
    source = open_source(Columns(["neg", "pos"]))
    assert source.classes == ("neg", "pos")
    assert source.targets is not None
    assert source.targets.tolist() == [1, 0, 1]
    assert set(source[0]) == {"text", "label"}
    assert open_source(Columns(None)).classes is None
    renumbered = open_source(Columns(["neg", "pos"]), classes=["pos", "neg"])
    assert renumbered.targets.tolist() == [0, 1, 0]
    assert renumbered[0]["label"] == 0
    unlabeled = Columns(None)
    unlabeled.column_names = ["text"]
    assert open_source(unlabeled).targets is None


def test_a_real_hugging_face_dataset() -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    data = datasets.Dataset.from_dict({"image": [picture(1), picture(2)], "label": [1, 0]}, features=features)
    source = open_source(data)
    assert source.kind == "picture"
    assert source.classes == ("x", "y")
    assert source.targets is not None
    assert source.targets.tolist() == [1, 0]
    assert source[0][1] == 1


def test_trap_35_training_classes_rule_in_datasets(class_folder: MakeFolder) -> None:
    train = open_source(ImageFolder(str(class_folder("train", ant=2, bee=2, cat=2))))
    folder = ImageFolder(str(class_folder("val", bee=1, cat=2)))
    assert folder.targets == [0, 1, 1]
    val = open_source(folder, classes=train.classes)
    assert val.targets is not None
    assert val.targets.tolist() == [1, 2, 2]
    assert [int(val[i][1]) for i in range(3)] == [1, 2, 2]
    assert open_source(folder, classes=["bee", "cat", "dog"]).targets.tolist() == [0, 1, 1]
    with pytest.raises(DataError, match=r"sample 1 has the class 'cat'.*known classes are ant, bee"):
        open_source(folder, classes=["ant", "bee"])
    unlabeled = Items([torch.zeros(1)], classes=["bee", "cat"])
    assert torch.equal(open_source(unlabeled, classes=["ant", "bee"])[0], torch.zeros(1))
    hidden = Items([{"x": torch.zeros(1), "label": k % 2} for k in range(4)], classes=["bee", "cat"])
    source = open_source(hidden, classes=["ant", "bee"])
    assert source[0]["label"] == 1
    with pytest.raises(DataError, match="sample 3 has the class 'cat'"):
        source.subset([0, 3])[1]


@pytest.mark.parametrize("by", ["bytes", "path"])
def test_images_that_are_not_decoded_are_decoded_here(by: str, tmp_path: Path) -> None:
    cells = []
    for level in range(6):
        picture(40 * level).save(tmp_path / f"{level}.png")
        content = (tmp_path / f"{level}.png").read_bytes() if by == "bytes" else None
        cells.append({"bytes": content, "path": None if by == "bytes" else str(tmp_path / f"{level}.png")})
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": cells, "label": [0, 1] * 3}, features=features)
    decoded = data.cast_column("image", datasets.Image())

    expected = [item for item, _ in open_source(decoded, takes=IMAGE)]
    for given in (data, data.to_iterable_dataset(), Items(list(zip(cells, [0, 1] * 3, strict=True)))):
        source = open_source(given, takes=IMAGE)
        items = list(map(source.form, source.first(6))) if isinstance(source, Stream) else list(source)
        assert [item.tobytes() for item, _ in items] == [item.tobytes() for item in expected]
        assert source.kind == IMAGE
    pair = open_source((cells, [0, 1] * 3), takes=IMAGE)
    assert [item.tobytes() for item, _ in pair] == [item.tobytes() for item in expected]


def test_a_cell_without_an_image_is_an_error() -> None:
    with pytest.raises(DataError, match="neither bytes nor a path"):
        open_source(([{"bytes": None, "path": None}], [0]), takes=IMAGE)


def several_labels(names: list[str], rows: list[list[int]], column: str = "x", inputs: Any = None) -> Any:
    values = [[float(len(row))] * 2 for row in rows] if inputs is None else inputs
    kind = datasets.List(datasets.Value("float32")) if inputs is None else datasets.Value("string")
    features = datasets.Features({column: kind, "labels": datasets.List(datasets.ClassLabel(names=names))})
    return datasets.Dataset.from_dict({column: values, "labels": rows}, features=features)


@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_a_list_of_classes_per_sample_is_several_labels_with_their_names(form: str | None) -> None:
    data = several_labels(["pug", "cat", "eel"], [[0], [2, 1], []]).with_format(form)
    source = open_source(data)
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0]])
    assert source.classes == ("pug", "cat", "eel")
    assert source.targets is not None
    assert torch.equal(source.targets, expected)
    assert torch.equal(torch.stack([source[index]["labels"] for index in range(3)]), expected)
    part = open_source(Subset(data, [2, 1]))
    assert part.targets is not None
    assert torch.equal(part.targets, expected[[2, 1]])


def test_several_labels_have_the_order_of_the_training_data() -> None:
    training, other = several_labels(["pug", "cat"], [[0], [1]]), several_labels(["cat", "pug"], [[0], [0, 1]])
    known = open_source(other, classes=open_source(training).classes)
    assert known.classes == ("pug", "cat")
    assert known.targets is not None
    assert known.targets.tolist() == [[0, 1], [1, 1]]
    joined = open_source(ConcatDataset([training, other]))
    assert joined.targets is not None
    assert joined.classes == ("cat", "pug")
    assert joined.targets.tolist() == [[0, 1], [1, 0], [1, 0], [1, 1]]
    with pytest.raises(DataError, match="eel"):
        open_source(several_labels(["eel"], [[0]]), classes=("pug", "cat"))


def test_texts_with_several_labels_keep_their_names() -> None:
    data = several_labels(["z", "a"], [[0, 1], []], "text", ["good", "bad"])
    source = open_source(data, takes="text")
    assert source.classes == ("z", "a")
    assert source.targets is not None
    assert source.targets.tolist() == [[1, 1], [0, 0]]
