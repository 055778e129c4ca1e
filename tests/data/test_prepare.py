from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from finetune.data.prepare import prepare
from finetune.data.preprocessing.text import TextPreprocessing
from finetune.data.sources.labels import Meaning
from finetune.data.targets import CLASSIFICATION, TargetRule
from finetune.errors import DataError

MakeFolder = Callable[..., Path]


def pair(n: int = 24) -> tuple[Tensor, Tensor]:
    """Return X [n, 4] and class indices [n]."""
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3


def test_data_is_opened_split_and_checked(class_folder: MakeFolder, caplog: pytest.LogCaptureFixture) -> None:
    folder = class_folder(ant=5, bee=5)
    (folder / "bee" / "4.png").write_bytes(b"damaged")
    data = prepare(folder)

    with pytest.raises(DataError, match=r"cannot be decoded: .*4\.png"):
        data.audited(rule=TargetRule(CLASSIFICATION, 2))
    kept = data.audited(rule=TargetRule(CLASSIFICATION, 2), skip_corrupt=True)

    assert (len(kept.train) + len(kept.val), kept.train.classes, kept.notes) == (9, ("ant", "bee"), data.notes)
    assert "2 of 10 samples were held out" in data.notes[0]
    assert "They are left out." in caplog.text
    with pytest.raises(DataError, match="training data has 2 classes"):
        data.audited(rule=TargetRule(CLASSIFICATION, 3), skip_corrupt=True)


def test_raw_items_are_checked_by_their_preprocessing() -> None:
    class Reader(TextPreprocessing):
        """Takes texts that are not empty."""

        def __init__(self) -> None: ...

        def check(self, item: Any) -> None:
            if not item:
                raise DataError("the text is empty")

    data = prepare((["a.png", ""], ["x", "y"]), False, takes="text")
    assert (data.train.kind, data.val) == ("text", None)
    assert len(data.audited().train) == 2
    with pytest.raises(DataError, match="sample 1: the text is empty"):
        data.audited(preprocessing=Reader())


def test_classes_of_the_model_keep_their_order(class_folder: MakeFolder) -> None:
    folder = class_folder(ant=5, bee=5)

    assert prepare(folder, model_classes=["bee", "cat", "ant"]).train.classes == ("bee", "cat", "ant")
    assert prepare(folder, model_classes=["bee", "cat"]).train.classes == ("ant", "bee")
    known = prepare(folder, meaning=Meaning(("bee", "ant")), model_classes=["ant", "bee"])
    assert known.val.classes == ("bee", "ant")
    with pytest.raises(DataError, match="has the class 'ant'"):
        prepare(folder, meaning=Meaning(("bee",)))


def test_validation_data_has_no_class_that_only_the_model_knows(class_folder: MakeFolder) -> None:
    train, val = class_folder("train", ant=2, bee=2), class_folder("val", ant=1, cat=1)

    with pytest.raises(DataError, match="has the class 'cat'"):
        prepare(train, val, model_classes=["bee", "cat", "ant"])
    known = prepare(train, train, model_classes=["bee", "cat", "ant"])
    assert known.val is not None
    assert known.val.classes == ("bee", "cat", "ant")


def test_validation_data_is_data_a_share_or_none() -> None:
    given = prepare(pair(40), pair(9))
    share = prepare(pair(40), 0.25)

    assert (len(given.train), len(given.val), given.notes) == (40, 9, ())
    assert (len(share.train), len(share.val)) == (30, 10)
    assert "10 of 40 samples were held out" in share.notes[0]
    for none in (None, False):
        assert prepare(pair(40), none).val is None


def two_classes(folder: Path, parts: list[str]) -> Path:
    for k, part in enumerate(parts):
        for label in ("cat", "dog"):
            (folder / part / label).mkdir(parents=True)
            for i in range(5):
                values = np.full((8, 8, 3), 20 * i + k, np.uint8)
                Image.fromarray(values).save(folder / part / label / f"{i}.png")
    return folder


def test_a_folder_is_split_unless_it_has_a_validation_folder(tmp_path: Path) -> None:
    plain = prepare(two_classes(tmp_path / "plain", [""]), None)
    split = prepare(str(two_classes(tmp_path / "split", ["train", "val"])), None)
    whole = prepare(tmp_path / "plain", False)

    assert (len(plain.train), len(plain.val), len(plain.notes)) == (8, 2, 1)
    assert (len(split.train), len(split.val)) == (10, 10)
    assert [note.replace(str(tmp_path), "") for note in split.notes] == [
        "Training on '/split/train' and validating on '/split/val'."
    ]
    assert (len(whole.train), whole.val) == (10, None)


@pytest.mark.parametrize("form", ["link", "linked classes", "copy", "same folder", "one link", "renamed"])
def test_validation_on_training_files_is_said(tmp_path: Path, form: str) -> None:
    folder = two_classes(tmp_path / "pets", ["train"] if form in ("link", "copy", "same folder") else ["train", "val"])
    train, val = folder / "train", folder / "val"
    if form == "link":
        val.symlink_to(train)
    elif form == "linked classes":
        shutil.rmtree(val / "cat")
        (val / "cat").symlink_to(train / "cat")
    elif form == "copy":
        shutil.copytree(train, val)
    elif form == "one link":
        (val / "dog" / "9.png").symlink_to(train / "dog" / "0.png")
    said = prepare(train, train).notes if form == "same folder" else prepare(folder).notes[1:]

    expected = {"linked classes": "5 of 10", "one link": "1 of 11"}.get(form, "10 of 10")
    if form == "renamed":
        assert said == ()
    else:
        assert said[0].startswith(f"Validating on training data: {expected} images, such as '{tmp_path}")


def test_tables_that_share_files_are_said(tmp_path: Path) -> None:
    folder = two_classes(tmp_path / "pets", [""])
    for name, rows in {"train": ["cat/0.png,cat", "dog/1.png,dog"], "val": ["dog/1.png,dog", "cat/2.png,cat"]}.items():
        (folder / f"{name}.csv").write_text("\n".join(["path,label", *rows]))

    assert "1 of 2 images, such as" in prepare(folder / "train.csv", folder / "val.csv").notes[0]
    assert prepare(folder / "train.csv", False).notes == ()
    assert len(prepare(folder, None).notes) == 1  # held out by the library
