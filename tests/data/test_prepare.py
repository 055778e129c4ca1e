"""Opening training and validation data, and looking at targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from finetune.data.prepare import open_training, some_targets
from finetune.data.sources.open_source import open_source


def test_validation_data_is_data_a_fraction_or_none(blobs) -> None:
    pair = blobs(40)

    given = open_training(pair, blobs(9), None, 0)
    share = open_training(pair, 0.25, None, 0)

    assert (len(given.train), len(given.val), given.notes) == (40, 9, ())
    assert (len(share.train), len(share.val)) == (30, 10)
    assert "10 of 40 samples were set aside" in share.notes[0]
    for none in (None, False):
        assert open_training(pair, none, None, 0).val is None


def pictures(folder: Any, parts: list[str]) -> Any:
    from PIL import Image

    for part in parts:
        for label in ("cat", "dog"):
            (folder / part / label).mkdir(parents=True)
            for i in range(5):
                values = np.full((8, 8, 3), 20 * i, np.uint8)
                Image.fromarray(values).save(folder / part / label / f"{i}.png")
    return folder


def test_a_folder_is_split_unless_it_already_is(tmp_path) -> None:
    plain = open_training(pictures(tmp_path / "plain", [""]), None, None, 0)
    split = open_training(str(pictures(tmp_path / "split", ["train", "val"])), None, None, 0)
    whole = open_training(tmp_path / "plain", False, None, 0)

    assert (len(plain.train), len(plain.val), len(plain.notes)) == (8, 2, 1)
    assert (len(split.train), len(split.val), split.notes) == (10, 10, ())
    assert (len(whole.train), whole.val) == (10, None)


class Items(Dataset):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Flow(IterableDataset):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)


def test_some_targets_of_every_kind_of_data(blobs) -> None:
    X, y = blobs(100)
    items = list(zip(X, y.tolist(), strict=True))

    def found(data: Any) -> Any:
        targets = some_targets(open_source(data))
        return None if targets is None else targets.tolist()

    assert found((X, y)) == y.tolist()
    assert found(Items(items)) == y[:64].tolist()
    assert found(Flow(items)) == y[:64].tolist()
    assert found(DataLoader(TensorDataset(X, y), batch_size=10)) == y[:10].tolist()
    assert found(Flow(list(X))) is None
    assert found(Flow([])) is None
    assert found(Flow([(x, "a name") for x in X])) is None
    assert found(Items([(x, torch.zeros(i + 1)) for i, x in enumerate(X)])) is None


def test_looking_at_targets_draws_no_random_numbers(blobs) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()

    some_targets(open_source(DataLoader(TensorDataset(*blobs()), shuffle=True, batch_size=4)))

    assert torch.equal(before, torch.get_rng_state())
