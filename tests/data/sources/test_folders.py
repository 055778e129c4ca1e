from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from finetune.data.audit import audit
from finetune.data.sources.folders import find_split
from finetune.data.sources.open_source import open_source
from finetune.errors import DataError
from tests.helpers.files import make_deep
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
    assert "1 image beside the class folders" in caplog.text


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


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("Train", "Test"),
        ("train_images", "val_images"),
        ("TRAIN", "Validation Set"),
        ("trainset", "testset"),
        ("train2017", "val2017"),
    ],
)
def test_parts_in_folders_of_usual_names_are_no_classes(
    tmp_path: Path, class_folder: MakeFolder, train: str, val: str
) -> None:
    class_folder(train, cat=2, dog=2)
    class_folder(val, cat=2, dog=2)
    assert find_split(tmp_path) == (tmp_path / train, tmp_path / val)


def test_equal_folders_in_all_folders_are_rather_the_classes(tmp_path: Path, class_folder: MakeFolder) -> None:
    for part in ("north", "south"):
        class_folder(part, cat=2, dog=2)
    with pytest.raises(DataError, match=r"north and south, hold the same folders cat and dog, so these are rather"):
        open_source(tmp_path)
    class_folder("south", owl=2)
    assert open_source(tmp_path).classes == ("north", "south")


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


def picture_file(path: Path) -> Path:
    picture(1).save(path)
    return path


def _warnings(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("cat/all", ".."),  # the parent
        ("cat/up", "../.."),  # a folder further up
        ("cat/self", "."),
        ("all", "."),  # a class folder that is the whole
        ("cat/deep/again", "../deep"),  # a folder that is read anyway
        ("cat/deep/cat", "../../cat"),
    ],
)
def test_a_linked_folder_is_read_once(
    class_folder: MakeFolder, caplog: pytest.LogCaptureFixture, link: str, target: str
) -> None:
    folder = class_folder(cat=3, dog=2)
    (folder / "cat" / "deep").mkdir()
    picture(1).save(folder / "cat" / "deep" / "x.png")
    (folder / link).symlink_to(target)
    source, unlabeled = open_source(folder), open_source(folder, labeled=False)
    assert source.classes == ("cat", "dog")
    assert source.targets is not None
    assert source.targets.tolist() == [0] * 4 + [1] * 2
    assert len(unlabeled) == 6
    assert "Left out" in _warnings(caplog)
    assert str(folder / link) in _warnings(caplog)


def test_links_to_data_elsewhere_are_followed(
    class_folder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = class_folder("pool", cat=3, dog=2)
    (tmp_path / "linked").mkdir()
    for label in ("cat", "dog"):
        (tmp_path / "linked" / label).symlink_to(pool / label)
    (tmp_path / "linked" / "own").mkdir()
    (tmp_path / "linked" / "own" / "o.png").symlink_to(picture_file(tmp_path / "other.png"))
    picture_file(tmp_path / "linked" / "own" / "mine.png")
    (tmp_path / "linked" / "own" / "again.png").symlink_to("mine.png")
    for labeled in (True, False):
        caplog.clear()
        assert len(open_source(tmp_path / "linked", labeled=labeled)) == 8
        assert [record.getMessage() for record in caplog.records] == [
            f"Following 3 links to files or folders outside '{tmp_path / 'linked'}', such as "
            f"'{tmp_path / 'linked' / 'cat'}' to '{pool / 'cat'}'."
        ]


@pytest.mark.parametrize("target", ["/proc", "/proc/self", "/dev", "/sys"])
def test_the_state_of_the_system_is_no_data(class_folder: MakeFolder, target: str) -> None:
    folder = class_folder(cat=2, dog=2)
    (folder / "eel").symlink_to(target)
    for labeled in (True, False):
        with pytest.raises(DataError, match=rf"eel' leads to '{target[:4]}.* Remove the link"):
            open_source(folder, labeled=labeled)


def test_one_folder_or_file_of_two_classes_is_said(class_folder: MakeFolder, caplog: pytest.LogCaptureFixture) -> None:
    folder = class_folder(cat=2, dog=2)
    (folder / "dog" / "also.png").symlink_to(folder / "cat" / "0.png")
    audit(open_source(folder))
    assert "1 of the 4 images of the training data are listed more than once with different labels" in _warnings(caplog)
    (folder / "dog" / "also.png").unlink()
    (folder / "dog" / "more").symlink_to(folder / "cat")
    with pytest.raises(DataError, match=r"are the same folder, but of two classes, 'dog' and 'cat'"):
        open_source(folder)
    (folder / "dog" / "more").unlink()
    assert len(open_source(folder)) == 4


@pytest.mark.parametrize("name", ["고양이", "crème brûlée", "naïve", "Ångström", "ñandú", "がぎぐ"])
def test_a_name_is_one_class_in_every_unicode_form(tmp_path: Path, name: str) -> None:
    for form in ("NFC", "NFD"):
        for root in ("both", form):
            for label in (name, "other"):
                path = tmp_path / root / unicodedata.normalize(form, label) / f"{form}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(1).save(path)
    both = open_source(tmp_path / "both")
    assert both.classes == tuple(sorted((unicodedata.normalize("NFC", name), "other")))
    assert len(both) == 4
    for train, val in (("NFC", "NFD"), ("NFD", "NFC")):
        classes = open_source(tmp_path / train).classes
        assert open_source(tmp_path / val, classes=classes).classes == classes
    old = [unicodedata.normalize("NFD", label) for label in both.classes]  # classes of a checkpoint
    targets = open_source(tmp_path / "NFC", classes=old).targets
    assert targets is not None
    assert targets.tolist() == [0, 1]


@pytest.mark.parametrize(
    "name", ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN", "#recycle", "__pycache__"]
)
def test_folders_of_systems_are_no_classes(
    class_folder: MakeFolder, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    folder = class_folder(cat=2, dog=2)
    for inside in (folder / name, folder / "cat" / name):
        inside.mkdir()
        picture(1).save(inside / "thumb.jpg")
    (folder / "cat" / "Thumbs.db").write_bytes(b"")
    assert open_source(folder).classes == ("cat", "dog")
    assert len(open_source(folder)) == len(open_source(folder, labeled=False)) == 4
    assert not caplog.records


def test_files_left_out_are_counted_by_suffix(class_folder: MakeFolder, caplog: pytest.LogCaptureFixture) -> None:
    folder = class_folder(cat=4, dog=4)
    for i in range(20):
        (folder / "cat" / f"IMG_{i}.{'HEIC' if i % 2 else 'heic'}").write_bytes(b"")
    (folder / "dog" / "notes.txt").write_bytes(b"")
    (folder / "dog" / "LICENSE").write_bytes(b"")
    for labeled in (True, False):
        caplog.clear()
        open_source(folder, labeled=labeled)
        [record] = caplog.records
        assert "Left out 22 of the 30 files" in record.getMessage()
        assert "20 .heic, 1 " in record.getMessage()
        assert "1 .txt" in record.getMessage()
        assert "Convert images of other formats to .jpg or .png" in record.getMessage()
    for image in (folder / "cat").glob("*.png"):
        image.unlink()
    with pytest.raises(DataError, match=r"'.*cat' contains no images but 20 \.heic files"):
        open_source(folder)


@pytest.mark.parametrize("below", ["images", "data/images", "images/train", "a/b/c"])
def test_a_folder_one_level_too_high_is_told_apart(class_folder: MakeFolder, tmp_path: Path, below: str) -> None:
    right = class_folder(f"all/{below}", cat=2, dog=2)
    for classes in (None, ["cat", "dog"]):
        with pytest.raises(DataError, match=r"the folders cat and dog are in '.*'\. .* Pass '(.*)'\.") as caught:
            open_source(tmp_path / "all", classes=classes)
        advised = str(caught.value).rsplit("Pass '")[1].removesuffix("'.")
        assert Path(advised) == right
        assert open_source(advised, classes=classes).classes == ("cat", "dog")


def test_a_missing_image_suggests_images_only(class_folder: MakeFolder) -> None:
    folder = class_folder("train", cat=1) / "cat"
    for name in ("photo1.py", "photo1.txt", "photo2.png"):
        (folder / name).write_bytes(b"")
    with pytest.raises(
        DataError, match=r"no 'photo1\.png' in .*Did you mean 'photo2\.png'.* Correct the path"
    ) as caught:
        open_source(folder / "photo1.png", labeled=False)
    assert ".py" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["**/*.png", "*/**/*.png", "**", "**/**/?.png", "c*/**/[0-9].png"])
@pytest.mark.parametrize(
    "links", [{"cat/loop": "."}, {"cat/loop": ".", "cat/round": "."}, {"up": "..", "cat/up": "../.."}]
)
def test_a_pattern_finds_each_image_once(
    class_folder: MakeFolder, caplog: pytest.LogCaptureFixture, pattern: str, links: dict[str, str]
) -> None:
    folder = class_folder(cat=3, cow=2)
    for link, target in links.items():
        (folder / link).symlink_to(target)
    source = open_source(str(folder / pattern), labeled=False)
    assert [source.name(i) for i in range(len(source))] == sorted(map(str, folder.glob("*/*.png")))
    assert "links to folders that are read already or hold the data" in _warnings(caplog)


def test_a_pattern_follows_links_to_data_elsewhere(
    class_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = class_folder("pool [1]", cat=3)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "cats").symlink_to(pool / "cat")
    (tmp_path / "linked" / ".hidden").symlink_to(pool)
    monkeypatch.chdir(tmp_path)
    source = open_source("linked/**/*.png", labeled=False)
    assert [source.name(i) for i in range(len(source))] == [f"linked/cats/{i}.png" for i in range(3)]
    assert len(open_source("**/*.png", labeled=False)) == 3  # of the two ways to a folder, one


def test_folders_that_cannot_be_read_are_said(class_folder: MakeFolder, caplog: pytest.LogCaptureFixture) -> None:
    folder = class_folder(cat=2, dog=2)
    make_deep(folder / "cat")
    for labeled in (True, False):
        caplog.clear()
        assert len(open_source(folder, labeled=labeled)) == 4
        assert re.search(r"Left out 1 folder that cannot be read, .* \(File name too long\)", _warnings(caplog))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser reads every folder")
def test_folders_without_permission_are_said(class_folder: MakeFolder, caplog: pytest.LogCaptureFixture) -> None:
    folder = class_folder(cat=2, dog=2)
    (folder / "dog" / "own").mkdir(mode=0o000)
    assert len(open_source(folder)) == 4
    assert "Left out 1 folder that cannot be read" in _warnings(caplog)
    folder.chmod(0o300)
    with pytest.raises(DataError, match=r"The folder '.*' cannot be read: Permission denied"):
        open_source(folder)
    folder.chmod(0o700)
