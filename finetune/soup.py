"""One model of several fine-tuned ones: the mean of their weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import ArgumentError
from finetune.model.weights import load_state
from finetune.training.metrics import build_metrics, higher_is_better
from finetune.tuner import FineTuner

_State = Mapping[str, Tensor]


def greedy_soup(
    checkpoints: Iterable[str | Path],
    val: Any,
    *,
    model: nn.Module | None = None,
    monitor: str | None = None,
    batch_size: int = 32,
    **settings: Any,
) -> FineTuner:
    """Average the weights of checkpoints of one architecture, of those that help (greedy soup, arXiv 2203.05482).

    From the best on, a checkpoint joins if the mean with it is at least as good on `val`; so the soup is never worse
    there than its best ingredient. Running statistics are averaged like weights.

    Args:
        checkpoints: files that `save_checkpoint` wrote, of runs from the same pretrained weights.
        val: data to judge by, as `evaluate` takes it; what was trained on it would mislead.
        model: the module, where it was one of your own.
        monitor: which value of `evaluate` to judge by; None for the first metric, or the loss without one.
        settings: keyword arguments of `FineTuner` to take instead of the saved ones.

    Raises:
        ArgumentError: there is no checkpoint, or no such value.
        CheckpointError: a file is damaged, or of another model.
    """
    paths = [Path(path) for path in checkpoints]
    if not paths:
        raise ArgumentError("Expected at least one checkpoint to average, but got none.")
    judged: list[tuple[float, Path, _State]] = []
    for path in paths:
        tuner = FineTuner.load_checkpoint(path, model, **settings)
        judged.append((_value(tuner, val, monitor, batch_size), path, _copied(tuner.inner)))
    judged.sort(key=lambda one: one[0])
    best, path, first = judged[0]
    tuner, chosen = FineTuner.load_checkpoint(path, model, **settings), [first]
    for _, _, state in judged[1:]:
        load_state(tuner.inner, _mean([*chosen, state]))
        value = _value(tuner, val, monitor, batch_size)
        if value <= best:
            best, chosen = value, [*chosen, state]
    load_state(tuner.inner, _mean(chosen))
    return tuner


def _value(tuner: FineTuner, val: Any, monitor: str | None, batch_size: int) -> float:
    """Return the monitored value such that less is better; what is no number is worst."""
    values = tuner.evaluate(val, batch_size=batch_size)
    name = next((name for name in values if name != "loss"), "loss") if monitor is None else monitor
    if name not in values:
        raise ArgumentError(f"There is no value {name!r} to judge by; evaluate gives {', '.join(values)}.")
    assert tuner.task is not None  # evaluate knows it
    metrics = build_metrics(tuner.settings.metrics, tuner.task, tuner.network.num_outputs)
    value = -values[name] if higher_is_better(name, metrics) else values[name]
    return float("inf") if math.isnan(value) else value


def _copied(model: nn.Module) -> _State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _mean(states: Sequence[_State]) -> _State:
    """Return the mean of each tensor; counters and the like are the first's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }
