from __future__ import annotations

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
    for part in parts:
        for label in ("cat", "dog"):
            (folder / part / label).mkdir(parents=True)
            for i in range(5):
                values = np.full((8, 8, 3), 20 * i, np.uint8)
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
