"""`Run`: the state of one call of `fit`, from the plan to the last epoch.

The loop advances it, callbacks read it, and a checkpoint saves enough of it to resume at the same update.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.caching.cache import Cache
from finetune.checkpoint import schema
from finetune.checkpoint.starting_weights import starting_weights
from finetune.data.loading.batches import Batches
from finetune.data.loading.parts import Parts
from finetune.distributed.replicas import Replicas, replicas_of
from finetune.distributed.world import ALONE, World
from finetune.errors import NonFiniteError
from finetune.model.compiling import compiled
from finetune.model.freezing import train_only, trainable
from finetune.model.network import Network
from finetune.model.weights import load_state as load_weights
from finetune.signals.stops import grant, poll, requested, signal_name, unbroken
from finetune.threads.cached import cached_property
from finetune.training.history import History
from finetune.training.metrics import Meter, metric_names
from finetune.training.numerics.failures import check_weights, update_error
from finetune.training.numerics.finite import BatchStatistics, FiniteCheck
from finetune.training.numerics.precision import Precision
from finetune.training.optim.optimizers import (
    build_optimizer,
    carry_state,
    check_optimizer,
    held_state,
    load_state,
    rates_of,
    state_by_name,
)
from finetune.training.optim.phases import Phase, check_freeze_state
from finetune.training.optim.schedules import get_schedule
from finetune.training.resuming import identity
from finetune.training.resuming.position import Position
from finetune.training.settings import Settings
from finetune.training.tasks import Task
from finetune.training.tasks.steps import Steps

if TYPE_CHECKING:
    import torchmetrics

    from finetune.distributed.shards import Shards

log = logging.getLogger("finetune")

_DIVIDED = (
    " Gradients and metrics stay those of the whole batch if the loss is a mean over samples. Batch norms and losses "
    "that compare samples see one part at a time, and dropout draws anew."
)


@dataclass(kw_only=True)
class Run:
    """One call of `fit`, as callbacks see it.

    Attributes:
        tuner: The `FineTuner`, whose steps are called.
        network: The model with its heads and stages.
        settings: The tuner's settings, such as accumulation, clipping and seed.
        strategy: Name of the strategy, or None.
        phases: The phases to train through.
        train: Training batches.
        val: Validation batches, or None.
        task: The task with its loss.
        metrics: Metrics by name, as templates.
        precision: Number format of the forward pass.
        callbacks: Callbacks in the order of their calls, those that save the run last.
        accumulation: Batches per optimizer update.
        max_grad_norm: Norm that gradients are clipped to, or None. A callback may change it.
        seed: Seed for every random choice in a step.
        planned_rates: Group name and rate before the schedule, by parameter name; empty before the first phase.
        notes: Lines for the user to read before training starts.
        left_out: Parts of the data that are left out, such as damaged files and unread columns.
        plan: Description of each phase in one line.
        cache: Cache of frozen features; None to run the whole model in every step.
        world: Processes that train together.
        position: Position in the run.
        row: History row of the current epoch, complete in `on_epoch_end`.
        loss: Training loss of the last update, a detached scalar on the device. Reading it waits for the device.
        end_phase: Set it to True to end the phase after this epoch.

    Example:
        >>> from finetune import FineTuner
        >>> from finetune.callbacks import Callback
        >>> class ShowEpoch(Callback):
        ...     def on_epoch_end(self, run):
        ...         print(run.epoch, run.phase.epochs, run.num_outputs, f"{run.row['loss']:.2f}")
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        >>> data = torch.randn(8, 4), torch.arange(8) % 2
        >>> history = FineTuner(model, device="cpu").fit(data, epochs=2, callbacks=[ShowEpoch()])
        1 2 2 ...
        2 2 2 ...
    """

    tuner: Steps
    network: Network
    settings: Settings
    phases: Sequence[Phase]
    train: Batches
    val: Batches | None
    task: Task
    metrics: Mapping[str, torchmetrics.Metric]
    precision: Precision
    callbacks: Sequence[Any] = ()
    notes: Sequence[str] = ()
    left_out: Sequence[str] = ()
    plan: Sequence[str] = ()
    strategy: str | None = None
    cache: Cache | None = None
    world: World = ALONE
    position: Position = field(default_factory=Position)
    row: dict[str, Any] = field(default_factory=dict)
    loss: Tensor = field(default_factory=lambda: torch.full((), torch.nan))
    end_phase: bool = False

    def __post_init__(self) -> None:
        self.accumulation = self.settings.gradient_accumulation_steps
        self.max_grad_norm = self.settings.max_grad_norm
        self.seed = self.settings.seed
        self.steps_per_epoch = -(-self.train.steps // self.accumulation) if self.train.steps else None
        # A file must hold the result of every other callback of the same epoch.
        self.callbacks = sorted(self.callbacks, key=lambda callback: getattr(callback, "saves_run", False))
        self.planned_rates: dict[str, tuple[str, float]] = {}
        self._optimizer: Optimizer | None = None
        self._optimizer_state: Mapping[str, Any] = {}
        self.statistics = BatchStatistics()
        self.finite: FiniteCheck | None = None  # of a run through `fit`
        self._warned: set[str] = set()
        self.parts = Parts(_DIVIDED, self.warn_once, divides=self.world.size == 1)
        self.val_parts = Parts(warn=self.warn_once)
        self.replicas = self._replicas(ALONE)  # of no phase yet
        self.saved: tuple[Position, Path] | None = None  # last position that the run can resume from, and its file
        self.meter = self.new_meter(self.train.device)
        self._at_start = identity.identity_at_start(self)
        self._views: list[int | None] = []  # per phase begun: stored views per image

    @property
    def optimizer(self) -> Optimizer:
        """Optimizer of the current phase."""
        if self._optimizer is None:
            raise RuntimeError("There is no optimizer before the first phase has begun.")
        return self._optimizer

    @property
    def model(self) -> nn.Module:
        """Model being trained, without wrappers such as `torch.compile`'s. Steps call `run.tuner.model`."""
        return self.network.module

    @property
    def heads(self) -> Sequence[str]:
        """Full names of the model's heads, the main one first; empty if unknown."""
        return self.network.heads

    @property
    def num_outputs(self) -> int | None:
        """Number of outputs of the model, or None if unknown."""
        return self.network.num_outputs

    @property
    def backend(self) -> str | None:
        """Backend of `torch.compile`, or None to compile nothing."""
        return self.settings.backend

    @property
    def history(self) -> History:
        """Rows of all finished epochs, including those of earlier calls of `fit`."""
        return self.tuner.history

    @property
    def phase(self) -> Phase:
        """Current phase."""
        return self.phases[self.position.phase]

    @property
    def epoch(self) -> int:
        """Index of the current epoch, counted over all phases and earlier calls of `fit`."""
        return len(self.history)

    def progress(self, step: int) -> float:
        """Return the progress of the phase, in [0, 1], halfway through its update `step`.

        Finished epochs count as such, however many updates they had: a run may resume with another batch size.
        """
        epochs, steps = self.phase.epochs, self.steps_per_epoch
        if steps is None:  # first epoch over data of unknown length
            return (self.position.epoch + 0.5) / epochs
        in_epoch = min(step - self.position.begun, steps - 1)  # an epoch may be longer than announced
        return (self.position.epoch * steps + in_epoch + 0.5) / (epochs * steps)

    @property
    def moves_statistics(self) -> bool:
        """Whether training updates batch statistics of the model."""
        return bool(self.statistics)

    @property
    def custom(self) -> bool:
        """Whether the task and the metrics follow from the results of a custom step."""
        return self.tuner._overrides("training_step", "validation_step")

    def new_meter(self, device: torch.device) -> Meter:
        """Return a meter for one pass over data on `device`."""
        settings = self.settings if self.custom else None
        return Meter(self.metrics, self.task, device, settings=settings, warn=self.warn_once, world=self.world)

    def warn_once(self, message: str) -> None:
        """Log a warning, once per run."""
        if message not in self._warned:
            self._warned.add(message)
            log.warning(message)

    def interrupt(self) -> None:
        """Let the callbacks save the run, which a signal ends here, and log one line about it."""
        try:
            self.emit("on_interrupt")
        except Exception as error:  # the signal ends the run in any case
            log.warning("The run could not be saved: %s", error)
        saved = self.saved
        kept = f"saved to {saved[1]}" if saved is not None and saved[0] == self.position else "not saved"
        log.info(f"Stopped by {signal_name()} {self.reached()}; {kept}.")

    @property
    def own_draws(self) -> tuple[int, ...]:
        """Part of the key of every random draw in a step by which this process differs from the first."""
        return () if self.world.leads else (self.world.rank,)

    def poll(self) -> None:
        """Grant a signal's request. If several processes train together, it ends all of them here."""
        if self.world.size == 1:
            poll()
        elif self.world.any(requested()):
            grant()

    def share_statistics(self) -> None:
        """Copy the batch statistics of the first process, because each has those of its own batches."""
        if self.moves_statistics:
            self.world.copy_from_first(self.model.buffers())

    def where(self) -> str:
        """Return the position in words, for messages."""
        return f"epoch {self.epoch + 1}, update {self.position.window + 1} of phase {self.phase.name!r}"

    def reached(self) -> str:
        """Return the last update in words."""
        window = self.position.window
        epoch = self.epoch + bool(window)
        return f"after epoch {epoch}{f', update {window}' if window else ''}" if epoch else "before the first update"

    def monitored_names(self) -> list[str]:
        """Return the names of the values in every epoch's row."""
        names = ["loss", *(metric_names(self.settings.metrics) if self.custom else self.metrics)]
        return names if self.val is None else names + [f"val_{name}" for name in names]

    def rates(self, step: int | None = None) -> dict[str, float]:
        """Return the learning rate of every parameter group by name, at update `step` of the phase or now."""
        groups = self.optimizer.param_groups
        if step is None:
            return {group.get("name", "all"): group["lr"] for group in groups}
        return {group.get("name", "all"): group["initial_lr"] * self._factor(step) for group in groups}

    def set_rates(self, step: int) -> None:
        """Set the learning rates for update `step` of the phase: each group's own rate times the schedule."""
        self.position.tried = step
        factor = self._factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def _factor(self, step: int) -> float:
        return get_schedule(self.phase.schedule or "cosine")(self.progress(step))

    def check_finite(self, *, whole: bool = True) -> None:
        """Wait for the device to confirm that every update so far was finite, and left finite weights and buffers.

        Args:
            whole: Whether to check the whole model, or only what training changes.

        Raises:
            NonFiniteError: If an update was not finite. The model keeps its state from before that update. Or if a
                weight, a buffer or an average of the weights is no longer finite.
        """
        with self.updates_undone_if_not_finite(done=1):
            self.precision.check()
        check_weights(self, whole=whole)

    @contextmanager
    def updates_undone_if_not_finite(self, done: int = 0) -> Iterator[None]:
        """Restore batch statistics and position if an update fails, and name that update in the error.

        Args:
            done: Number of updates by which the position is ahead of the last attempted update.
        """
        try:
            yield
        except NonFiniteError as error:
            self.statistics.restore()
            self.position.window -= error.updates_since + done
            self.position.step -= error.updates_since + done
            raise update_error(self, error) from None

    def begin_phase(self) -> None:
        """Set the freeze state and build the optimizer. Parameters that were already trained keep their moments."""
        settings, phase = self.settings, self.phase
        held = {} if self._optimizer is None else held_state(self.optimizer, self.model)
        self.replicas.close()
        if phase.train is not None:
            train_only(self.model, phase.train)
        if phase.start_from is not None and self.position.epoch == self.position.window == 0:
            load_weights(self.model, starting_weights(self.network, phase.start_from, settings.seed), strict=False)
            held = {}  # its moments belong to other weights
        self.statistics, stages = BatchStatistics(self.model), self.network.stages()
        self.replicas = self._replicas(self.world, moving=self.moves_statistics)
        self._optimizer = build_optimizer(self.model, stages, settings.optimizer, phase.lr, settings.weight_decay)
        self.planned_rates = rates_of(self.model, self._optimizer)
        self.precision.start()
        self.optimizer.zero_grad(set_to_none=True)  # left by an interrupted update
        carry_state(held, self.optimizer, self.model)
        load_state(self.optimizer, self.model, self._optimizer_state)
        self._optimizer_state = {}
        self.set_rates(self.position.tried)
        if self.finite is not None:
            self.finite.begin_phase()

    def _replicas(self, world: World, *, moving: bool = False) -> Replicas | Shards:
        step, varies = self.tuner.training_step, self.tuner._overrides("training_step")
        return replicas_of(self.model, step, world, self.train.device, varies=varies, moving=moving)

    @contextmanager
    def put_together(self) -> Iterator[None]:
        """Put the model together on exit, if its weights were divided among the processes."""
        try:
            yield
        except Exception:
            self.replicas.close(failed=True)
            raise
        except BaseException:  # a signal, which ends all processes at the same update
            self.replicas.close()
            raise
        self.replicas.close()

    def check_freeze_state(self) -> None:
        """Check that no callback or step has frozen, unfrozen or replaced a parameter in this phase, or the model.

        Raises:
            ArgumentError: If one has.
        """
        check_freeze_state(self.phase, self.planned_rates, trainable(self.tuner.inner), self.optimizer)

    def cut_prefix(self) -> None:
        """Serve this phase's batches from the frozen prefix, if that pays.

        A phase chooses its images only once, so a resumed run uses the same ones.
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
        """Compile the model for this phase: all of it, or only the part after the cached prefix.

        Earlier compilations are dropped first, because torch stops compiling a module with too many versions.
        """
        backend = self.backend
        if backend is None:
            yield
            return
        torch.compiler.reset()
        with compiled(self.model, backend, _overridden(self.train)):
            yield

    def validating(self) -> AbstractContextManager[Any]:
        """Return the context for validation. Batches served from the cache cannot run in a fully compiled model."""
        apart = self.backend is None or _overridden(self.train) or not _overridden(self.val)
        return nullcontext() if apart else torch.compiler.set_stance("force_eager")

    def emit(self, hook: str) -> None:
        """Call one hook of every callback, in order."""
        with unbroken():
            for callback in self.callbacks:
                getattr(callback, hook)(self)

    def save(
        self, path: str | Path, *, training_state: bool = True, keep_as: Path | None = None, sharded: bool = False
    ) -> Path:
        """Write a checkpoint.

        Args:
            path: File to write. An existing file is replaced as a whole or not at all.
            training_state: Whether a run can resume from the file; False for a smaller file.
            keep_as: Name that an existing file is kept under; None to replace it.
            sharded: Whether each process writes its own part of divided weights to a folder beside the file.

        Returns:
            The path of the file.

        Raises:
            ArgumentError: If `sharded` is set and the weights are not divided among processes.
            CheckpointError: If the file cannot be written.
            NonFiniteError: If an update was not finite, or left weights that are not. The file stays as it is.
        """
        self.check_finite()
        checkpoint = self.tuner._checkpoint(self.state_dict() if training_state else None)
        written = schema.save(path, checkpoint, self.world, keep_as=keep_as, sharded=sharded)
        if training_state:
            self.saved = replace(self.position), written
        return written

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which a run of the same plan resumes, as its own tensors, numbers and strings.

        Raises:
            NonFiniteError: If an update was not finite.
        """
        self.check_finite()
        return {
            "plan": self._plan(),
            "identity": self._identity,
            "position": asdict(self.position),
            "end_phase": self.end_phase,
            "steps_per_epoch": self.steps_per_epoch,
            "views": self._views,
            "optimizer": state_by_name(self.optimizer, self.model),
            "precision": self.precision.state_dict(),
            "meter": self.meter.of_all().state_dict(),
            **({} if self.parts.limit is None else {"parts": self.parts.limit}),
            "callbacks": {identity.callback_key(self, callback): callback.state_dict() for callback in self.callbacks},
        }

    def load_state_dict(self, state: Mapping[str, Any], weights: Mapping[str, Any], *, changed: bool = False) -> None:
        """Load a state. The next `begin_phase` restores the optimizer.

        Args:
            state: State of a run, from `state_dict`.
            weights: Weights that the run goes on with, by name.
            changed: Whether this run may have other settings, rates, data or callbacks.

        Raises:
            CheckpointError: If the saved run was another one, or had a plan in which its position means another.
        """
        identity.check_training(state)
        position = state["position"]
        self.position = Position(**{"begun": position["step"] - position["window"], **position})
        identity.check_plan(state["plan"], self._plan(), self.position)
        before, now = state.get("identity", {}), self._identity
        identity.check_same_run(self, before, now, changed=changed)
        self.end_phase = state["end_phase"]
        if self.steps_per_epoch is None and state["steps_per_epoch"] is not None:  # a stream, as long as before
            samples = state["steps_per_epoch"] * state["plan"]["batch_size"] * state["plan"]["accumulation"]
            self.steps_per_epoch = -(-samples // (self._plan()["batch_size"] * self.accumulation))
        self._views = list(state["views"])
        self.precision.load_state_dict(state["precision"])
        if self.world.leads:  # the others add nothing to it
            self.meter.load_state_dict(state["meter"])
        self.parts.limit = state.get("parts")
        own = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers()), **weights}
        if changed and not identity.same_optimizer(before, now):
            log.warning("The state of the optimizer is left out, because this one is another.")
        else:
            check_optimizer(state["optimizer"], self.settings.optimizer, own)
            self._optimizer_state = state["optimizer"]
        for callback in self.callbacks:
            saved = state["callbacks"].get(identity.callback_key(self, callback), {})
            identity.check_callback(self, callback, saved, own)
            callback.load_state_dict(saved)

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """Description of the run that stays as it is, computed once because it hashes the data."""
        return {**identity.identity_of(self), **self._at_start}

    def _plan(self) -> dict[str, Any]:
        """Describe the plan that the position refers to."""
        names, size = [phase.name for phase in self.phases], self.train.batch_size * self.world.size
        return {"phases": names, "batch_size": size, "accumulation": self.accumulation, **self.train.division}


def _overridden(batches: Any) -> Collection[nn.Module]:
    """Return the modules whose forward pass is overridden while a cache serves these batches."""
    modules: Collection[nn.Module] = getattr(batches, "overridden", ())
    return modules
