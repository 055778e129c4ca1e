"""What a `FineTuner` knows, to a checkpoint and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune import FineTuner
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.targets import TargetRule
from finetune.interpret.calibration import Calibration
from finetune.known import Known
from finetune.model.network import Network
from finetune.training.history import History
from finetune.training.settings import Settings
from finetune.training.tasks import task_of_kind
from tests.helpers.models import small_cnn


def test_a_checkpoint_holds_all_that_is_known() -> None:
    network = Network.of(small_cnn())
    assert network.heads == ("6",)
    known = Known(
        network,
        preprocessing=Preprocessing(),
        classes=tuple("abcde"),
        classes_from_data=True,
        task=task_of_kind(None, "classification"),
        history=History([{"epoch": 1, "loss": 0.5}]),
    )
    checkpoint = known.to_checkpoint(Settings(seed=3))
    fresh = Known(Network.of(small_cnn()), preprocessing=Preprocessing())
    recalled = fresh.recalled(checkpoint, Settings())

    assert checkpoint.settings["seed"] == 3
    assert checkpoint.preprocessing == Preprocessing().to_dict()
    assert recalled.network.found_heads == ("6",)
    assert recalled.network.module is fresh.network.module
    assert (recalled.classes, recalled.classes_from_data) == (known.classes, True)
    assert recalled.task == known.task
    assert list(recalled.history) == list(known.history)
    assert fresh.history == History() or not list(fresh.history)  # a new state, not a changed one


def test_objects_that_a_checkpoint_cannot_hold_are_said_when_it_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    X, y = torch.randn(6, 4), torch.arange(6) % 3
    loss, model = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 9.0])), nn.Linear(4, 3)
    tuner = FineTuner(model, loss=loss, device="cpu")
    path, expected = tuner.save_checkpoint(tmp_path / "m"), tuner.evaluate((X, y))

    again = FineTuner.load_checkpoint(path, nn.Linear(4, 3), loss=loss, device="cpu")
    assert again.evaluate((X, y)) == expected
    assert not caplog.records
    FineTuner.load_checkpoint(path, nn.Linear(4, 3), device="cpu")
    assert "was saved with loss=CrossEntropyLoss, which a checkpoint cannot hold" in caplog.text


def test_saving_does_not_search_for_a_head() -> None:
    assert Known(Network.of(small_cnn())).to_checkpoint(Settings()).heads is None


def test_the_task_decides_which_targets_are_accepted() -> None:
    known = Known(Network.of(small_cnn()))
    assert known.rule == TargetRule()
    for kind in ("classification", "binary", "multilabel", "regression"):
        assert replace(known, task=task_of_kind(None, kind)).rule == TargetRule(kind, 5)


def test_only_trainable_parameters_of_an_adapted_model_are_in_scope() -> None:
    network = replace(Network.of(small_cnn()), scope=frozenset({"6.weight"}))
    known = Known(network)
    checkpoint = known.to_checkpoint(Settings())
    recalled = Known(replace(network, scope=frozenset())).recalled(checkpoint, Settings())

    assert recalled.network.scope is not None
    assert "6.weight" in recalled.network.scope
    assert torch.is_tensor(checkpoint.model.weights["6.weight"])


@pytest.mark.parametrize(
    ("outputs", "classes", "expected"),
    [
        (3, ("cat", "dog", "owl"), "calibrated with temperature 0.5000; thresholds cat 0.1000, dog 0.2000, owl 0.3000"),
        (3, None, "thresholds 0.1000, 0.2000, 0.3000"),
        (1, ("cat", "dog"), "thresholds dog 0.1000"),
        (0, ("cat", "dog"), "1 epoch trained; calibrated with temperature 0.5000"),
    ],
    ids=("labels", "labels without names", "binary", "classes"),
)
def test_what_calibrate_found_can_be_read(outputs: int, classes: tuple[str, ...] | None, expected: str) -> None:
    thresholds = (0.1, 0.2, 0.3)[:outputs] or None
    history, calibration = History([{"epoch": 1, "loss": 0.5}]), Calibration(0.5, thresholds)
    known = Known(Network.of(small_cnn()), classes=classes, history=history, calibration=calibration)
    assert "; ".join(known.describe()).endswith(expected)
