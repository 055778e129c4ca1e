"""What makes a run the same run, so that nobody resumes another one by mistake, and what a run can go on with."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from finetune.checkpoint.forms import check_form
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.sources.base import Source
from finetune.digests import sha256
from finetune.display.progress.waits import busy
from finetune.errors import CheckpointError, some_of
from finetune.training.optim.optimizers import built_with
from finetune.training.resuming.facts import CODE, arguments_of, code_of, data_digest, fact

if TYPE_CHECKING:
    from finetune.training.resuming.position import Position
    from finetune.training.run import Run


log = logging.getLogger("finetune")

_FORM: dict[Any, Any] = {
    "plan": {"phases": [str], "batch_size": int, "accumulation": int},
    "position": {...: int},
    "end_phase": bool,
    "steps_per_epoch": (None, int),
    "views": [(None, int)],
    "optimizer": {...: {}},
    "precision": {},
    "meter": {"loss": Tensor, "samples": int, "metrics": {...: {"state": {...: (None, Tensor)}, "updates": int}}},
    "callbacks": {...: {}},
}
_MOST = 2**53  # counts are used as floats, too
_STEPS = ("training_step", "validation_step")
_PER_PHASE = ("lr", "schedule", "schedule arguments", f"schedule {CODE}", "train")
_MAY_CHANGE = ("gradient_accumulation_steps", "compile", "metrics")


@busy("Identifying the data")
def identity_of(run: Run) -> dict[str, Any]:
    """Return the settings, rates and data of a run as plain values.

    Left out is what may change at the end of an epoch, and what other checks compare.
    """
    data = {"training data": run.train, "validation data": run.val}
    settings = {**run.settings.plain(), **run.settings.objects()}
    return {
        **{name: value for name, value in settings.items() if name not in _MAY_CHANGE},
        "lr": [_rate(phase.lr) for phase in run.phases],
        "schedule": [fact(phase.schedule) for phase in run.phases],
        **{name: None if batches is None else _data(batches.source) for name, batches in data.items()},
        "inputs": {name: None if batches is None else data_digest(batches.source) for name, batches in data.items()},
    }


def identity_at_start(run: Run) -> dict[str, Any]:
    """Return the part of a run's identity that training may change: its callbacks, functions and freeze state."""
    callbacks = [callback for callback in run.callbacks if not callback.saves_run]
    active = [callback for callback in callbacks if not callback.only_watches]
    made = {f"callback {callback_key(run, callback)}".removesuffix(".0"): callback for callback in active}
    made |= {"loss function": run.settings.loss, "augment function": run.train.augment}
    steps = {name: getattr(type(run.tuner), name) for name in _STEPS if run.tuner._overrides(name)}
    schedules = [phase.schedule for phase in run.phases]
    known = {
        "callbacks": sorted(type(callback).__name__ for callback in callbacks if _has_state(callback)),
        "callbacks without a state": sorted(type(callback).__name__ for callback in active if not _has_state(callback)),
        **{name: arguments_of(value) for name, value in made.items()},
        CODE: {name: code_of(value) for name, value in {**made, **steps}.items()},
        "custom steps": [*steps],
        "schedule arguments": [arguments_of(schedule) for schedule in schedules],
        f"schedule {CODE}": [code_of(schedule) for schedule in schedules],
        "built optimizer": fact(built_with(run.settings.optimizer)),
        "augment": fact(run.train.augment),
    }
    if steps:
        known["tuner"] = arguments_of(run.tuner)
    if isinstance(run.train.preprocessing, Preprocessing):
        known["preprocessing"] = run.train.preprocessing.to_dict()
    if run.network.scope is None:  # which a resumed run widens
        known["train"] = [fact(phase.train) for phase in run.phases]
    if run.phases[0].train is None:  # otherwise the phases set the trainable parameters
        known["frozen"] = frozen_parameters(run.model)
    return known


def callback_key(run: Run, callback: Any) -> str:
    """Return a callback's name in a checkpoint: its class and its index among callbacks of that class."""
    same = [other for other in run.callbacks if type(other) is type(callback)]
    return f"{type(callback).__name__}.{next(i for i, other in enumerate(same) if other is callback)}"


def frozen_parameters(model: nn.Module) -> list[str]:
    """Return the names of the frozen parameters."""
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


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
    frozen = ", but with the freeze state of the checkpoint" if _thawed(saved, now) else ""
    if found:
        raise CheckpointError(
            f"The run to resume had other arguments: {found}. Pass fit and FineTuner the same ones, or "
            f"resume_changed=True to go on with the new ones{frozen}."
        )


def check_same_run(run: Run, saved: Mapping[str, Any], now: Mapping[str, Any], *, changed: bool) -> None:
    """Check that a run to resume is the same as the saved one, unless it may be another.

    Args:
        run: The run at the position to resume from, and its model in the freeze state of that position.
        saved: Identity of the saved run.
        now: Identity of this run.
        changed: Whether it may be another, except for its freeze state, of which a warning is logged.

    Raises:
        CheckpointError: If it is another and may not.
    """
    begun = run.position.phase + 1
    set_by_phases = any(phase.train is not None for phase in run.phases[:begun])
    if set_by_phases or now.get("frozen") == frozen_parameters(run.model):  # or this process has begun the run
        now = {name: value for name, value in now.items() if name != "frozen"}
    if not changed:
        check_identity(saved, now, begun)
    elif thawed := _thawed(saved, now):
        log.warning("The freeze state of the checkpoint holds, not that from before fit: %s.", ", ".join(thawed))


def same_optimizer(saved: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether the optimizers of two runs are of one kind, as far as their identities tell."""
    kinds = [(run.get("optimizer"), run.get("built optimizer", {}).get("class")) for run in (saved, now)]
    return all(before in (None, after) for before, after in zip(*kinds, strict=True))


def check_plan(saved: Mapping[str, Any], plan: Mapping[str, Any], position: Position) -> None:
    """Check that the phases up to the position are the same. Later phases may differ.

    Raises:
        CheckpointError: If they differ.
        ValueError: If there is no such phase.
    """
    if position.phase > len(plan["phases"]):
        raise ValueError(f"it is in phase {position.phase + 1} of {len(plan['phases'])}")
    done = position.phase + 1
    before = saved["phases"][:done] != plan["phases"][:done]
    within = [name for name in ("batch_size", "accumulation", "divided") if saved.get(name) != plan.get(name)]
    if before or (within and position.window):
        raise CheckpointError(
            f"The run to resume had {_planned(saved):.300}; this one has {_planned(plan):.300}. Resume with the same "
            "values; all but the phases may change at the end of an epoch. resume_changed=True allows no other phases: "
            "for those, start anew from the weights, with FineTuner(..., weights=FILE) and another checkpoint_dir."
        )


def _planned(plan: Mapping[str, Any]) -> str:
    divided = f", in {plan['divided']} processes that read parts of a stream" if "divided" in plan else ""
    return f"phases {plan['phases']}, batch_size {plan['batch_size']} and accumulation {plan['accumulation']}{divided}"


def check_training(state: Mapping[str, Any]) -> None:
    """Check that a training state has the fields of one, and counts from 0.

    Raises:
        TypeError, ValueError: If it does not.
    """
    check_form(state, _FORM)
    check_form(state.get("identity", {}), {})
    check_form(state.get("parts"), (None, int))
    counts = {**state["position"], "samples": state["meter"]["samples"], "parts": (state.get("parts") or 1) - 1}
    wrong = [name for name, count in counts.items() if not 0 <= count <= _MOST]
    if wrong or not 0 < (state["steps_per_epoch"] or 1) <= _MOST:
        raise ValueError(f"{wrong[0] if wrong else 'steps_per_epoch'} is out of range")


def check_callback(run: Run, callback: Any, saved: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    """Check that a callback can go on with a state.

    Args:
        run: The run at the position to resume from, and its model in the freeze state of that position.
        callback: The callback, with the form of its state.
        saved: The state, empty if none was saved.
        weights: The model's tensors by name, as they will be.

    Raises:
        TypeError, ValueError, CheckpointError: If it cannot.
    """
    form = callback._state_form
    check_form({**callback.state_dict(), **saved}, form)  # early files lack some fields
    if any(value is int and saved.get(key, 0) < 0 for key, value in form.items()):
        raise ValueError(f"{type(callback).__name__} has counted below 0")
    kept = kept_weights(callback, saved)
    for name, tensor in [pair for tensors in kept.values() for pair in tensors.items()]:
        if getattr(weights.get(name), "shape", None) != tensor.shape:
            raise ValueError(f"{type(callback).__name__} keeps {name[:100]} of shape {list(tensor.shape)}")
    present = {*dict(run.model.named_buffers()), *run.model.state_dict(keep_vars=True)}
    complete = weights.keys() <= present  # else its head or adapters follow, and the phase's begin checks the names
    if complete and (run.position.epoch or run.position.window):  # else the phase begins anew
        callback._check_kept(run.model, kept)


def kept_weights(callback: Any, state: Mapping[str, Any]) -> dict[str, Mapping[str, Tensor]]:
    """Return the copies of the model's weights in a callback's state, such as averages, by their name there."""
    form = callback._state_form
    return {key: state.get(key) or {} for key, value in form.items() if not isinstance(value, type)}


def _differences(saved: Mapping[str, Any], now: Mapping[str, Any], phases: int) -> Iterator[str]:
    for name in now:
        if name not in saved:
            continue  # not recorded by an older version
        before, after = saved[name], now[name]
        if isinstance(after, list) and name in _PER_PHASE:
            before, after = before[:phases], after[:phases]
        if name == "frozen":
            yield from _thawed(saved, now)
        elif isinstance(after, Mapping) and isinstance(before, Mapping):
            for part in (part for part in after if part in before and before[part] != after[part]):
                if None in (before[part], after[part]) and name in ("inputs", CODE):
                    continue  # could not be read
                of = "code" if name == CODE else name
                yield f"{part} of the {of} {_shown(before[part])}, now {_shown(after[part])}"
        elif before != after:
            yield f"{name} {_shown(before)}, now {_shown(after)}"


def _thawed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences of the freeze states, if both are known."""
    if not (isinstance(saved.get("frozen"), list) and "frozen" in now):
        return []
    before, after = set(saved["frozen"]), set(now["frozen"])
    pairs = ((after - before, "trainable, now frozen"), (before - after, "frozen, now trainable"))
    return [f"{some_of(sorted(names))} {change}" for names, change in pairs if names]


def _has_state(callback: Any) -> bool:
    """Return whether a callback has a state of its own that the run goes on with."""
    from finetune.training.callbacks.base import Callback

    return type(callback).state_dict is not Callback.state_dict


def _data(source: Source) -> dict[str, Any]:
    targets = source.targets
    return {
        "samples": len(source) if source.indexed else None,
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


def _shown(value: Any) -> str:
    return str(value[0] if isinstance(value, list) and len(value) == 1 else value)[:200]
