"""The sections on the origin of a report say everything once."""

from __future__ import annotations

import pytest
import torch

from finetune.devices.device import hardware_of
from finetune.report.blocks import Facts, Table
from finetune.report.origin import environment_section, training_section
from finetune.training.history import History


@pytest.mark.parametrize(("last", "said"), [(1.0, "1 → 0.5"), (4.0, "stem: 1 → 0.5, head: 4 → 2")])
def test_equal_learning_rates_are_said_once(last: float, said: str) -> None:
    start = {"stem": 1.0, "head": last}
    row = {"epoch": 1, "phase": "fit", "loss": 1.0, "lr_start": start, "lr": {"stem": 0.5, "head": last / 2}}
    _, phases, _ = training_section(History([{**row, "seconds": 1.0, "samples_per_second": 1.0}])).blocks
    assert isinstance(phases, Table)
    assert phases.rows == [["fit", "1", said, "1.0"]]


def test_the_environment_names_the_gpu(accelerator: torch.device) -> None:
    for device, said in ((accelerator, f"{accelerator} ({hardware_of(accelerator)}), bf16"), ("cpu", "cpu, bf16")):
        (facts,) = environment_section(torch.device(device), "bf16").blocks
        assert isinstance(facts, Facts)
        assert facts.values["device"].startswith(said)
