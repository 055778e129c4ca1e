"""`Trial`: open data and try the model on it, before a pass over it starts."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from finetune.data.pipeline import Pipeline
from finetune.data.prepare import Prepared
from finetune.data.randomness import seeded
from finetune.data.sources.base import Source
from finetune.data.sources.labels import Meaning
from finetune.data.splitting import mixed
from finetune.data.targets import CLASSIFICATION, REGRESSION, TargetRule
from finetune.display.progress.waits import busy
from finetune.distributed.world import ALONE, World
from finetune.errors import ArgumentError, DataError
from finetune.known import Known
from finetune.model.freezing import needs_several_samples
from finetune.training.metrics import build_metrics
from finetune.training.metrics.trial import try_loss, try_metrics
from finetune.training.numerics.precision import Precision
from finetune.training.settings import Settings
from finetune.training.tasks import LOGITS, PROBABILITIES, Task, check_names, infer_task, is_custom, task_of_kind

log = logging.getLogger("finetune")

TRAINING, VALIDATION, PREDICTION = STEPS = ("training_step", "validation_step", "predict_step")

# Steps as other libraries call them, or as they are easily called.
_MEANT = {
    **dict.fromkeys(("train_step", "train_batch", "step_train"), TRAINING),
    **dict.fromkeys(("val_step", "valid_step", "eval_step", "evaluation_step", "test_step"), VALIDATION),
    **dict.fromkeys(("prediction_step", "pred_step", "inference_step"), PREDICTION),
}


def check_step_names(kind: type, base: type) -> None:
    """Check that a subclass has no method that is nearly called as a step that it lacks, and so is never called.

    Raises:
        ArgumentError: If it has.
    """
    own = {name for cls in kind.__mro__ if issubclass(cls, base) and cls is not base for name in vars(cls)}
    for name in sorted(own - {*dir(base)}):
        meant = _MEANT.get(name) or next(iter(get_close_matches(name, STEPS, n=1, cutoff=0.9)), None)
        if meant is not None and getattr(kind, meant) is getattr(base, meant) and callable(getattr(kind, name)):
            raise ArgumentError(
                f"{kind.__name__} has a method {name!r}, which is no step, so it would never be called. The steps are "
                f"{', '.join(STEPS)}. Rename the method to {meant!r}; if it is no step, to a name unlike theirs."
            )


@dataclass(frozen=True)
class Trial:
    """A model and its settings, to be tried on data. Each trial returns the state with everything it has learned.

    Attributes:
        known: State of the tuner.
        settings: The tuner's settings.
        precision: Number format of the forward pass.
        custom: Names of the steps that a subclass overrides.
        world: Processes that run the model together.
    """

    known: Known
    settings: Settings
    precision: Precision
    custom: Collection[str] = ()
    world: World = ALONE

    @property
    def pipeline(self) -> Pipeline:
        """Settings that determine how data becomes batches for the model."""
        module = self.known.network.module
        double = {p.dtype for p in module.parameters() if p.is_floating_point()} == {torch.float64}
        several = needs_several_samples(module)
        seed, device = self.settings.seed, self.precision.device
        return Pipeline(self.known.preprocessing, seed, device, double, several, self.world)

    @busy("Opening the data")
    def open(self, data: Any, *, labeled: bool = True) -> tuple[Source, Known]:
        """Open data and try the model on it, which may show another meaning of the labels.

        Raises:
            DataError: If the data cannot be opened, or the model does not accept it.
        """
        meaning = self._meaning() if labeled else None
        source = self.pipeline.open(data, meaning, labeled=labeled)
        if (whole := mixed(source)) is not None:
            log.info(whole)
        tried = self._with(self.known.opened(source.kind))
        tried = tried._with(tried.once(source))
        if not labeled and not self.known.tried:
            tried._say_outputs()
        if meaning is not None:
            learned = tried._meaning()
            source = tried.pipeline.open(data, learned) if source.indexed and learned != meaning else source
            learned.say_order(source.classes)
            if VALIDATION not in self.custom:
                tried.pipeline.check_pairs(source)
        return source, tried.known

    def open_to_verify(self, data: Any) -> tuple[Source, Known, str]:
        """Open and check data with its labels; without them if it has none that the task takes, and return why.

        Raises:
            DataError: If the data cannot be used, or the model does not accept it.
        """
        try:
            source, known = self.open(data)
            tried = self._with(known)
            return tried.pipeline.audited(source, "verification", rule=tried.answered_rule), known, ""
        except DataError as error:
            source, known = self.open(data, labeled=False)
            audited = self._with(known).pipeline.audited(source, "verification")
            return audited, known, str(error).partition(". ")[0]

    @busy("Opening the data")
    def open_training(
        self, train: Any, val: Any, *, trains: bool = False, holds_out: bool = True
    ) -> tuple[Prepared, Known]:
        """Open training and validation data and try the model on it, which may show another meaning of the labels.

        Raises:
            DataError: If the data cannot be opened, or the model does not accept it.
        """
        known, meaning = self.known, self._meaning(training=True)
        classes, epoch = known.classes, len(known.history) if trains else 0
        options: dict[str, Any] = {"model_classes": classes, "epoch": epoch, "holds_out": holds_out}
        data = self.pipeline.open_training(train, val, meaning, **options)
        tried = self._with(known.opened_training(data.train, data.val))
        tried = tried._with(tried.on(data.train, trains=trains))
        learned = tried._meaning(training=True)
        if data.train.indexed and learned != meaning:
            data = tried.pipeline.open_training(train, val, learned, **options)
        if known.history and known.task is not None and known.task.kind != REGRESSION:
            learned.say_order(data.train.classes)
        said = TRAINING not in self.custom and tried.pipeline.check_pairs(data.train)
        # The first batch of a stream belongs to the pass over it, which begins later.
        if VALIDATION not in self.custom and data.val is not None and data.val.indexed:
            tried.pipeline.check_pairs(data.val, say=not said)
        return data, tried.known

    def on(self, source: Source, *, trains: bool = False) -> Known:
        """Try the model on a few samples to find its head, its number of outputs and its memory format.

        With a custom training step the samples are only kept, because the step may call the model on other inputs.

        Raises:
            DataError: If the model does not accept the samples.
            HeadError: If the model returns several results and it is unclear which ones are the logits.
        """
        example, same = self.pipeline.example(source), None
        network = self.known.network.with_example(example)
        if example is not None and TRAINING not in self.custom:
            with seeded("look"), self.precision.autocast(), busy("Trying the model on the data"):
                same = network.try_on(example, channels_last=self.gains_from_channels_last(source), trains=trains)
        known = replace(self.known, network=network, tried=True, channels_last=same)
        return known if known.task is None else replace(known, task=self._with(known)._of_outputs(known.task))

    def once(self, source: Source) -> Known:
        """Try the model on a few samples if it has not been tried before."""
        untried = self.known.channels_last is None and self.gains_from_channels_last(source)
        return self.on(source) if untried or not self.known.tried else self.known

    @property
    def rule(self) -> TargetRule:
        """Targets that the task accepts. A custom step knows its targets, but class indices are still checked."""
        rule = self.known.rule
        if not self._custom_loss:
            return rule
        return replace(rule if rule.kind == CLASSIFICATION else TargetRule(), as_tensors=False)

    def task(self, source: Source, step: str = TRAINING) -> Task:
        """Infer the task from the loss, the targets and the outputs, and try the loss and the metrics.

        With a custom step, which may know another task, this is a guess for the metrics.

        Args:
            source: Training data, or other data with targets.
            step: Step whose loss is computed.

        Raises:
            ArgumentError: If the loss or a metric does not fit.
            DataError: If the targets do not match the outputs, or could mean several tasks.
            HeadError: If a function behind the head bounds the outputs, which then do not suit the loss.
        """
        role = "training" if step == TRAINING else "evaluation"
        targets, loss, network = self.pipeline.some_targets(source, role), self.settings.loss, self.known.network
        if source.divided:  # each process has read others, and all have to infer the same task
            targets = self.world.first_known(targets)
        task = infer_task(loss, targets, network.num_outputs, guess=self._custom_loss, named=bool(source.classes))
        if not {TRAINING, step} & {*self.custom}:
            self._check_bounds(task, targets)
        task = self._of_outputs(task)
        if self._custom_loss:
            return task
        self.settings.check_loss()
        check_names(task, source.classes, source.targets)
        try_loss(loss, task, network.logits, targets)
        try_metrics(self.metrics(task), task, network.logits, targets)
        return task

    def answered_task(self) -> Task:
        """Return the task that gives outputs a meaning. Pretrained weights with class names are for classification."""
        known, network = self.known, self.known.network
        task = known.task or infer_task(self.settings.loss, None, network.num_outputs)
        if task.kind is None and known.classes is not None and not callable(self.settings.loss):
            task = task_of_kind(self.settings.loss, CLASSIFICATION)
            return replace(task, outputs=PROBABILITIES) if network.bounds().are_probabilities else task
        return self._of_outputs(task)

    @property
    def answered_rule(self) -> TargetRule:
        """Targets that the task of the answers accepts."""
        return self.answered_task().rule(self.known.network.num_outputs)

    def _say_outputs(self) -> None:
        """Say which function gives the outputs of a model that has no task yet, as they may be taken for logits."""
        if self.known.task is None and PREDICTION not in self.custom:
            function = self.known.network.bounds().clamping
            if function is not None:
                log.info("The model applies %s to its outputs: they are its results, not logits.", function)

    def _check_bounds(self, task: Task, targets: Tensor | None) -> None:
        """Check that functions behind the head leave the outputs to the loss, if it is a known one."""
        network, model = self.known.network, type(self.known.network.module).__name__
        if is_custom(self.settings.loss):
            return
        if task.kind == REGRESSION and targets is not None and targets.numel() and not targets.is_complex():
            network.bounds().check_reach(targets, model)
        elif task.kind not in (None, REGRESSION) and task.outputs == LOGITS:
            network.bounds().check_logits(model)

    def _of_outputs(self, task: Task) -> Task:
        """Return the task with probabilities as outputs if a custom loss gets them from the model."""
        own = self._custom_loss or is_custom(self.settings.loss)
        if not own or task.kind in (None, REGRESSION) or task.outputs != LOGITS:
            return task
        return replace(task, outputs=PROBABILITIES) if self.known.network.bounds().are_probabilities else task

    def metrics(self, task: Task, *steps: str) -> dict[str, Any]:
        """Return the metrics of a task, which is a guess if one of these steps is a custom one."""
        guessed = bool({*steps} & {*self.custom})
        return build_metrics(self.settings.metrics, task, self.known.network.num_outputs, guessed=guessed)

    def gains_from_channels_last(self, source: Source, *, trains_all: bool = False) -> bool:
        """Return whether channels_last weights are faster and no custom step depends on the current format."""
        samples = len(source) if source.indexed else None
        network, device = self.known.network, self.precision.device
        return not self.custom and network.gains_from_channels_last(device, samples, trains_all=trains_all)

    @property
    def _custom_loss(self) -> bool:
        return bool({TRAINING, VALIDATION} & {*self.custom})

    def _meaning(self, *, training: bool = False) -> Meaning:
        return self.known.meaning(self.settings.loss, training=training, custom=self._custom_loss)

    def _with(self, known: Known) -> Trial:
        return replace(self, known=known)
