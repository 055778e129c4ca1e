"""What a training run knows about itself.

The loop moves it forward, callbacks read it, and a checkpoint saves what is needed to go on from the
same update.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.caching.cache import Cache
from finetune.data.loading.batches import Batches
from finetune.errors import CheckpointError, NonFiniteError
from finetune.model.compiling import compiled
from finetune.model.freezing import moving_statistics, trainable
from finetune.training.history import History
from finetune.training.metrics import Meter
from finetune.training.optim.optimizers import carry_state, load_state, state_by_name
from finetune.training.optim.phases import Phase
from finetune.training.optim.schedules import get_schedule
from finetune.training.precision import Precision
from finetune.training.steps import Steps
from finetune.training.tasks import Task

if TYPE_CHECKING:
    import torchmetrics

log = logging.getLogger("finetune")

_NON_FINITE_ADVICE = (
    "The model is as it was before this update. A lower lr, max_grad_norm=1.0, or inputs of ordinary size usually help."
)


@dataclass
class Position:
    """Where in a run we are: all counts are of what is done.

    `phase` indexes the phases, `epoch` counts in the phase, `window` counts updates tried in the
    epoch, and `step` the optimizer updates in the phase. `tried` is the number, from 0, of the update
    whose rates the groups show.
    """

    phase: int = 0
    epoch: int = 0
    window: int = 0
    step: int = 0
    tried: int = 0


@dataclass
class Run:
    """One call of `fit`, from its plan to its end.

    Attributes:
        tuner: the `FineTuner`, whose steps are called.
        phases: the plan.
        train: training batches.
        val: validation batches, or None.
        task: the kind of answer and its loss.
        metrics: metrics by name, as templates.
        precision: the number format of the forward pass.
        build_optimizer: makes the optimizer of a phase over what then trains.
        load_start: gives the model the weights that a phase starts from.
        save: writes a checkpoint to a path, with `training_state=False` one for use only.
        callbacks: called in this order, those that save the run after the others.
        accumulation: batches an update.
        max_grad_norm: the norm that gradients are clipped to, or None.
        seed: of everything random in a step.
        notes: what the user should be told before it starts, a line each.
        plan: what each phase does, a line each.
        heads: full names of the model's heads, the main one first; none where they are not known.
        num_outputs: of the model, None where that is not known.
        cache: computes the frozen prefix once; None to run the whole model in every step.
        backend: of `torch.compile`; None to compile nothing.
        position: how far it is.
        row: the row of history of the epoch under way, whole in `on_epoch_end`.
        end_phase: set it to end the phase after this epoch.
    """

    tuner: Steps
    phases: Sequence[Phase]
    train: Batches
    val: Batches | None
    task: Task
    metrics: Mapping[str, torchmetrics.Metric]
    precision: Precision
    build_optimizer: Callable[[Phase], Optimizer]
    load_start: Callable[[str | Path], None]
    save: Callable[..., Any]
    callbacks: Sequence[Any] = ()
    accumulation: int = 1
    max_grad_norm: float | None = None
    seed: int = 0
    notes: Sequence[str] = ()
    plan: Sequence[str] = ()
    heads: Sequence[str] = ()
    num_outputs: int | None = None
    cache: Cache | None = None
    backend: str | None = None
    position: Position = field(default_factory=Position)
    row: dict[str, Any] = field(default_factory=dict)
    end_phase: bool = False

    def __post_init__(self) -> None:
        self.meter = Meter(self.metrics, self.task, self.train.device)
        batches = self.train.steps
        self.steps_per_epoch = None if not batches else -(-batches // self.accumulation)
        # A file must hold what every other callback made of the same epoch.
        self.callbacks = sorted(self.callbacks, key=lambda callback: getattr(callback, "saves_run", False))
        self._optimizer: Optimizer | None = None
        self._optimizer_state: Mapping[str, Any] = {}
        self._statistics: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        self._remembered: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._warned: set[str] = set()
        self._views: list[int | None] = []  # of each phase begun, how many pictures there were of a sample

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of the phase under way."""
        if self._optimizer is None:
            raise RuntimeError("There is no optimizer before the first phase has begun.")
        return self._optimizer

    @property
    def model(self) -> nn.Module:
        """The model that trains, without wrappers such as `torch.compile`'s; steps call `run.tuner.model`."""
        return self.tuner.inner

    @property
    def history(self) -> History:
        """The rows of the epochs so far, those of earlier calls of `fit` too."""
        return self.tuner.history

    @property
    def phase(self) -> Phase:
        """The phase under way."""
        return self.phases[self.position.phase]

    @property
    def epoch(self) -> int:
        """The number of the epoch under way, from 0, over all phases and earlier calls of `fit`."""
        return len(self.history)

    def progress(self, step: int) -> float:
        """Return the progress of the phase in [0, 1] at the middle of its update `step`, from 0."""
        epochs = self.phase.epochs
        if self.steps_per_epoch is None:  # the first epoch over data of unknown length
            return (self.position.epoch + 0.5) / epochs
        return min(1.0, (step + 0.5) / (epochs * self.steps_per_epoch))

    @property
    def moves_statistics(self) -> bool:
        """Whether the model has batch statistics that training moves."""
        return bool(self._statistics)

    def warn_once(self, message: str) -> None:
        """Log a warning, the first time it comes up in this run."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message)

    def where(self) -> str:
        """Say where the run is, for messages."""
        return f"epoch {self.epoch + 1}, update {self.position.window + 1}"

    def monitored_names(self) -> list[str]:
        """Return the names of the values that an epoch's row will have to monitor."""
        names = ["loss", *self.metrics]
        return names if self.val is None else names + [f"val_{name}" for name in names]

    def rates(self) -> dict[str, float]:
        """Return the present learning rate of every group, by name."""
        return {group.get("name", "all"): group["lr"] for group in self.optimizer.param_groups}

    def set_rates(self, step: int) -> None:
        """Set every group's learning rate for an update of the phase: its own times the schedule's factor."""
        self.position.tried = step
        factor = get_schedule(self.phase.schedule or "cosine")(self.progress(step))
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def remember_statistics(self) -> None:
        """Copy the batch statistics that this update may move, in case it or one not yet checked fails."""
        failed = self.precision.failed
        for kind, statistics in self._statistics.items():
            now = torch.cat([buffer.reshape(-1) for buffer in statistics])
            if failed is not None:
                now = torch.where(failed.to(now.device), self._remembered[kind], now)
            self._remembered[kind] = now

    def check_finite(self) -> None:
        """Wait for the device to say that every update so far was finite.

        Raises:
            NonFiniteError: one was not; the model is as before it.
        """
        with self.undone_if_not_finite(done=1):
            self.precision.check()

    @contextmanager
    def undone_if_not_finite(self, done: int = 0) -> Iterator[None]:
        """Put statistics and position back to where they were before an update that fails, and say which it is.

        `done` is how many updates the position is ahead of the one tried last.
        """
        try:
            yield
        except NonFiniteError as error:
            for kind, statistics in self._statistics.items():
                parts = self._remembered[kind].split([buffer.numel() for buffer in statistics])
                torch._foreach_copy_(statistics, [p.view_as(b) for p, b in zip(parts, statistics, strict=True)])
            self.position.window -= error.updates_since + done
            self.position.step -= error.updates_since + done
            raise NonFiniteError(f"{error} in {self.where()}. {_NON_FINITE_ADVICE}") from None

    def begin_phase(self) -> None:
        """Build the optimizer of the phase under way; what trained before keeps its moments and goes on from there."""
        before, self._optimizer = self._optimizer, self.build_optimizer(self.phase)
        if self.phase.start_from is not None and self.position.epoch == self.position.window == 0:
            self.load_start(self.phase.start_from)
            before = None  # the moments are those of other weights
        self.precision.start()
        self.optimizer.zero_grad(set_to_none=True)  # what an update that was broken off has left
        if before is not None:
            carry_state(before, self.optimizer)
        load_state(self.optimizer, self.model, self._optimizer_state)
        self._optimizer_state = {}
        self.set_rates(self.position.tried)
        self._statistics = {}
        for buffer in moving_statistics(self.model):
            self._statistics.setdefault((buffer.dtype, buffer.device), []).append(buffer)

    def cut_prefix(self) -> None:
        """Have the batches of this phase served from the model's frozen prefix, where that pays.

        Which pictures a phase shows is decided once: a run that goes on in the middle of it shows the same.
        """
        begun = self._views[self.position.phase :][:1]
        in_views = begun[0] is not None if begun else None
        if self.cache is None:
            self.train = self.train.in_views(bool(in_views))
        else:
            self.train, self.val = self.cache.cut(self.model, self.train, self.val, self.phase.epochs, in_views)
        self._views[self.position.phase :] = [self.train.views]

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Compile the model for this phase: whole, or where training is served from the cache, what comes after it.

        torch forgets what it compiled before, as it gives up on a module that it has too many versions of.
        """
        if self.backend is None:
            yield
            return
        torch.compiler.reset()
        with compiled(self.model, self.backend, _overridden(self.train)):
            yield

    def validating(self) -> AbstractContextManager[Any]:
        """Return the context for validation: what is served from the cache cannot run in a model compiled whole."""
        apart = self.backend is None or _overridden(self.train) or not _overridden(self.val)
        return nullcontext() if apart else torch.compiler.set_stance("force_eager")

    def emit(self, hook: str) -> None:
        """Call one hook of every callback, in their order."""
        for callback in self.callbacks:
            getattr(callback, hook)(self)

    def state_dict(self) -> dict[str, Any]:
        """Return what a run of the same plan needs to go on from here; tensors, numbers and strings.

        Raises:
            NonFiniteError: an update was not finite.
        """
        self.check_finite()
        return {
            "plan": self._plan(),
            "position": asdict(self.position),
            "end_phase": self.end_phase,
            "steps_per_epoch": self.steps_per_epoch,
            "views": self._views,
            "optimizer": state_by_name(self.optimizer, self.model),
            "precision": self.precision.state_dict(),
            "meter": self.meter.state_dict(),
            "callbacks": {_key(self, callback): callback.state_dict() for callback in self.callbacks},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take such a state; the next `begin_phase` gives the optimizer its part.

        Raises:
            CheckpointError: the run was of another plan, so that its position means something else here.
        """
        self.position = Position(**state["position"])
        self._check_plan(state["plan"])
        self.end_phase = state["end_phase"]
        self.steps_per_epoch = state["steps_per_epoch"]
        self._views = list(state["views"])
        self.precision.load_state_dict(state["precision"])
        self.meter.load_state_dict(state["meter"])
        self._optimizer_state = state["optimizer"]
        for callback in self.callbacks:
            callback.load_state_dict(state["callbacks"].get(_key(self, callback), {}))

    def _plan(self) -> dict[str, Any]:
        """Describe what gives the position its meaning."""
        names = [phase.name for phase in self.phases]
        return {"phases": names, "batch_size": self.train.batch_size, "accumulation": self.accumulation}

    def _check_plan(self, saved: Mapping[str, Any]) -> None:
        """Allow more epochs and phases than were planned, but no others before the position."""
        done, plan = self.position.phase + 1, self._plan()
        before = saved["phases"][:done] != plan["phases"][:done]
        within = [name for name in ("batch_size", "accumulation") if saved[name] != plan[name]]
        if before or (within and self.position.window):
            raise CheckpointError(
                f"The run to resume had phases {saved['phases']}, batch_size {saved['batch_size']} and accumulation "
                f"{saved['accumulation']}; this one has {plan['phases']}, {plan['batch_size']} and "
                f"{plan['accumulation']}. Resume with what it had; only at the end of an epoch may the last two change."
            )


def _overridden(batches: Any) -> Collection[nn.Module]:
    """Return the modules whose forward pass is overridden while these batches are served from a cache."""
    modules: Collection[nn.Module] = getattr(batches, "overridden", ())
    return modules


def _key(run: Run, callback: Any) -> str:
    """Name a callback in a checkpoint: by its class, and its number among those of that class."""
    same = [other for other in run.callbacks if type(other) is type(callback)]
    return f"{type(callback).__name__}.{next(i for i, other in enumerate(same) if other is callback)}"


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy what training can change: the trainable parameters and every buffer."""
    changing = {**trainable(model), **dict(model.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in changing.items()}


def restore(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Put a snapshot's values back into the tensors they came from."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in saved.items():
            own[name].copy_(value)
