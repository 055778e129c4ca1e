"""`write_report`: one HTML file on a model and its answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from finetune.data_check.data_check import DataCheck
from finetune.display.numbers import fixed
from finetune.errors import ArgumentError
from finetune.files.durable import check_writable, written
from finetune.interpret.heatmaps import Heatmaps
from finetune.interpret.interpretation import Interpretation
from finetune.model.inspection.summary import Summary
from finetune.model.network import Network
from finetune.naming.paths import local_path
from finetune.report.answers import answer_sections, headline, lead
from finetune.report.blocks import Section
from finetune.report.checks import data_section
from finetune.report.origin import configuration_section, environment_section, model_section, training_section
from finetune.report.page import render
from finetune.report.repeat import repeat_section
from finetune.report.samples import sample_sections
from finetune.training.history import History
from finetune.training.numerics.precision import Precision
from finetune.training.progress.overview import describe_head, describe_model
from finetune.training.settings import Settings
from finetune.training.tasks import Task


class Tuner(Protocol):
    """The part of `FineTuner` that a report reads."""

    settings: Settings
    device: torch.device
    precision: Precision

    @property
    def network(self) -> Network:
        """Model and its structure."""

    @property
    def preprocessing(self) -> Any:
        """Preprocessing, or None."""

    @property
    def history(self) -> History:
        """Training history."""

    @property
    def task(self) -> Task | None:
        """Task, known once the model has been interpreted."""

    def interpret(self, data: Any, *, batch_size: int = 32) -> Interpretation:
        """Return the answers beside the truth."""

    def heatmaps(self, data: Any, *, of: Sequence[str | int | None], batch_size: int = 32) -> Heatmaps:
        """Return the evidence for the answers in images."""

    def check_data(self, train: Any, val: Any = None, *, samples: int | None = None, batch_size: int = 32) -> DataCheck:
        """Return findings in the data."""

    def summary(self) -> Summary:
        """Return the table of the layers."""


def report_path(path: str | Path) -> Path:
    """Return the path of a report that can be written, before time is spent on it.

    Raises:
        ArgumentError: If it cannot be written.

    Example:
        >>> report_path("runs/report.html").name
        'report.html'
    """
    path = local_path(path)
    try:
        check_writable(path)
    except OSError as error:
        raise ArgumentError(f"The report cannot be written to {path}: {error}. Expected the path of a file.") from error
    return path


def write_report(
    tuner: Tuner, path: Path, data: Any, *, train: Any = None, batch_size: int = 32, file: Path | None = None
) -> Path:
    """Write a report. See `FineTuner.report`.

    Args:
        tuner: The model with everything that is known of it.
        path: File to write.
        data: Labeled data.
        train: Training data, or None.
        batch_size: Samples per batch.
        file: Checkpoint that holds the model, or None.

    Raises:
        ArgumentError: If the file cannot be written. An existing file stays intact.
    """
    found = tuner.interpret(data, batch_size=batch_size)
    named = tuner.network.origin is not None
    again = repeat_section(
        type(tuner), file=file, named=named, path=path, data=data, train=train, batch_size=batch_size
    )
    page = render(
        _title(tuner, data),
        headline(found) | {"samples": f"{len(found):,}"},
        lead(found),
        [*_sections(tuner, found, data, train, batch_size), again],
    )
    try:
        with written(path) as target:
            target.write(page.encode())
    except OSError as error:
        raise ArgumentError(
            f"The report cannot be written to {path}: {error}. An existing file is unchanged."
        ) from error
    return path


def _title(tuner: Tuner, data: Any) -> str:
    name = describe_model(tuner.network).partition(",")[0]
    return f"{name} on {data}" if isinstance(data, (str, Path)) else f"Report on {name}"


def _sections(tuner: Tuner, found: Interpretation, data: Any, train: Any, batch_size: int) -> Iterator[Section]:
    yield from answer_sections(found)
    yield from sample_sections(found, partial(tuner.heatmaps, batch_size=batch_size))
    yield data_section(partial(tuner.check_data, batch_size=batch_size), data, train)
    yield training_section(tuner.history)
    yield model_section(tuner.summary())
    yield configuration_section(dict(_configuration(tuner, found)))
    yield environment_section(tuner.device, tuner.precision.name)


def _configuration(tuner: Tuner, found: Interpretation) -> Iterator[tuple[str, str]]:
    network, task = tuner.network, tuner.task
    yield "model", describe_model(network)
    if network.found_heads:
        yield "head", describe_head(network)
    if task is not None:
        yield "task", task.kind or "custom"
        yield "loss", getattr(task.loss, "__name__", type(task.loss).__name__).replace("_", " ")
    yield "preprocessing", str(tuner.preprocessing or "none: inputs are ready for the model")
    calibration = found.predictions.calibration
    yield "temperature", fixed(calibration.temperature) if calibration.temperature != 1 else "1, as not calibrated"
    if calibration.thresholds is not None:
        yield "thresholds", ", ".join(calibration.named_thresholds(found.predictions.classes))
    for name, value in {**tuner.settings.plain(), **tuner.settings.objects()}.items():
        if value is not None and name != "loss":
            yield name.replace("_", " "), str(value)
