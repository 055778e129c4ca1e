from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from finetune.data.sources.folders import find_split
from finetune.data.sources.open_source import open_source
from finetune.errors import DataError
from tests.helpers.image_files import picture

MakeFolder = Callable[..., Path]


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
    assert "1 images beside the class folders" in caplog.text


def test_unlabeled_folder_image_and_list(class_folder: MakeFolder) -> None:
    folder = class_folder(a=2, b=1)
    picture(9).save(folder / "loose.png")
    everything = open_source(folder, labeled=False)
    assert [Path(everything.name(i)).relative_to(folder).as_posix() for i in range(4)] == [
        "loose.png", "a/0.png", "a/1.png", "b/0.png",
    ]  # fmt: skip
    assert isinstance(everything[0], Image.Image)
    one = open_source(str(folder / "loose.png"), labeled=False)
    several = open_source([folder / "a" / "1.png", str(folder / "loose.png")], labeled=False)
    assert len(one) == 1
    assert several.name(0).endswith("1.png")
    assert several.subset([1]).name(0).endswith("loose.png")


def test_missing_paths_name_the_nearest(class_folder: MakeFolder) -> None:
    folder = class_folder("train", a=1, b=1)
    with pytest.raises(DataError, match=r"no 'tarin' in .*Did you mean 'train'.*one subfolder per class"):
        open_source(folder.parent / "tarin")
    with pytest.raises(DataError, match="no 'tarin' in"):
        open_source(folder.parent / "tarin" / "deep" / "er")
    with pytest.raises(DataError, match=r"no '7\.png'"):
        open_source([folder / "a" / "7.png"], labeled=False)


def test_folders_without_class_folders(class_folder: MakeFolder, tmp_path: Path) -> None:
    folder = class_folder(a=1, b=1)
    with pytest.raises(DataError, match="contains 1 loose images and no class folders"):
        open_source(folder / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no images"):
        open_source(tmp_path / "empty")
    (folder / "c").mkdir()
    with pytest.raises(DataError, match=r"class folder '.*c' contains no images"):
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
    with pytest.raises(DataError, match=r"contains a training and a validation folder .*Train' as the training"):
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
