"""What is the same for all runs of a comparison."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from finetune.comparison.identity import described, versions
from finetune.data.preprocessing.presets import preprocessing_of
from finetune.training.precision import resolve_device


@dataclass(frozen=True)
class Recipe:
    """The arguments that every run is given.

    Attributes:
        budget: epochs of each run.
        monitor: what is compared; None for the accuracy where there is one, else the loss.
        settings: of `FineTuner`.
        fitting: further arguments of `fit`.
    """

    budget: int
    monitor: str | None
    settings: Mapping[str, Any]
    fitting: Mapping[str, Any]

    def decisive(self) -> dict[str, Any]:
        """Return what decides the results beside the data and the candidate, in values of JSON."""
        settings = dict(self.settings)
        if "preprocessing" in settings:  # a tokenizer is known by its files
            settings["preprocessing"] = preprocessing_of(settings["preprocessing"])
        device = resolve_device(settings.pop("device", "auto"))
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        return {
            "budget": self.budget,
            "monitor": self.monitor,
            "settings": described(settings),
            "fitting": described(self.fitting),
            "device": [str(device), machine],
            "versions": versions(),
        }
