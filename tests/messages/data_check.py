"""Messages about faults in data: following the advice leaves no such fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from finetune.data_check.findings import Finding
from finetune.interpret.rows import Rows
from tests.data_check.test_data_check import Counting, folder_of
from tests.messages.material import X, case, error, tuner, y


def advice(rows: Rows[Finding]) -> str:
    assert len(rows) == 1
    return rows[0].advice


def left(data: Any, val: Any, kind: str) -> int:
    """Return the number of findings of a kind that are left."""
    return sum(each.kind == kind for each in Counting.tuner().check_data(data, val).findings)


@case("Replace the file or correct the values, or remove the sample.")
def unreadable_sample(tmp: Path) -> str:
    data = folder_of(tmp, 40)
    broken = data / "a" / "000.png"
    broken.write_bytes(b"none")
    said = advice(Counting.tuner().check_data(data).unreadable)
    broken.unlink()
    assert not left(data, None, "unreadable")
    bad = X.clone()
    bad[3, 1] = torch.nan
    assert advice(tuner().check_data((bad, y)).unreadable) == said
    assert not tuner().check_data((bad.nan_to_num(), y)).unreadable
    return said


@case("Remove it from one of the two.")
def leaked_sample(tmp: Path) -> str:
    train, val = folder_of(tmp / "train", 40), folder_of(tmp / "val", 4)
    for file in sorted(val.rglob("*.png"))[1:]:
        Image.open(file).transpose(Image.Transpose.ROTATE_90).save(file)
    said = advice(Counting.tuner().check_data(train, val).leaks)
    (train / "a" / "000.png").unlink()
    assert not left(train, val, "leak")
    return said


@case("Remove it, unless a picture without content belongs to its class.")
def blank_picture(tmp: Path) -> str:
    data = folder_of(tmp, 40)
    Image.new("RGB", (96, 72)).save(data / "a" / "blank.png")
    said = advice(Counting.tuner().check_data(data).poor_pictures)
    (data / "a" / "blank.png").unlink()
    assert not left(data, None, "blank")
    return said


@case("Join the two classes, correct their labels, or use a model that sees the difference.")
def classes_alike(tmp: Path) -> str:
    features = 4 * torch.eye(4)[torch.arange(240) % 2] + torch.randn(240, 4)
    torn = torch.where(torch.arange(240) % 2 == 1, 1 + (torch.arange(240) // 2 + torch.arange(240) // 7) % 2, 0)
    said = advice(tuner().check_data((features, torn)).confusable)
    assert not tuner(2).check_data((features, torn.clamp(max=1))).confusable
    features[:, 3] = 4.0 * (torn == 2)
    assert not tuner().check_data((features, torn)).confusable
    return said


@case("Of a DataLoader, pass its dataset.")
def a_loader(tmp: Path) -> str:
    loader = DataLoader(TensorDataset(X, y), batch_size=4)
    said = error(lambda: tuner().check_data(loader))
    tuner().check_data(loader.dataset)
    return said
