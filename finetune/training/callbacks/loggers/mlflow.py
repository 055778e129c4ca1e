"""`MLflow`: runs on an MLflow server, or in a local database."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.errors import ArgumentError
from finetune.training.callbacks.loggers.description import flat
from finetune.training.callbacks.loggers.tracker import Status, Tracker

_STATUSES: dict[Status, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_MOST_PARAMS = 100  # in one request
_LONGEST = 6000  # characters of a parameter
_REFUSED = re.compile(r"[^\w. :/-]")  # characters of a name
_GROUP = "finetune.group"  # tag of the parent of a group


class MLflow(Tracker):
    """Log to MLflow, one run per call of `fit`. Requires the `mlflow` or the `mlflow-skinny` package.

    A run holds the configuration as parameters (settings, phases, data, versions), the values and learning rates of
    every epoch as metrics, the best of each value as `best/NAME`, and its status. A resumed `fit` continues the run.
    The runs of a group are nested under a run of its name.

    Args:
        experiment: Name of the experiment, which is created if there is none.
        name: Name of the run. None leaves it to MLflow.
        group: Name that related runs share.
        tracking_uri: Server or database, such as `"http://127.0.0.1:5000"` or `"sqlite:///mlflow.db"`. None leaves it
            to MLflow, which reads `MLFLOW_TRACKING_URI`.
        tags: Tags of the run.
        log_model: Whether to store the final checkpoint as an artifact.

    Raises:
        ArgumentError: If MLflow is not installed, or later, before the first update, if no run can be opened.

    Example:
        >>> import torch
        >>> from finetune import FineTuner
        >>> logger = MLflow("dogs", tracking_uri="sqlite:///mlflow.db")
        >>> data = torch.randn(8, 4), torch.arange(8) % 2
        >>> history = FineTuner(torch.nn.Linear(4, 2), device="cpu").fit(data, callbacks=[logger])
        >>> Path("mlflow.db").exists()
        True
    """

    def __init__(
        self,
        experiment: str = "Default",
        *,
        name: str | None = None,
        group: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, str] | None = None,
        log_model: bool = False,
    ) -> None:
        super().__init__(name, group, log_model=log_model)
        try:
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise ArgumentError(
                "The MLflow callback needs the mlflow package: pip install mlflow, or mlflow-skinny for a server."
            ) from error
        self._failures = (OSError, MlflowException)
        self.experiment, self.tracking_uri, self.tags = experiment, tracking_uri, dict(tags or {})
        self._client: Any = None

    def _open(self, config: Mapping[str, Any]) -> str:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self.tracking_uri)
        if self.run_id is not None:
            self._client.update_run(self.run_id, status="RUNNING")
            return self.run_id
        found = self._client.get_experiment_by_name(self.experiment)
        experiment = self._client.create_experiment(self.experiment) if found is None else found.experiment_id
        tags = self.tags if self.group is None else {**self.tags, "mlflow.parentRunId": self._parent(experiment)}
        run_id = str(self._client.create_run(experiment, run_name=self.name, tags=tags).info.run_id)
        self._log_params(run_id, config)
        return run_id

    def _parent(self, experiment: str) -> str:
        """Return the run that those of the group are nested under."""
        assert self.group is not None
        quoted = self.group.replace("'", "''")
        found = self._client.search_runs([experiment], f"tags.`{_GROUP}` = '{quoted}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        parent = str(self._client.create_run(experiment, run_name=self.group, tags={_GROUP: self.group}).info.run_id)
        self._client.set_terminated(parent)
        return parent

    def _log_params(self, run_id: str, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(_REFUSED.sub("_", name), str(value)[:_LONGEST]) for name, value in flat(config)]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(run_id, params=params[start : start + _MOST_PARAMS])

    def _log(self, values: Mapping[str, float], epoch: int, phase: str) -> None:
        self._log_metrics(values, epoch)
        self._client.set_tag(self.run_id, "phase", phase)

    def _log_metrics(self, values: Mapping[str, float], epoch: int) -> None:
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [Metric(_REFUSED.sub("_", name), float(value), now, epoch) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def _store(self, file: Path) -> None:
        self._client.log_artifact(self.run_id, str(file))

    def _close(self, status: Status, best: Mapping[str, float]) -> None:
        try:
            self._log_metrics({f"best/{name}": value for name, value in best.items()}, 0)
        finally:
            self._client.set_terminated(self.run_id, _STATUSES[status])
