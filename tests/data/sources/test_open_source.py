from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder

from finetune.data.sources.arrays import Arrays
from finetune.data.sources.datasets import MapDataset
from finetune.data.sources.folders import find_split
from finetune.data.sources.labels import encode
from finetune.data.sources.open_source import open_source
from finetune.data.sources.picture_files import PictureFiles
from finetune.data.sources.streams import Loader, Stream
from finetune.data.splitting import few_shot, split
from finetune.errors import ArgumentError, DataError
from tests.helpers.pictures import picture

MakeFolder = Callable[..., Path]


class Items(Dataset[Any]):
    """A data set of given items, with whatever attributes."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Counting(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.tensor([float(i)]), i % 2) for i in range(5)])


# ---------------------------------------------------------------- folders


def test_folder_is_read_as_torchvision_reads_it(class_folder: MakeFolder) -> None:
    folder = class_folder(cat=3, ant=2, Bee=1)
    (folder / "cat" / "deep" / "er").mkdir(parents=True)
    picture(1).save(folder / "cat" / "deep" / "er" / "X.JPG", format="JPEG")
    source, theirs = open_source(folder), ImageFolder(str(folder))
    assert source.classes == tuple(theirs.classes)
    assert source.targets is not None
    assert source.targets.tolist() == theirs.targets
    assert [source.name(i) for i in range(len(source))] == [path for path, _ in theirs.samples]
    for (ours, target), (image, label) in zip((source[i] for i in range(len(source))), theirs, strict=True):
        assert target == label
        assert np.array_equal(np.asarray(ours.convert("RGB")), np.asarray(image))
    assert source.kind == "picture"


def test_hidden_and_foreign_files_are_ignored(class_folder: MakeFolder, caplog: pytest.LogCaptureFixture) -> None:
    folder = class_folder(a=1, b=1)
    for name in (".hidden", "__MACOSX"):
        (folder / name).mkdir()
    for name in ("a/.x.png", "a/notes.txt", "b/._0.png", "top.png"):
        (folder / name).write_bytes(b"")
    with caplog.at_level(logging.WARNING, "finetune"):
        source = open_source(folder)
    assert len(source) == 2
    assert source.classes == ("a", "b")
    assert "1 pictures beside the class folders" in caplog.text


def test_unlabelled_folder_picture_and_list(class_folder: MakeFolder) -> None:
    folder = class_folder(a=2, b=1)
    picture(9).save(folder / "loose.png")
    everything = open_source(folder, labelled=False)
    assert [Path(everything.name(i)).relative_to(folder).as_posix() for i in range(4)] == [
        "loose.png", "a/0.png", "a/1.png", "b/0.png",
    ]  # fmt: skip
    assert isinstance(everything[0], Image.Image)
    one = open_source(str(folder / "loose.png"), labelled=False)
    several = open_source([folder / "a" / "1.png", str(folder / "loose.png")], labelled=False)
    assert len(one) == 1
    assert several.name(0).endswith("1.png")
    assert several.subset([1]).name(0).endswith("loose.png")


def test_missing_paths_name_the_nearest(class_folder: MakeFolder) -> None:
    folder = class_folder("train", a=1, b=1)
    with pytest.raises(DataError, match=r"no 'tarin' in .*Did you mean 'train'.*one folder per class"):
        open_source(folder.parent / "tarin")
    with pytest.raises(DataError, match="no 'tarin' in"):
        open_source(folder.parent / "tarin" / "deep" / "er")
    with pytest.raises(DataError, match=r"no '7\.png'"):
        open_source([folder / "a" / "7.png"], labelled=False)


def test_folders_that_are_no_class_folders(class_folder: MakeFolder, tmp_path: Path) -> None:
    folder = class_folder(a=1, b=1)
    with pytest.raises(DataError, match="holds 1 loose pictures and no folder per class"):
        open_source(folder / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no pictures"):
        open_source(tmp_path / "empty")
    (folder / "c").mkdir()
    with pytest.raises(DataError, match=r"class folder '.*c' holds no pictures"):
        open_source(folder)
    assert len(open_source(folder, classes=["a", "b", "c"])) == 2
    assert len(open_source(folder, classes=["a", "b"])) == 2


def test_find_split(tmp_path: Path, class_folder: MakeFolder) -> None:
    assert find_split(tmp_path / "nowhere") is None
    class_folder("Train", a=1, b=1)
    assert find_split(tmp_path) is None
    class_folder("test", a=1, b=1)
    assert find_split(str(tmp_path)) == (tmp_path / "Train", tmp_path / "test")
    class_folder("valid", a=1, b=1)
    assert find_split(tmp_path) == (tmp_path / "Train", tmp_path / "valid")
    with pytest.raises(DataError, match=r"divided into parts; they are not classes.*Train' as the training"):
        open_source(tmp_path)


def test_trap_35_training_classes_rule_in_folders(class_folder: MakeFolder) -> None:
    train = open_source(class_folder("train", ant=2, bee=2, cat=2))
    val = open_source(class_folder("val", bee=1, cat=2), classes=train.classes)
    assert val.classes == ("ant", "bee", "cat")
    assert val.targets is not None
    assert val.targets.tolist() == [1, 2, 2]
    stranger = class_folder("other", ant=1, bees=1)
    with pytest.raises(DataError) as caught:
        open_source(stranger, classes=train.classes)
    for part in ("'bees'", str(stranger / "bees" / "0.png"), "ant, bee, cat", "Did you mean 'bee'"):
        assert part in str(caught.value)


def test_trap_35_training_classes_rule_in_data_sets(class_folder: MakeFolder) -> None:
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
    unlabelled = Items([torch.zeros(1)], classes=["bee", "cat"])
    assert torch.equal(open_source(unlabelled, classes=["ant", "bee"])[0], torch.zeros(1))
    hidden = Items([{"x": torch.zeros(1), "label": k % 2} for k in range(4)], classes=["bee", "cat"])
    source = open_source(hidden, classes=["ant", "bee"])
    assert source[0]["label"] == 1
    with pytest.raises(DataError, match="sample 3 has the class 'cat'"):
        source.subset([0, 3])[1]


def test_trap_35_loaders_and_streams_cannot_be_renumbered(class_folder: MakeFolder) -> None:
    folder = ImageFolder(str(class_folder("val", bee=1, cat=2)))
    with pytest.raises(DataError, match="its class 0 is 'bee', the training data's is 'ant'"):
        open_source(DataLoader(folder), classes=["ant", "bee", "cat"])
    with pytest.raises(DataError, match="its class 1 is 'cat', the training data's is none"):
        open_source(DataLoader(folder), classes=["bee"])
    assert open_source(DataLoader(folder), classes=["bee", "cat", "dog"]).classes == ("bee", "cat", "dog")
    assert open_source(DataLoader(folder)).classes == ("bee", "cat")
    opened = open_source(folder)
    assert open_source(opened, classes=["bee", "cat", "dog"]) is opened
    with pytest.raises(DataError, match="The source numbers the classes in its own way"):
        open_source(opened, classes=["cat", "bee"])


# ---------------------------------------------------------------- tables


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
    return [f"{i}.png" for i in range(4)]


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ("path,label", ","),
        ("Class;FileName", ";"),
        ("id\timg_path\ttarget", "\t"),
        ("where,what", ","),
        (None, ","),
    ],
)
def test_columns_are_found(tmp_path: Path, pictures: list[str], header: str | None, delimiter: str) -> None:
    label_first = header is not None and header.startswith("Class")
    rows = [[p, name] for p, name in zip(pictures, ["b", "a", "b", "c"], strict=True)]
    rows = [row[::-1] if label_first else row for row in rows]
    if header is not None and header.startswith("id"):
        rows = [["7", *row] for row in rows]
    lines = ([header] if header else []) + [delimiter.join(row) for row in rows]
    source = open_source(write(tmp_path / "t.csv", "\ufeff" + "\n".join(lines) + "\n\n"))
    assert source.classes == ("a", "b", "c")
    assert source.targets is not None
    assert source.targets.tolist() == [1, 0, 1, 2]
    assert source.name(3) == str(tmp_path / "3.png")
    assert open_source(tmp_path / "t.csv", labelled=False).targets is None


@pytest.mark.parametrize(
    ("labels", "targets", "classes"),
    [
        ("0 1 2 1", [0, 1, 2, 1], ("0", "1", "2")),
        ("10 9 9 200", [1, 0, 0, 2], ("9", "10", "200")),
        ("007 008 007 9", [0, 1, 0, 2], ("007", "008", "9")),
        ("0.5 1 2.25 1e3", [0.5, 1, 2.25, 1000], None),
        ("a b 1 2", [2, 3, 0, 1], ("1", "2", "a", "b")),
    ],
)
def test_labels_of_every_kind(
    tmp_path: Path, pictures: list[str], labels: str, targets: list[float], classes: tuple[str, ...] | None
) -> None:
    rows = "".join(f"{p},{label}\n" for p, label in zip(pictures, labels.split(), strict=True))
    source = open_source(write(tmp_path / "t.csv", "path,label\n" + rows))
    assert source.targets is not None
    assert source.targets.tolist() == targets
    assert source.targets.dtype == (torch.float32 if classes is None else torch.int64)
    assert source.classes == classes


def test_parquet_equals_csv(tmp_path: Path, pictures: list[str]) -> None:
    table = pd.DataFrame({"path": pictures, "label": ["x", "y", "x", "z"]})
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    a, b = open_source(tmp_path / "t.csv"), open_source(tmp_path / "t.parquet")
    assert a.classes == b.classes
    assert a.targets is not None
    assert b.targets is not None
    assert torch.equal(a.targets, b.targets)
    assert [a.name(i) for i in range(4)] == [b.name(i) for i in range(4)]
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_source(write(tmp_path / "bad.parquet", "no"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install torch-finetune\[parquet\]"):
        open_source(write(tmp_path / "t.parquet", ""))


def test_several_regression_columns(tmp_path: Path, pictures: list[str]) -> None:
    rows = "".join(f"{p},{i},{i * 0.5}\n" for i, p in enumerate(pictures))
    source = open_source(write(tmp_path / "t.csv", "path,target_x,target_y\n" + rows))
    assert source.targets is not None
    assert source.targets.tolist() == [[i, i * 0.5] for i in range(4)]
    assert source.classes is None
    with pytest.raises(DataError, match=r"target_x, target_y .* are not all numbers"):
        open_source(write(tmp_path / "u.csv", "path,target_x,target_y\n0.png,1,a\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("path,label\n0.png\n", "row 1 has 1 cells; expected 2"),
        ("path,label\n0.png,a\n1.png,\n", r"1\.png' \(row 2 of .* has no label"),
        ("path,label\n0.png,1\n1.png,nan\n", "has no label"),
        ("path,label\n0.png,a\n9.png,a\n", r"1 of 2 pictures that do not exist: .*9\.png' \(row 2\)"),
        ("a,b,c\n1,2,3\n", "it has a, b, c"),
        ("path,b,c\n0.png,2,3\n", "Cannot tell which column .* is the label; beside 'path' it has b, c"),
        ("path,target_a,c\n0.png,2,3\n", "Cannot tell which column"),
    ],
)
def test_bad_tables_say_where(tmp_path: Path, pictures: list[str], text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(write(tmp_path / "t.csv", text))


def test_quoted_cells_may_hold_anything(tmp_path: Path, pictures: list[str]) -> None:
    source = open_source(write(tmp_path / "t.csv", 'path,label\n0.png,"a, or\nb"\n1.png,c\n'))
    assert source.classes == ("a, or\nb", "c")


def test_tables_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff\xfe,\n")
    with pytest.raises(DataError, match="not UTF-8"):
        open_source(tmp_path / "t.csv")
    with pytest.raises(DataError, match="neither a table"):
        open_source(write(tmp_path / "t.xlsx", ""))


def test_trap_35_training_classes_rule_in_tables(tmp_path: Path, pictures: list[str]) -> None:
    train = open_source(write(tmp_path / "a.csv", "path,label\n0.png,5\n1.png,7\n2.png,9\n"))
    val = open_source(write(tmp_path / "b.csv", "path,label\n0.png,7\n1.png,9\n"), classes=train.classes)
    assert val.targets is not None
    assert val.targets.tolist() == [1, 2]
    with pytest.raises(DataError, match=r"1\.png' \(row 2 of .*b\.csv'\) has the class '8'.* 5, 7, 9"):
        open_source(write(tmp_path / "b.csv", "path,label\n0.png,7\n1.png,8\n"), classes=train.classes)
    many = [f"c{i}" for i in range(30)]
    with pytest.raises(DataError, match=r"c19, \.\.\. \(30 in all\)"):
        open_source(tmp_path / "b.csv", classes=many)


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list, pd.Series])
def test_pairs_of_every_kind(kind: Callable[..., Any]) -> None:
    inputs, labels = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [1, 0, 1]
    pair = (inputs if kind is pd.Series else kind(inputs), kind(labels))
    source = open_source(pair)
    assert isinstance(source, Arrays)
    assert source.gather(torch.tensor([2, 0]))[0].tolist() == [[5.0, 6.0], [1.0, 2.0]]
    assert source.gather(torch.tensor([2, 0]))[0].dtype == torch.float32
    assert source.targets is not None
    assert source.targets.dtype == torch.int64
    value, target = source[1]
    assert (value.tolist(), int(target)) == ([3.0, 4.0], 0)
    part = source.subset([2, 1]).subset([1])
    assert part.name(0) == "sample 1"
    assert part[0][0].tolist() == [3.0, 4.0]
    alone = open_source(pair, labelled=False)
    assert alone.targets is None
    assert alone[2].tolist() == [5.0, 6.0]


def test_labels_of_arrays() -> None:
    x = np.zeros((3, 2), dtype=np.float32)
    for names in (
        ["b", "a", "b"],
        np.array(["b", "a", "b"]),
        np.array([b"b", b"a", b"b"]),
        pd.Series(list("bab")),
    ):
        source = open_source((x, names))
        assert source.classes == ("a", "b")
        assert source.targets is not None
        assert source.targets.tolist() == [1, 0, 1]
    assert open_source((x, np.array(["a", "c", "b"])), classes=["c", "b", "a"]).targets.tolist() == [2, 0, 1]
    assert open_source((x, np.ones((3, 2)))).targets.dtype == torch.float32
    assert open_source((x, torch.ones(3, dtype=torch.float64))).targets.dtype == torch.float64
    assert open_source((x, [True, False, True])).targets.tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="sample 2 has the class 'z'"):
        open_source((x, ["a", "a", "z"]), classes=["a"])
    with pytest.raises(DataError, match="3 inputs and 2 labels"):
        open_source((x, [0, 1]))
    with pytest.raises(DataError, match="do not form an array"):
        open_source((x, [[1], [1, 2], [3]]))


def test_memory_maps_stay_on_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(6, 2))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    source = open_source((mapped, np.arange(6)))
    assert isinstance(source, Arrays)
    assert source.inputs is mapped
    assert source.gather(torch.tensor([5, 1]))[0].tolist() == [[10.0, 11.0], [2.0, 3.0]]
    backwards = open_source((np.arange(12.0).reshape(6, 2)[::-1], np.arange(6)))
    assert backwards[0][0].tolist() == [10.0, 11.0]


def test_arrays_share_the_users_memory() -> None:
    x = np.zeros((4, 2), dtype=np.float32)
    source = open_source((x, [0, 1, 0, 1]))
    x[3] = 7
    assert source[3][0].tolist() == [7, 7]


def test_lists_of_tensors_paths_and_pictures(tmp_path: Path, pictures: list[str]) -> None:
    stacked = open_source(([torch.ones(2), torch.zeros(2)], [0, 1]))
    assert isinstance(stacked, Arrays)
    with pytest.raises(DataError, match="do not have one shape"):
        open_source(([torch.ones(2), torch.zeros(3)], [0, 1]))
    with pytest.raises(DataError, match="not an array of numbers"):
        open_source((np.array([{}, {}]), [0, 1]))
    files = open_source(([tmp_path / p for p in pictures], ["b", "a", "b", "a"]))
    assert isinstance(files, PictureFiles)
    assert files.classes == ("a", "b")
    with pytest.raises(DataError, match=r"3\.png' has the class 'z'"):
        open_source(([tmp_path / p for p in pictures], ["b", "a", "b", "z"]), classes=["a", "b"])
    images = open_source(([picture(1), picture(2)], ["x", "y"]))
    assert images.kind == "picture"
    assert images.classes == ("x", "y")
    assert int(images[1][1]) == 1
    assert open_source([picture(1), picture(2)], labelled=False).kind == "picture"
    assert open_source(([picture(1), picture(2)], ["x", "y"]), labelled=False).kind == "picture"


def test_inputs_alone() -> None:
    x = torch.arange(6.0).reshape(3, 2)
    for alone in (x, x.numpy(), x.tolist(), list(x)):
        source = open_source(alone, labelled=False)
        assert isinstance(source, Arrays)
        assert source.gather(torch.tensor([1])).tolist() == [[2.0, 3.0]]
    with pytest.raises(DataError, match=r"X alone has no labels.*\(3, 2\)"):
        open_source(x)
    with pytest.raises(DataError, match=r"Paths alone have no labels: 'a.png', 'b', 'c', \.\.\."):
        open_source(["a.png", "b", "c", "d"])
    with pytest.raises(DataError, match=r"Texts alone have no labels: 'a', 'b'"):
        open_source(["a", "b"])


@pytest.mark.parametrize("data", [7, None, {"x": 1}, {1, 2}])
def test_what_is_not_data_is_told_what_is(data: Any) -> None:
    with pytest.raises(DataError, match=r"type .* cannot be used\. Accepted are: a folder.*DataLoader"):
        open_source(data)
    with pytest.raises(DataError, match="to predict also a picture's path"):
        open_source(data, labelled=False)


# ---------------------------------------------------------------- data sets


@pytest.mark.parametrize("attribute", ["targets", "labels"])
def test_cheap_targets_of_data_sets(attribute: str) -> None:
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
def test_what_only_looks_like_targets_is_left(targets: Any) -> None:
    assert open_source(Items([(torch.zeros(1), 0)] * 2, targets=targets)).targets is None


def test_transformed_targets_are_not_taken_for_the_raw_ones(class_folder: MakeFolder) -> None:
    folder = str(class_folder(a=1, b=2))
    source = open_source(ImageFolder(folder, target_transform=lambda k: 1 - k))
    assert source.targets is None
    assert source.classes is None


def test_pictures_in_items_are_seen() -> None:
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
    unlabelled = Columns(None)
    unlabelled.column_names = ["text"]
    assert open_source(unlabelled).targets is None


def test_real_hugging_face_data_set() -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    data = datasets.Dataset.from_dict({"image": [picture(1), picture(2)], "label": [1, 0]}, features=features)
    source = open_source(data)
    assert source.kind == "picture"
    assert source.classes == ("x", "y")
    assert source.targets is not None
    assert source.targets.tolist() == [1, 0]
    assert source[0][1] == 1


def test_few_shots_are_so_many_of_each_class_and_the_same_for_a_seed() -> None:
    targets = torch.tensor([0, 1, 2] * 8)
    source = Arrays(torch.arange(24.0), targets)
    few, rest = few_shot(source, 3, seed=1)
    assert few.targets.bincount().tolist() == [3, 3, 3]
    assert sorted([*few.inputs[few.indices].tolist(), *rest.inputs[rest.indices].tolist()]) == list(range(24))
    assert torch.equal(few.indices, few_shot(source, 3, seed=1)[0].indices)
    assert not torch.equal(few.indices, few_shot(source, 3, seed=2)[0].indices)


@pytest.mark.parametrize(
    ("targets", "shots", "error", "message"),
    [
        (torch.tensor([0, 1, 1]), 1, DataError, "Class 0 has 1 samples"),
        (torch.tensor([0.5, 1.0]), 1, DataError, "needs class targets"),
        (torch.tensor([0, 1]), 0, ArgumentError, "shots is 0"),
    ],
)
def test_few_shots_that_cannot_be(targets: torch.Tensor, shots: int, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        few_shot(Arrays(torch.zeros(len(targets)), targets), shots)


def test_tensor_datasets_are_arrays() -> None:
    data = TensorDataset(torch.arange(3.0), torch.tensor([0, 1, 0]))
    assert isinstance(open_source(data), Arrays)
    assert open_source(data, labelled=False).targets is None
    assert isinstance(open_source(TensorDataset(torch.arange(3.0))), MapDataset)


def test_streams_and_loaders_have_no_samples_by_index() -> None:
    stream, loader = open_source(Counting()), open_source(DataLoader(Items([1, 2])))
    assert isinstance(stream, Stream)
    assert isinstance(loader, Loader)
    for source in (stream, loader):
        for use in (len, lambda s: s[0], lambda s: s.subset([0])):
            with pytest.raises(TypeError, match="read as a stream"):
                use(source)
    assert open_source(stream) is stream
    assert stream.name(3) == "sample 3"


def test_opening_draws_no_random_numbers(class_folder: MakeFolder) -> None:
    class Noisy(Items):
        def __getitem__(self, index: int) -> Any:
            return torch.rand(2), 0

    state = torch.random.get_rng_state()
    open_source(Noisy([0, 1]))
    split(open_source(class_folder(a=5, b=5)))
    assert torch.equal(torch.random.get_rng_state(), state)


# ---------------------------------------------------------------- split


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=200),
    st.sampled_from([0.01, 0.1, 0.2, 0.5, 0.9, 0.99]),
    st.integers(0, 5),
)
def test_split_is_stratified_complete_and_keeps_every_class(labels: list[int], fraction: float, seed: int) -> None:
    source = open_source((torch.arange(len(labels)), labels))
    if max(np.bincount(labels)) < 2:
        with pytest.raises(DataError, match="too few"):
            split(source, fraction, seed)
        return
    train, val = split(source, fraction, seed)
    assert isinstance(train, Arrays)
    assert isinstance(val, Arrays)
    assert sorted([*train.indices.tolist(), *val.indices.tolist()]) == list(range(len(labels)))
    assert train.indices.tolist() == sorted(train.indices.tolist())
    assert set(train.targets.tolist()) == set(labels)
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        given_up = int((val.targets == label).sum())
        assert given_up <= count * fraction + 1.5
        assert given_up >= min(int(count * fraction), count - 1)
    again = split(source, fraction, seed)[1]
    assert isinstance(again, Arrays)
    assert torch.equal(val.indices, again.indices)


def test_split_of_many_small_classes_reaches_the_fraction() -> None:
    source = open_source((torch.zeros(300), np.repeat(np.arange(100), 3)))
    train, val = split(source, 0.2)
    assert (len(train), len(val)) == (240, 60)
    assert not torch.equal(val.targets, split(source, 0.2, seed=1)[1].targets)


def test_split_of_regression_and_its_errors() -> None:
    source = open_source((torch.zeros(10, 1), torch.rand(10)))
    assert [len(part) for part in split(source, 0.3)] == [7, 3]
    for fraction in (0.0, 1.0, -1):
        with pytest.raises(ArgumentError, match="fraction"):
            split(source, fraction)
    with pytest.raises(DataError, match="no length"):
        split(open_source(Counting()))
    with pytest.raises(DataError, match="too few"):
        split(open_source((torch.zeros(1), [0])))
    with pytest.raises(DataError, match="too few"):
        split(open_source(Items([])))


def test_encode_reads_numpy_scalars_and_bools() -> None:
    targets, classes = encode([np.int64(3), True], None, str)
    assert (targets.tolist(), classes) == ([1, 0], ("1", "3"))
    with pytest.raises(DataError, match="1 has no label"):
        encode(["a", None], None, str)
