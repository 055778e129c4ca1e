"""The loss and the metrics over one pass through the data."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from finetune.data.targets import BINARY, CLASSIFICATION, MULTILABEL, REGRESSION
from finetune.distributed.world import ALONE, World
from finetune.errors import ArgumentError, FineTuneError, number
from finetune.nested import map_tensors
from finetune.training.metrics.build import build_metrics
from finetune.training.metrics.merge import merged, parts_of
from finetune.training.tasks import Task, class_indices, infer_task

if TYPE_CHECKING:
    import torchmetrics

    from finetune.training.settings import Settings

log = logging.getLogger("finetune")


class StepOutput(NamedTuple):
    """Result of `training_step` or `validation_step`.

    Attributes:
        loss: Scalar loss.
        outputs: Outputs of the model, [N, ...], for the metrics; None to skip the metrics.
        targets: Targets, [N, ...], for the metrics; None to skip the metrics.

    Example:
        >>> from finetune import FineTuner
        >>> class Focal(FineTuner):
        ...     def training_step(self, batch):
        ...         inputs, targets = batch
        ...         logits = self.model(inputs)
        ...         losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        ...         return StepOutput(((1 - (-losses).exp()) ** 2 * losses).mean(), logits, targets)
        >>> history = Focal(torch.nn.Linear(4, 2), device="cpu").fit((torch.randn(8, 4), torch.arange(8) % 2))
        >>> list(history[0])[:4]
        ['epoch', 'phase', 'loss', 'accuracy']
    """

    loss: Tensor
    outputs: Any = None
    targets: Any = None


class Meter:
    """Accumulator of the loss and the metrics over one pass through the data.

    Metrics are left out if every step returned only a loss. Targets that the loss ignores count in neither.

    Args:
        metrics: Metrics by name, cloned before use.
        task: Task that turns outputs into probabilities.
        device: Device on which the values are accumulated.
        settings: Settings from which to infer task and metrics anew, if a custom step returns targets of another
            form than those in the batch; None to keep both.
        warn: Function that is called with a message for the user.
        world: Processes that each see a part of the data. The values are of all of it.

    Attributes:
        task: The task that the metrics are computed for.
        metrics: The metrics by name, as templates.
        samples: Number of samples so far.
    """

    def __init__(
        self,
        metrics: Mapping[str, torchmetrics.Metric],
        task: Task,
        device: torch.device,
        *,
        settings: Settings | None = None,
        warn: Callable[[str], object] = log.warning,
        world: World = ALONE,
    ) -> None:
        self._device, self._settings, self._warn, self._world = device, settings, warn, world
        self._use(task, metrics)
        double = torch.float32 if device.type == "mps" else torch.float64
        self._loss = torch.zeros((), dtype=double, device=device)
        self._weight: Tensor | float = 0.0
        self.samples = 0

    def update(self, step: StepOutput, samples: int, own_targets: Any = None) -> None:
        """Add a batch.

        Args:
            step: Result of the step.
            samples: Number of samples in the batch; 0 for a stand-in, which only shows the form of the results.
            own_targets: Targets in the batch.
        """
        outputs, targets = step.outputs, step.targets
        judged = isinstance(outputs, Tensor) and isinstance(targets, Tensor)
        if judged and self._settings is not None:
            self._follow(outputs, targets, own_targets, self._settings)
        if not samples:
            return
        weight = weight_of(self.task, targets if judged else own_targets, samples)
        self._loss += part_of(step.loss.detach().to(self._loss.dtype), weight)
        self._weight = self._weight + weight
        self.samples += samples
        if judged:
            self._update_metrics(outputs.detach(), targets.detach())

    def compute(self) -> dict[str, float]:
        """Return the values over the data of all processes by name, `loss` first. This waits for the device."""
        if self._world.size > 1:
            return self.of_all().compute()
        values = {"loss": self.mean_loss()}
        for name, metric in self._own.items():
            if metric.update_called:
                with _named(name):
                    values[name] = _number(name, metric.compute())
                if math.isnan(values[name]):
                    self._warn(
                        f"The metric {name!r} is NaN. It is undefined, for example, if the data holds one class only."
                    )
        return values

    def of_all(self) -> Meter:
        """Return the meter of the data of all processes, or of this one if it is alone."""
        if self._world.size == 1:
            return self
        states = self._world.gathered(map_tensors(Tensor.cpu, self.state_dict(), None))
        whole = Meter(self.metrics, self.task, self._device, warn=self._warn)
        whole.load_state_dict(merged(states, whole._own))
        return whole

    def mean_loss(self) -> float:
        """Return the mean loss of this process's data so far. This waits for the device."""
        return float(self._loss) / (float(self._weight) or 1.0)

    def reset(self) -> None:
        """Start a new pass."""
        self._loss.zero_()
        self._weight = 0.0
        self.samples = 0
        for metric in self._own.values():
            metric.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return the accumulated state as tensors and numbers; lists of tensors are concatenated."""
        return {
            "loss": self._loss,
            "weight": float(self._weight),
            "samples": self.samples,
            "metrics": {name: _state_of(metric) for name, metric in self._own.items() if metric.update_called},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that `state_dict` returned.

        Raises:
            KeyError, ValueError: If it is of other metrics.
        """
        self.reset()
        self._loss += state["loss"].to(self._loss.device)
        self.samples = state["samples"]
        self._weight = number("weight", state.get("weight", self.samples))
        for name, saved in state["metrics"].items():
            for prefix, metric in parts_of(self._own[name]):
                for key, default in metric.metric_state.items():
                    value = saved["state"][prefix + key]
                    moved = None if value is None else value.to(metric.device)
                    listed = [] if moved is None else [moved]
                    if isinstance(default, Tensor) and getattr(moved, "shape", None) != default.shape:
                        raise ValueError(f"the {key} of {name} has another shape")
                    vars(metric)[key] = listed if isinstance(default, list) else moved
                metric._update_count = saved["updates"]

    def _use(self, task: Task, metrics: Mapping[str, torchmetrics.Metric]) -> None:
        self.task, self.metrics = task, metrics
        self._own = {name: metric.clone().to(self._device) for name, metric in metrics.items()}
        for metric in self._own.values():
            for _, part in parts_of(metric):
                part.sync_on_compute = part._to_sync = False  # see of_all

    def _follow(self, outputs: Tensor, targets: Tensor, own_targets: Any, settings: Settings) -> None:
        """Infer the task from the first result of a custom step, if its targets differ from the data's."""
        num_outputs = outputs.shape[1] if outputs.dim() > 1 else 1
        task = self.task if _alike(targets, own_targets) else infer_task(settings.loss, targets, num_outputs)
        metrics = build_metrics(settings.metrics, task, num_outputs)
        if task.kind != self.task.kind or metrics.keys() != self.metrics.keys():
            self._use(task, metrics)
        self._settings = None

    def _update_metrics(self, outputs: Tensor, targets: Tensor) -> None:
        if not self._own:
            return
        kind, outputs = self.task.kind, outputs.float()
        if kind == CLASSIFICATION:
            targets = class_indices(targets, outputs)
        elif kind is not None and targets.numel() == outputs.numel():
            targets = targets.reshape(outputs.shape)
        counted = self.task.counted(targets)
        if counted is not None and not counted.all():
            outputs, targets = outputs.movedim(1, -1)[counted], targets[counted]
        if len(targets) == 0:
            return
        predictions, judged = self.task.probabilities(outputs), targets
        columns = predictions.dim() > 1 and predictions.shape[-1] > 1
        if kind == BINARY or (kind == REGRESSION and not columns):
            predictions, judged = predictions.flatten(), targets.flatten()
        if kind in (BINARY, MULTILABEL):
            judged = (judged > 0.5).long()
        for name, metric in self._own.items():
            given = (outputs, targets) if getattr(metric, "takes_outputs", False) else (predictions, judged)
            with _named(name, outputs, targets):
                metric.update(*given)


def weight_of(task: Task, targets: Any, samples: int) -> Tensor | float:
    """Return the weight of a batch in a mean over the data: its samples, without those that the loss ignores."""
    counted = task.counted(targets)
    return samples if counted is None else counted.sum() * (samples / max(1, counted.numel()))


def shares_of(weights: Sequence[Tensor | float], total: Tensor | float | None = None) -> list[Tensor | float]:
    """Return the share of each weight in a total, which is their sum unless given; 0 if the total is."""
    total = sum(weights) if total is None else total
    shares = [weight / total for weight in weights]
    return [share.nan_to_num() if isinstance(share, Tensor) else share for share in shares]


def part_of(loss: Tensor, weight: Tensor | float) -> Tensor:
    """Return the loss times its weight; 0 without weight, where the mean over no sample is NaN."""
    if not isinstance(weight, Tensor):
        return loss * weight
    return torch.where(weight > 0, loss * weight.to(loss.dtype), torch.zeros_like(loss))


def _alike(targets: Tensor, own: Any) -> bool:
    """Return whether targets of a step have the form of those in its batch, so that the same task fits."""
    if not isinstance(own, Tensor):
        return False
    return targets.numel() == own.numel() and targets.is_floating_point() == own.is_floating_point()


@contextmanager
def _named(name: str, outputs: Tensor | None = None, targets: Tensor | None = None) -> Iterator[None]:
    """Name the metric in an error."""
    try:
        yield
    except (FineTuneError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        shapes = [f"{list(value.shape)} ({value.dtype})" for value in (outputs, targets) if value is not None]
        on = f" on outputs {shapes[0]} and targets {shapes[1]}" if len(shapes) == 2 else ""
        raise ArgumentError(
            f"The metric {name!r} fails{on}: {type(error).__name__}: {error}. Pass a metric of this task, or remove it."
        ) from error


def _number(name: str, value: Any) -> float:
    if isinstance(value, np.ndarray):
        value = torch.as_tensor(value)
    if isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1):
        return float(value)
    got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    raise ArgumentError(
        f"Expected the metric {name!r} to return one number, but got {got}. Set how it averages, as in average='macro'."
    )


def _state_of(metric: torchmetrics.Metric) -> dict[str, Any]:
    from torchmetrics.utilities import dim_zero_cat

    state = {
        prefix + key: (dim_zero_cat(values) if values else None) if isinstance(values, list) else values
        for prefix, part in parts_of(metric)
        for key, values in part.metric_state.items()
    }
    return {"state": state, "updates": metric._update_count}
