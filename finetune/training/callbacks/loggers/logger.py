"""`Logger`: the base class of callbacks that write a run down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from finetune.training.callbacks.base import Callback
from finetune.training.run import Run

if TYPE_CHECKING:
    from typing_extensions import Self


class Logger(Callback):
    """Base class for loggers. Override `log_epoch`, `log_step` or both.

    A logger never ends a run: if a file or a connection fails with an OSError, a warning says so once.

    Attributes:
        every_n_steps: Number of optimizer updates between calls of `log_step`. None (default) never calls it.
        step: Number of optimizer updates so far, over all phases. It continues in a resumed run.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> class StepLosses(Logger):
        ...     every_n_steps = 2
        ...     losses = {}
        ...     def log_step(self, step, loss, lr):
        ...         self.losses[step] = loss
        >>> logger, data = StepLosses(), (torch.randn(16, 4), torch.arange(16) % 2)
        >>> history = FineTuner(torch.nn.Linear(4, 2), device="cpu").fit(data, batch_size=4, callbacks=[logger])
        >>> list(logger.losses)
        [2, 4]
    """

    only_watches = True
    _state_form: ClassVar = {"step": int}

    every_n_steps: int | None = None
    step = 0
    _failures: tuple[type[Exception], ...] = (OSError,)  # after which a run goes on

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        """Log an epoch.

        Args:
            row: Row of the history without nesting: the learning rates are columns `lr/GROUP` and `lr_start/GROUP`.
        """

    def log_step(self, step: int, loss: Tensor, lr: Mapping[str, float]) -> None:
        """Log an optimizer update.

        Args:
            step: Number of updates so far, from 1.
            loss: Scalar training loss, detached and still on the device. `float(loss)` waits for the device, so keep
                the tensors and read them together if possible.
            lr: Learning rates of this update by parameter group.
        """

    def for_run(self, name: str, *, group: str, **labels: Any) -> Self:
        """Return a logger for one run of a group, such as those of `compare`. Override it if runs must not mix.

        Args:
            name: Name of the run, unique in its group.
            group: Name of the group.
            labels: What tells the runs apart, such as the model, the strategy and the seed.
        """
        return copy(self)

    def on_step_end(self, run: Run) -> None:
        self.step += 1
        if self.every_n_steps and self.step % self.every_n_steps == 0:
            self._logged(run, lambda: self.log_step(self.step, run.loss, run.rates()))

    def on_epoch_end(self, run: Run) -> None:
        self._logged(run, lambda: self.log_epoch(flat_row(run.row)))

    def _logged(self, run: Run, log: Callable[[], None]) -> None:
        """Call a function that logs, and warn if it fails as a full disk or a lost connection does."""
        try:
            log()
        except self._failures as error:
            said = str(error).partition("\n")[0].rstrip(".")
            run.warn_once(f"{type(self).__name__} could not log, and the run goes on without it: {said}.")

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state.get("step", 0)


def flat_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the history without nesting: `lr` becomes columns `lr/GROUP`.

    Example:
        >>> flat_row({"epoch": 1, "lr": {"layer4": 1e-4, "": 1e-3}})  # a head that is the model itself has no name
        {'epoch': 1, 'lr/layer4': 0.0001, 'lr': 0.001}
    """
    nested = {key: value for key, value in row.items() if isinstance(value, Mapping)}
    parts = {f"{key}/{name}" if name else key: part for key, values in nested.items() for name, part in values.items()}
    return {key: value for key, value in row.items() if key not in nested} | parts
