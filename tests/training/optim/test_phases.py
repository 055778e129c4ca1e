"""Phases, and checking them before training."""

from __future__ import annotations

import math
from typing import Any

import pytest

from finetune import FineTuner, Phase
from finetune.errors import ArgumentError
from finetune.training.optim.phases import check_phases


@pytest.mark.parametrize("epochs", [0, -1, 1.5, "3", None, math.nan])
def test_epochs_must_be_a_whole_number_of_at_least_1(net, blobs, epochs: Any) -> None:
    with pytest.raises(ArgumentError, match="Expected epochs to be a whole number of at least 1"):
        Phase(epochs=epochs)
    with pytest.raises(ArgumentError, match="Expected epochs to be a whole number of at least 1"):
        FineTuner(net(), device="cpu").fit(blobs(), epochs=epochs)


def test_a_phase_stores_patterns_from_an_iterator() -> None:
    phase = Phase(train=(name for name in ("fc", "layer4")))

    assert phase.train == ("fc", "layer4")
    assert hash(phase) == hash(Phase(train=["fc", "layer4"]))
    assert Phase(train="fc").train == "fc"


@pytest.mark.parametrize("phases", [[], ["linear_probe"], [Phase(), None], (), 3, Phase()])
def test_a_strategy_must_be_a_list_of_phases(phases: Any) -> None:
    with pytest.raises(ArgumentError, match="name or a list of Phase"):
        check_phases(phases)


def test_phases_may_come_from_an_iterator() -> None:
    phases = [Phase(), Phase("fc")]

    assert check_phases(iter(phases)) == phases


def test_a_phase_sets_the_freeze_state(net, blobs, watch) -> None:
    def trains(run: Any) -> list[str]:
        return [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]

    seen, tuner = watch(trains), FineTuner(net(), device="cpu").freeze(["0", "1"])

    tuner.fit(blobs(), strategy=[Phase(), Phase("6.*"), Phase(["0", "6.bias"])], batch_size=24, callbacks=[seen])

    assert seen.seen == [
        ["4.weight", "4.bias", "6.weight", "6.bias"],
        ["6.weight", "6.bias"],
        ["0.weight", "0.bias", "6.bias"],
    ]


def test_every_phase_is_checked_before_the_first_trains(net, blobs, state_of, same) -> None:
    tuner = FineTuner(net(), device="cpu")
    before = state_of(tuner.model)

    for bad in (Phase("nowhere"), Phase("6", lr=-1.0), Phase("6", schedule="never"), Phase("6", lr={"4": 1e-3})):
        with pytest.raises(ValueError, match=r"nowhere|above 0|never|no rate"):
            tuner.fit(blobs(), strategy=[Phase("6"), bad])

    assert same(before, state_of(tuner.model))
    assert all(parameter.requires_grad for parameter in tuner.model.parameters())
