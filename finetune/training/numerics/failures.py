"""Errors about numbers that are not finite: what was found, in which update, on which samples, and what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from finetune.errors import NonFiniteError, some_of
from finetune.training.resuming.identity import kept_weights

if TYPE_CHECKING:
    from finetune.training.run import Run

_ADVICE = "A lower lr, max_grad_norm=1.0, or normalized inputs usually help."


def check_weights(run: Run, *, whole: bool = True) -> None:
    """Check that the model, and the averages of its weights, are as finite as at the start of training.

    Args:
        run: The run.
        whole: Whether to check the whole model, or only what training changes.

    Raises:
        NonFiniteError: If they are not.
    """
    broken = _broken(run, whole=whole)
    if not broken:
        return
    saved = "No weights from before were saved, as fit(checkpoint_dir=...) does after every epoch."
    if run.saved is not None:
        saved = f"The weights from before are in {run.saved[1]}: load them with FineTuner.load_checkpoint."
    raise NonFiniteError(
        f"{broken} became NaN or infinite, as found {run.reached()} of phase {run.phase.name!r}. {saved} {_ADVICE}"
    )


def update_error(run: Run, error: NonFiniteError) -> NonFiniteError:
    """Return the error of an update at the position of the run, which has been undone."""
    broken = _broken(run)
    before = f" {broken} had already become NaN or infinite before it." if broken else ""
    return NonFiniteError(
        f"{error} in {run.where()}{_samples(run)}. The model keeps its state from before this update.{before} {_ADVICE}"
    )


def _broken(run: Run, *, whole: bool = True) -> str:
    """Return the names of weights and buffers that are no longer finite, empty if all are."""
    if run.finite is None:
        return ""
    copies = {
        f"the {key} of {type(callback).__name__}": weights
        for callback in run.callbacks
        if callback._state_form
        for key, weights in kept_weights(callback, callback.state_dict()).items()
    }
    broken = run.finite.broken(copies, (run.position.phase, run.position.step), whole=whole)
    if run.world.shards:  # each process has read its own part
        broken = list(dict.fromkeys(name for names in run.world.gathered(broken) for name in names))
    return some_of(broken)


def _samples(run: Run) -> str:
    """Return the samples of the next update, empty for data without sample numbers."""
    source, first = run.train.source, run.position.window * run.accumulation
    if not source.indexed:
        return ""
    batches = run.train.indices(run.epoch)[first : first + run.accumulation]
    names = [source.name(index) for batch in batches for index in torch.as_tensor(batch).tolist()]
    return f" ({some_of(names)})" if names else ""
