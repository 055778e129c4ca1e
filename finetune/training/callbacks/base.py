"""The base class of callbacks."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, ClassVar

from torch import Tensor, nn

from finetune.errors import ArgumentError, NonFiniteError, nearest
from finetune.training.run import Run


class Callback:
    """Base class for callbacks, which act at fixed points of a run. Override the hooks you need.

    Hooks have their Keras names if Keras has them, and run in the order of `finetune.training.loop`. Each gets the
    `Run`: `run.row` is the current epoch's row of the history, `run.history` holds all rows, `run.model` is the model,
    and `run.end_phase = True` ends the phase after this epoch.

    Attributes:
        saves_run: Whether the callback writes the run to a file. Its hooks then run after those of the other callbacks.
        changes_inputs: Whether an overridden `change_batch` changes inputs and not only targets. If so, cached features
            of the unchanged inputs are not used.
        only_watches: Whether a run is the same without the callback, as without a logger. If not, a run that has it
            resumes only with it.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> class StopWhenPerfect(Callback):
        ...     def on_epoch_end(self, run):
        ...         run.end_phase = run.row["accuracy"] == 1.0
        >>> X = torch.arange(-8.0, 8.0)[:, None]
        >>> tuner = FineTuner(torch.nn.Linear(1, 2), device="cpu")
        >>> len(tuner.fit((X, (X[:, 0] >= 0).long()), epochs=200, lr=0.1, callbacks=[StopWhenPerfect()])) < 200
        True
    """

    saves_run = False
    changes_inputs = True
    only_watches = False
    _state_form: ClassVar[Mapping[str, Any]] = {}  # of what `state_dict` returns; tensors in dicts go by weight

    def on_fit_begin(self, run: Run) -> None:
        """Called before training starts."""

    def on_phase_begin(self, run: Run) -> None:
        """Called after the optimizer of a phase has been built."""

    def on_epoch_begin(self, run: Run) -> None:
        """Called before the first batch of an epoch."""

    def on_step_end(self, run: Run) -> None:
        """Called after every update that is not skipped. Reading a tensor here, such as `run.loss`, waits for it."""

    def change_batch(self, run: Run, batch: Any) -> Any:
        """Return the batch that `training_step` gets in place of `batch`, with the same number of samples.

        The global random generators are seeded before every update, so random changes made here are reproducible.

        Example:
            >>> class Noise(Callback):
            ...     def change_batch(self, run, batch):
            ...         inputs, targets = batch
            ...         return inputs + 0.1 * inputs.new_empty(inputs.shape).normal_(), targets
        """
        return batch

    def weigh_batch(self, run: Run, batch: Any) -> Any:
        """Return the batch with targets that carry weights for the loss, after every `change_batch`.

        The training metrics use the targets from before.

        Example:
            >>> class DoubleTheFirstClass(Callback):
            ...     def weigh_batch(self, run, batch):
            ...         inputs, targets = batch
            ...         weights = torch.tensor([2.0, 1.0])
            ...         return inputs, torch.nn.functional.one_hot(targets, 2) * weights
        """
        return batch

    def skip_update(self, run: Run, error: NonFiniteError) -> bool:
        """Return whether to skip an update whose loss or gradient is not finite, instead of raising the error.

        The update has changed nothing, and `on_step_end` is not called. With a callback that overrides this, the host
        waits for the device at every update.

        Example:
            >>> class SkipFirstEpoch(Callback):
            ...     def skip_update(self, run, error):
            ...         return run.epoch == 0
        """
        return False

    def on_evaluate_begin(self, run: Run) -> None:
        """Called after the last update of an epoch, before any evaluation on validation data."""

    def on_evaluate_end(self, run: Run) -> None:
        """Called after the epoch's validation values have been added to `run.row`."""

    def on_epoch_end(self, run: Run) -> None:
        """Called after the epoch's row has been added to the history."""

    def on_phase_end(self, run: Run) -> None:
        """Called after the last epoch of a phase."""

    def on_interrupt(self, run: Run) -> None:
        """Called when SIGINT or SIGTERM ends the run: between two updates, in an evaluation, or before an epoch.

        An evaluation is finished first if a custom callback has `on_evaluate_begin`, whose changes only it can undo.
        """

    def on_fit_end(self, run: Run) -> None:
        """Called at the end of `fit`, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs: tensors, numbers, strings, and lists and dicts of these.

        Example:
            >>> class CountEpochs(Callback):
            ...     count = 0
            ...     def on_epoch_end(self, run):
            ...         self.count += 1
            ...     def state_dict(self):
            ...         return {"count": self.count}
            ...     def load_state_dict(self, state):
            ...         self.count = state.get("count", 0)
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state from `state_dict`. The state is empty if the checkpoint has none for this callback."""

    def _check_kept(self, model: nn.Module, kept: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Raise CheckpointError if the weights in a state, by field and name, are not those of a phase to resume."""


def as_callbacks(callbacks: Any) -> list[Callback]:
    """Return callbacks as a list. A single one is a list of one, and None an empty one.

    Raises:
        ArgumentError: If one is no instance of `Callback`, or has a hook that would never be called or would fail.

    Example:
        >>> callback = Callback()
        >>> as_callbacks(callback) == as_callbacks([callback])
        True
    """
    if callbacks is None:
        return []
    several = isinstance(callbacks, Iterable) and not isinstance(callbacks, (Callback, str, type))
    listed = list(callbacks) if several else [callbacks]
    for callback in listed:
        if not isinstance(callback, Callback):
            fix = "Subclass finetune.callbacks.Callback, and pass an instance."
            if isinstance(callback, type):
                fix = f"Pass {callback.__name__}(), an instance."
            raise ArgumentError(f"Expected callbacks to be a list of callbacks, but got {callback!r}. {fix}")
        _check_names(callback)
        _check_hooks(callback)
    return listed


def change_inputs(callbacks: Iterable[Callback]) -> bool:
    """Return whether one of the callbacks changes the inputs of training batches."""
    return any(c.changes_inputs and type(c).change_batch is not Callback.change_batch for c in callbacks)


def skip_updates(callbacks: Iterable[Callback]) -> bool:
    """Return whether one of the callbacks decides which updates are skipped."""
    return any(type(callback).skip_update is not Callback.skip_update for callback in callbacks)


def are_custom(callbacks: Iterable[Callback]) -> bool:
    """Return whether one of the callbacks is custom, and may therefore change the model or the data."""
    return any(type(callback).__module__.split(".")[0] != "finetune" for callback in callbacks)


def evaluate_otherwise(callbacks: Iterable[Callback]) -> bool:
    """Return whether a custom callback may change the run for an evaluation, so that it cannot end half-way."""
    return are_custom(c for c in callbacks if type(c).on_evaluate_begin is not Callback.on_evaluate_begin)


_HOOKS: dict[str, Any] = {
    name: hook for name, hook in vars(Callback).items() if inspect.isfunction(hook) and name[0] != "_"
}


def _check_names(callback: Callback) -> None:
    """Check that no method has a name that is nearly a hook's, or begins as one, and so is never called.

    Raises:
        ArgumentError: If one has.
    """
    ours = [kind for kind in type(callback).__mro__ if issubclass(kind, Callback)]  # others may be of other trainers
    names = {name for owner in (callback, *ours) for name in vars(owner)} - _HOOKS.keys()
    for name in sorted(names):
        meant = [hook for hook in get_close_matches(name, _HOOKS, cutoff=0.9) if hook not in _overridden(callback)]
        if (name.startswith("on_") or meant) and callable(getattr(callback, name)):
            raise ArgumentError(
                f"{type(callback).__name__} has a method {name!r}, which is no hook, so it would never be called."
                f"{nearest(name, _HOOKS)} The hooks are {', '.join(_HOOKS)}. Rename the method; if it is no hook, to a "
                f"name unlike theirs."
            )


def _check_hooks(callback: Callback) -> None:
    """Check that each hook can be called as it will be.

    Raises:
        ArgumentError: If one takes other arguments, or its body would not run when it is called.
    """
    for name in _overridden(callback):
        hook = getattr(callback, name)
        given = [parameter for parameter in inspect.signature(_HOOKS[name]).parameters if parameter != "self"]
        delayed = inspect.isgeneratorfunction(hook) or inspect.iscoroutinefunction(hook)
        if delayed or not _accepts(hook, given):
            shown = " with yield or async" if delayed else inspect.signature(hook) if callable(hook) else f" = {hook!r}"
            raise ArgumentError(
                f"{type(callback).__name__}.{name}{shown} cannot be called as a hook. Expected "
                f"def {name}(self{''.join(f', {parameter}' for parameter in given)})."
            )


def _overridden(callback: Callback) -> list[str]:
    return [name for name, hook in _HOOKS.items() if getattr(getattr(callback, name), "__func__", None) is not hook]


def _accepts(hook: Any, given: list[str]) -> bool:
    """Return whether a hook can be called with values for these parameters, by position."""
    if not callable(hook):
        return False
    with suppress(ValueError):  # compiled code has no signature
        signature = inspect.signature(hook)
        try:
            signature.bind(*given)
        except TypeError:
            return False
    return True
