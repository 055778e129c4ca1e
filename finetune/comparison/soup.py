"""Average the weights of several fine-tuned models into one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.display.progress.waits import announced, waits_shown
from finetune.errors import ArgumentError, one_of, whole_number
from finetune.model.weights import load_state
from finetune.naming.paths import local_path
from finetune.training.metrics import build_metrics, higher_is_better
from finetune.tuner import FineTuner

_State = Mapping[str, Tensor]


def greedy_soup(
    checkpoints: Iterable[str | Path],
    val: Any,
    *,
    model: nn.Module | None = None,
    monitor: str | None = None,
    mode: str | None = None,
    batch_size: int = 32,
    **settings: Any,
) -> FineTuner:
    """Average the weights of fine-tuned checkpoints, keeping those that help (greedy soup, arXiv 2203.05482).

    Starting from the best checkpoint, the next one is added if the average with it is at least as good on `val`. The
    soup is therefore never worse on `val` than its best ingredient. Running statistics are averaged like weights.

    Args:
        checkpoints: Files written by `save_checkpoint`, from runs that started at the same pretrained weights.
        val: Data for choosing the checkpoints, in any form that `evaluate` accepts. Must not be training data.
        model: The module, if the model was not built by name.
        monitor: Value of `evaluate` to compare. None for the first metric, or the loss if there is no metric.
        mode: `"max"` if a higher value is better, `"min"` if a lower one is; None if the metric says so itself.
        batch_size: Samples per batch.
        settings: Keyword arguments of `FineTuner` that replace the saved ones.

    Returns:
        A tuner of the averaged model.

    Raises:
        ArgumentError: If there are no checkpoints, `evaluate` returns no value named `monitor`, or it is unknown which
            way it improves.
        CheckpointError: If a file is damaged or belongs to another model.

    Example:
        >>> train, val = (torch.randn(12, 4), torch.arange(12) % 2), (torch.randn(6, 4), torch.arange(6) % 2)
        >>> def trained(seed: int) -> Path:
        ...     tuner = FineTuner(nn.Linear(4, 2), seed=seed)
        ...     tuner.fit(train, progress=False)
        ...     return tuner.save_checkpoint(f"seed{seed}.safetensors")
        >>> soup = greedy_soup([trained(0), trained(1)], val, model=nn.Linear(4, 2))
        >>> soup.predict(val).shape
        torch.Size([6, 2])
    """
    batch_size = whole_number("batch_size", batch_size)
    paths = [local_path(path) for path in checkpoints]
    if not paths:
        raise ArgumentError("Expected at least one checkpoint to average, but got none.")
    with waits_shown():
        scored: list[tuple[float, Path, _State]] = []
        for path in announced(paths, "Scoring checkpoints", len(paths)):
            tuner = FineTuner.load_checkpoint(path, model, **settings)
            scored.append((_score(tuner, val, monitor, mode, batch_size), path, _copied_state(tuner.inner)))
        (best, path, first), *others = sorted(scored, key=lambda candidate: candidate[0])
        tuner, ingredients = FineTuner.load_checkpoint(path, model, **settings), [first]
        for _, _, state in announced(others, "Trying averages", len(others)):
            load_state(tuner.inner, _mean([*ingredients, state]))
            score = _score(tuner, val, monitor, mode, batch_size)
            if score <= best:
                best, ingredients = score, [*ingredients, state]
    load_state(tuner.inner, _mean(ingredients))
    return tuner


def _score(tuner: FineTuner, val: Any, monitor: str | None, mode: str | None, batch_size: int) -> float:
    """Return the monitored value such that lower is better. NaN and infinity are worst."""
    values = tuner.evaluate(val, batch_size=batch_size)
    name = next((name for name in values if name != "loss"), "loss") if monitor is None else monitor
    one_of("monitored value", name, values)
    assert tuner.task is not None  # known after evaluate
    metrics = build_metrics(tuner.settings.metrics, tuner.task, tuner.network.num_outputs)
    value = -values[name] if higher_is_better(name, metrics, mode) else values[name]
    return value if math.isfinite(value) else math.inf


def _copied_state(model: nn.Module) -> _State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _mean(states: Sequence[_State]) -> _State:
    """Return the mean of each tensor. Integers, such as counters, are those of the first state."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }
