"""A model between its verbs: what a failed verb takes back, and what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.checkpoint import restore, schema
from finetune.checkpoint.record import record_model
from finetune.checkpoint.schema import Checkpoint
from finetune.data.loading.batches import Batches
from finetune.errors import CheckpointError
from finetune.session.rehearsal import Rehearsal
from finetune.training.history import History
from finetune.training.optim.phases import Phase
from finetune.training.run import Run
from finetune.training.tasks import Task, task_of_kind


class Session(Rehearsal):
    """A model that verbs change, save and take up again; the attributes and arguments are `FineTuner`'s."""

    @contextmanager
    def _as_before_on_error(self) -> Iterator[None]:
        """Forget what was learned from data that turns out to be of no use."""
        names = ("classes", "_classes_rule", "_task", "preprocessing", "history", "_groups", "_replacements", "_order")
        before = {name: getattr(self, name) for name in names}
        self._undo.clear()
        try:
            yield
        except BaseException:
            for undo in self._undo:
                undo()
            vars(self).update(before)
            raise

    @contextmanager
    def _as_before(self) -> Iterator[None]:
        """Forget at the end whatever was learned meanwhile, and all that a step of the user's own put here."""
        before = dict(vars(self))
        try:
            yield
        finally:
            vars(self).clear()
            vars(self).update(before)

    def _make_run(self, phases: list[Phase], train: Batches, val: Batches | None, task: Task, **more: Any) -> Run:
        """Return a run of this model; `more` are attributes of `Run` that `fit` alone has."""
        return Run(
            tuner=self,
            phases=phases,
            train=train,
            val=val,
            task=task,
            build_optimizer=self._build_optimizer,
            load_start=self._load_start,
            save=self._save,
            accumulation=self.settings.gradient_accumulation_steps,
            max_grad_norm=self.settings.max_grad_norm,
            seed=self.settings.seed,
            **more,
        )

    def _save(self, path: str | Path, *, training_state: bool = True) -> Path:
        run = self._run if training_state else None
        checkpoint = Checkpoint(
            model=record_model(self.inner, self._source, self._scope),
            heads=self._heads,
            replacements=tuple(self._replacements),
            classes=self.classes,
            classes_rule=self._classes_rule,
            preprocessing=None if self.preprocessing is None else self.preprocessing.to_dict(),
            settings=self.settings.plain(),
            task=None if self._task is None else self._task.kind,
            history=tuple(self.history),
            training=None if run is None else run.state_dict(),
        )
        schema.write(Path(path), checkpoint)
        return Path(path)

    def _recall(self, checkpoint: Checkpoint) -> None:
        """Take from a checkpoint what is not in the model itself."""
        self._heads = checkpoint.heads
        if self._scope is not None:
            self._scope |= checkpoint.model.weights.keys() & dict(self.inner.named_parameters()).keys()
        self.classes, self._classes_rule = checkpoint.classes, checkpoint.classes_rule
        self.history = History(checkpoint.history)
        self._task = None if checkpoint.task is None else task_of_kind(self.settings.loss, checkpoint.task)

    def _resume(self, run: Run, checkpoint: Checkpoint) -> None:
        assert checkpoint.training is not None  # find_run returns no other
        try:
            run.load_state_dict(checkpoint.training)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{checkpoint.path} is of a run with other metrics or callbacks than this one: {error}. Give fit and "
                f"FineTuner the arguments of the run that wrote it."
            ) from error
        restore.load_into(self.inner, checkpoint)
        self._recall(checkpoint)
