"""What makes a run the same run, so that nobody resumes another one by mistake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from finetune.data.sources.base import Source
from finetune.digests import sha256
from finetune.errors import CheckpointError

if TYPE_CHECKING:
    from finetune.training.run import Run


_MAY_CHANGE = ("gradient_accumulation_steps", "compile", "metrics")


def identity_of(run: Run) -> dict[str, Any]:
    """Return the settings, rates, data and callbacks of a run as plain values.

    Left out is what may change at the end of an epoch, and what other checks compare.
    """
    data = {"training data": run.train, "validation data": run.val}
    settings = {**run.settings.plain(), **run.settings.objects()}
    return {
        **{name: value for name, value in settings.items() if name not in _MAY_CHANGE},
        "lr": [_rate(phase.lr) for phase in run.phases],
        "schedule": [getattr(phase.schedule, "__qualname__", phase.schedule) for phase in run.phases],
        **{name: None if batches is None else _data(batches.source) for name, batches in data.items()},
        "callbacks": sorted(type(callback).__name__ for callback in run.callbacks if _is_part(callback)),
    }


def check_identity(saved: Mapping[str, Any], now: Mapping[str, Any], phases: int) -> None:
    """Check that a run to resume is the same as the one that was saved.

    Args:
        saved: Identity of the saved run.
        now: Identity of this run.
        phases: Number of phases that have begun. Later ones may differ.

    Raises:
        CheckpointError: If something differs.

    Example:
        >>> check_identity({"seed": 0}, {"seed": 1}, phases=1)
        Traceback (most recent call last):
        finetune.errors.CheckpointError: The run to resume had other arguments: seed 0, now 1. ...
    """
    found = ", ".join(_differences(saved, now, phases))
    if found:
        raise CheckpointError(
            f"The run to resume had other arguments: {found}. Pass fit and FineTuner the same ones, or "
            "resume_changed=True to go on with the new ones."
        )


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any], phases: int) -> Iterator[str]:
    for name in now:
        if name not in saved:
            continue  # not recorded by an older version
        before, after = saved[name], now[name]
        if name in ("lr", "schedule"):
            before, after = before[:phases], after[:phases]
        if isinstance(after, Mapping) and isinstance(before, Mapping):
            for part in (part for part in after if before.get(part) != after[part]):
                yield f"{part} of the {name} {before.get(part)}, now {after[part]}"
        elif before != after:
            yield f"{name} {_shown(before)}, now {_shown(after)}"


def _is_part(callback: Any) -> bool:
    """Return whether a callback has a state of its own that the run goes on with."""
    return bool(callback.state_dict()) and not callback.saves_run


def _data(source: Source) -> dict[str, Any]:
    targets = source.targets
    return {
        "samples": len(source) if source.indexed else None,
        "classes": None if source.classes is None else list(source.classes),
        "labels": None if targets is None else sha256(targets)[:16],
    }


def _rate(value: Any) -> Any:
    """Return a rate as plain values, an object by its name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _rate(rate) for name, rate in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rate(item) for item in value]
    return getattr(value, "__qualname__", None) or repr(value)


def _shown(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value
