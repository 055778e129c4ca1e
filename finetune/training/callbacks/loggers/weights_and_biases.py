"""`WeightsAndBiases`: runs at Weights & Biases, or in its local files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.errors import ArgumentError
from finetune.naming.paths import local_path
from finetune.training.callbacks.loggers.places import check_path
from finetune.training.callbacks.loggers.tracker import Status, Tracker

_EXIT_CODES: dict[Status, int] = {"finished": 0, "failed": 1, "interrupted": 255}  # 255: shown as killed


class WeightsAndBiases(Tracker):
    """Log to Weights & Biases, one run per call of `fit`. Requires the `wandb` package.

    A run holds the configuration (settings, phases, data, versions), the values and learning rates of every epoch, the
    best of each value as `best/NAME`, and its status. A resumed `fit` continues the run. With `mode="offline"` or
    `WANDB_MODE=offline`, everything stays in files of `folder`, and nothing is sent until `wandb sync`.

    Args:
        project: Name of the project. None leaves it to wandb.
        name: Name of the run. None leaves it to wandb.
        group: Name that related runs share.
        folder: Folder of the local files.
        log_model: Whether to store the final checkpoint as an artifact of type `model`.
        options: Further keyword arguments of `wandb.init`, such as `entity`, `tags`, `notes` or `mode`.

    Raises:
        ArgumentError: If wandb is not installed, or later, before the first update, if no run can be opened.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> logger = WeightsAndBiases("dogs", mode="offline")
        >>> data = torch.randn(8, 4), torch.arange(8) % 2
        >>> history = FineTuner(torch.nn.Linear(4, 2), device="cpu").fit(data, callbacks=[logger])
        >>> len(list(Path("wandb").glob("offline-run-*")))
        1
    """

    def __init__(
        self,
        project: str | None = None,
        *,
        name: str | None = None,
        group: str | None = None,
        folder: str | Path = ".",
        log_model: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(name, group, log_model=log_model)
        try:
            import wandb
        except ImportError as error:
            raise ArgumentError("The WeightsAndBiases callback needs the wandb package: pip install wandb.") from error
        self._failures = (OSError, wandb.Error)
        self.folder = local_path(folder).absolute()  # wandb remembers another working folder
        check_path(self.folder / "wandb" / "run", "a folder")  # otherwise wandb writes to a temporary one
        self.project, self.options = project, options
        self._run: Any = None

    def _open(self, config: Mapping[str, Any]) -> str:
        import wandb

        given = {"project": self.project, "name": self.name, "group": self.group, "dir": str(self.folder)}
        # A run of the user's own goes on beside it.
        resume = {"id": self.run_id, "resume": "allow", "reinit": "create_new"}
        self._run = wandb.init(config=dict(config), **{**given, **resume, **self.options})
        self._run.define_metric("*", step_metric="epoch")
        return str(self._run.id)

    def _log(self, values: Mapping[str, float], epoch: int, phase: str) -> None:
        self._run.log({"epoch": epoch, "phase": phase, **values})

    def _store(self, file: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"run-{self._run.id}-model", type="model")
        artifact.add_file(str(file))  # a copy
        self._run.log_artifact(artifact)

    def _close(self, status: Status, best: Mapping[str, float]) -> None:
        run, self._run = self._run, None
        run.summary.update({"status": status, **{f"best/{name}": value for name, value in best.items()}})
        run.finish(exit_code=_EXIT_CODES[status])
