"""The base of callbacks: what happens at the edges of epochs and steps, without touching the loop.

Hooks have Keras's names where Keras has them. Each gets the `Run`: `run.row` is the epoch's row of
history, `run.history` all of them, `run.model` the model, and `run.end_phase = True` ends the phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune.training.run import Run


class Callback:
    """Base class; override the hooks you need, each `(self, run) -> None`.

    Attributes:
        saves_run: it writes the run to a file, so its hooks come after those of the other callbacks.
        changes_inputs: its `change_batch`, if it has one, changes inputs and not targets alone, so that nothing
            computed of the unchanged ones may be used in their place.
    """

    saves_run = False
    changes_inputs = True

    def on_fit_begin(self, run: Run) -> None:
        """Run before anything is trained."""

    def on_phase_begin(self, run: Run) -> None:
        """Run when a phase's optimizer is ready."""

    def on_epoch_begin(self, run: Run) -> None:
        """Run before the first batch of an epoch."""

    def on_step_end(self, run: Run) -> None:
        """Run after every optimizer update. Reading a tensor here makes the host wait for the device."""

    def change_batch(self, run: Run, batch: Any) -> Any:
        """Return what `training_step` gets instead of a batch, of as many samples.

        Random numbers drawn from the global generators are a function of the seed and the update here.
        """
        return batch

    def on_evaluate_begin(self, run: Run) -> None:
        """Run after an epoch's last update, and before the validation data, if there is any, is evaluated."""

    def on_evaluate_end(self, run: Run) -> None:
        """Run when the epoch's validation values are in `run.row`."""

    def on_epoch_end(self, run: Run) -> None:
        """Run when the epoch's row is in the history."""

    def on_phase_end(self, run: Run) -> None:
        """Run after the last epoch of a phase."""

    def on_fit_end(self, run: Run) -> None:
        """Run at the end of `fit`, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors, numbers, strings, and lists and dicts of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take such a state back."""
