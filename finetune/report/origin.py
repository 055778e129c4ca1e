"""The sections on the origin of a report: training, layers, settings and machine."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from math import isfinite
from typing import Any

import torch

from finetune.devices.device import hardware_of
from finetune.display.numbers import fixed, rounded
from finetune.errors import is_number
from finetune.model.inspection.summary import Summary
from finetune.report.blocks import Block, Facts, Note, Section, Table
from finetune.report.images import plot
from finetune.training.history import BOOKKEEPING, History

_PACKAGES = {"finetune": "torch-finetune", "torch": "torch", "torchvision": "torchvision", "timm": "timm"}
_PACKAGES |= {"transformers": "transformers"}


def training_section(history: History) -> Section:
    """Return the section of the history: curves, phases, and the values of every epoch."""
    if not history:
        return Section("training", "Training", [Note("The model has not been trained by finetune.")])
    return Section(
        "training",
        "Training",
        [
            plot(history.plot, _in_words(history), "Losses and metrics by epoch. The best epoch is marked."),
            _phases(history),
            Table("Values by epoch", *history.cells(), text=0, folded=True),
        ],
    )


def model_section(summary: Summary) -> Section:
    """Return the section of the layers of a model."""
    names, lines = summary.cells()
    texts = next(place for place, name in enumerate(names) if name == "parameters")
    notes: list[Block] = [Note(line) for line in summary.notes]
    return Section("model", "Model", [Table(summary.title, names, lines, texts, plain=True), *notes])


def configuration_section(values: Mapping[str, str]) -> Section:
    """Return the section of the settings."""
    return Section("configuration", "Configuration", [Facts(values)])


def environment_section(device: torch.device, precision: str) -> Section:
    """Return the section of the versions, the machine and the date."""
    return Section("environment", "Environment", [Facts(dict(_environment(device, precision)))])


def _environment(device: torch.device, precision: str) -> Iterator[tuple[str, str]]:
    yield "date", datetime.now(timezone.utc).isoformat(" ", "seconds").replace("+00:00", " UTC")
    for name, package in _PACKAGES.items():
        try:
            yield name, version(package)
        except PackageNotFoundError:
            continue
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    threads = torch.get_num_threads()
    hardware = f" ({name})" if (name := hardware_of(device)) else ""
    yield "device", f"{device}{hardware}, {precision}, {threads} CPU thread{'s' * (threads != 1)}"


def _phases(history: History) -> Table:
    """Return the phases with their epochs, times and learning rates, which fall or rise over them."""
    rows = []
    for name, epochs in groupby(history, key=lambda row: row.get("phase", "")):
        part = list(epochs)
        first, last = part[0], part[-1]
        seconds = sum(row.get("seconds", 0) for row in part)
        rates = _rates(first.get("lr_start", {}), last.get("lr", {}))
        span = str(first["epoch"]) if first is last else f"{first['epoch']} to {last['epoch']}"
        rows.append([str(name), span, rates, f"{seconds:.1f}"])
    return Table("Phases", ["phase", "epochs", "learning rate, first → last", "seconds"], rows, text=3)


def _rates(start: Mapping[str, float], end: Mapping[str, float]) -> str:
    """Return the rates at the start and at the end of a phase; of many groups, those of the first and the last."""
    pairs = {(rate, end.get(name, rate)) for name, rate in start.items()}
    if len(pairs) == 1:
        return " → ".join(f"{rounded(rate):.3g}" for rate in pairs.pop())
    names = list(start)
    shown = names if len(names) <= 3 else [names[0], names[-1]]
    return (" … " if len(names) > 3 else ", ").join(
        f"{name}: {rounded(start[name]):.3g} → {rounded(end.get(name, start[name])):.3g}" for name in shown
    )


def _in_words(history: Sequence[Mapping[str, Any]]) -> str:
    """Return the first and the last value of each curve."""
    names = dict.fromkeys(name for row in history for name in row if name not in BOOKKEEPING)
    said = []
    for name in names:
        values = [row[name] for row in history if is_number(row.get(name)) and isfinite(row[name])]
        if values:
            said.append(f"{name} {' to '.join(fixed(value) for value in dict.fromkeys((values[0], values[-1])))}")
    return f"Curves over {len(history):,} epoch{'s' * (len(history) != 1)}: {', '.join(said)}."
