"""Phases, settings, and what is prepared before a run."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from finetune import FineTuner, Phase
from finetune.data.prepare import open_training, some_targets
from finetune.data.sources.open_source import open_source
from finetune.errors import ArgumentError
from finetune.training.optim.phases import check_phases
from finetune.training.settings import Settings


@pytest.mark.parametrize("epochs", [0, -1, 1.5, "3", None, math.nan])
def test_epochs_are_a_whole_number_from_one_on(net, blobs, epochs: Any) -> None:
    with pytest.raises(ArgumentError, match="Expected epochs to be a whole number of at least 1"):
        Phase(epochs=epochs)
    with pytest.raises(ArgumentError, match="Expected epochs to be a whole number of at least 1"):
        FineTuner(net(), device="cpu").fit(blobs(), epochs=epochs)


def test_a_phase_keeps_what_an_iterator_named() -> None:
    phase = Phase(train=(name for name in ("fc", "layer4")))

    assert phase.train == ("fc", "layer4")
    assert hash(phase) == hash(Phase(train=["fc", "layer4"]))
    assert Phase(train="fc").train == "fc"


@pytest.mark.parametrize("phases", [[], ["linear_probe"], [Phase(), None], (), 3, Phase()])
def test_a_strategy_of_ones_own_is_a_list_of_phases(phases: Any) -> None:
    with pytest.raises(ArgumentError, match="name or a list of Phase"):
        check_phases(phases)


def test_phases_may_come_from_an_iterator() -> None:
    phases = [Phase(), Phase("fc")]

    assert check_phases(iter(phases)) == phases


def test_a_phase_says_what_trains_and_what_not(net, blobs, watch) -> None:
    def trains(run: Any) -> list[str]:
        return [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]

    seen, tuner = watch(trains), FineTuner(net(), device="cpu").freeze(["0", "1"])

    tuner.fit(blobs(), strategy=[Phase(), Phase("6.*"), Phase(["0", "6.bias"])], batch_size=24, callbacks=[seen])

    assert seen.seen == [
        ["4.weight", "4.bias", "6.weight", "6.bias"],
        ["6.weight", "6.bias"],
        ["0.weight", "0.bias", "6.bias"],
    ]


def test_every_phase_is_tried_before_the_first_trains(net, blobs, state_of, same) -> None:
    tuner = FineTuner(net(), device="cpu")
    before = state_of(tuner.model)

    for bad in (Phase("nowhere"), Phase("6", lr=-1.0), Phase("6", schedule="never"), Phase("6", lr={"4": 1e-3})):
        with pytest.raises(ValueError, match=r"nowhere|above 0|never|no rate"):
            tuner.fit(blobs(), strategy=[Phase("6"), bad])

    assert same(before, state_of(tuner.model))
    assert all(parameter.requires_grad for parameter in tuner.model.parameters())


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gradient_accumulation_steps", 0),
        ("gradient_accumulation_steps", 2.0),
        ("max_grad_norm", 0),
        ("max_grad_norm", -1.0),
        ("max_grad_norm", math.nan),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
    ],
)
def test_a_setting_that_cannot_work_is_an_error(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"Expected {name} to be"):
        Settings(**{name: value})


def test_plain_settings_are_what_a_file_can_hold() -> None:
    own = nn.MSELoss()

    kept = Settings(loss=own, metrics={"a": "f1", "b": ["x"]}, optimizer=torch.optim.Adam, max_grad_norm=1.0).plain()

    assert kept == {
        "metrics": {"a": "f1", "b": ["x"]},
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "gradient_accumulation_steps": 1,
        "precision": "auto",
        "compile": False,
        "seed": 0,
    }
    assert "metrics" not in Settings(metrics=["f1", own]).plain()
    assert "metrics" not in Settings(metrics={"a": own}).plain()


# ---------------------------------------------------------------------- preparation


def test_validation_data_is_data_a_share_or_none(blobs) -> None:
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


def test_a_folder_is_split_unless_it_is_already(tmp_path) -> None:
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
