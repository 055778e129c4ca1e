"""Features are kept for the next verb, and forgotten when anything that they depend on changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune import DataError, FineTuner, Preprocessing
from tests.data_check.test_data_check import Counting, folder_of
from tests.helpers.image_files import picture


def test_a_check_and_advice_share_the_features(tmp_path: Path) -> None:
    tuner, data = Counting.tuner(), folder_of(tmp_path, 48)
    tuner.check_data(data)
    seen = tuner.model.seen
    again = tuner.check_data(data)
    advice = tuner.advise(data)
    assert tuner.model.seen < seen + 48  # a few on which each verb tries the model
    other = Counting.tuner()
    assert other.advise(data) == advice
    assert [each.samples for each in again.findings] == [each.samples for each in other.check_data(data).findings]


@pytest.mark.parametrize("change", ["weights", "buffers", "preprocessing", "data", "step"])
def test_a_change_forgets_the_features(change: str, tmp_path: Path) -> None:
    tuner: Any = Counting.tuner()
    data = folder_of(tmp_path, 48)
    tuner.check_data(data)
    seen = tuner.model.seen
    if change == "weights":
        tuner.model.conv.weight.data[0, 0, 0, 0] += 1
    elif change == "buffers":
        tuner.model.norm.running_mean[0] += 1
    elif change == "preprocessing":
        tuner.preprocessing = Preprocessing(crop_size=(30, 30), resize_size=(30, 30))
    elif change == "data":
        picture(77).save(next(iter(sorted(data.rglob("*.png")))))
    else:
        tuner.__class__ = type("Own", (FineTuner,), {"predict_step": lambda self, batch: self.model(batch[0])})
    tuner.check_data(data)
    assert tuner.model.seen >= seen + 48


def test_a_damaged_file_is_known_to_a_check_and_an_error_for_advice(tmp_path: Path) -> None:
    tuner, data = Counting.tuner(), folder_of(tmp_path, 48)
    (data / "a" / "000.png").write_bytes(b"none")
    tuner.check_data(data)
    seen = tuner.model.seen
    assert len(tuner.check_data(data).unreadable) == 1
    assert tuner.model.seen < seen + 48
    with pytest.raises(DataError, match="cannot be decoded"):
        tuner.advise(data)


def test_equal_samples_keep_their_own_labels() -> None:
    X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    tuner = FineTuner(nn.Linear(4, 2), device="cpu")
    y = torch.arange(40) % 2
    X[1] = X[0]
    assert tuner.check_data((X, y)).conflicts
    same = y.clone()
    same[1] = 0
    assert not tuner.check_data((X, same)).conflicts
