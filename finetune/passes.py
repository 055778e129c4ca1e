"""`Passes`: the model over data outside of training, for outputs, predictions, features and heatmaps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from finetune.advice.features import STAGES_UP_TO, Features, collect
from finetune.advice.memo import remembered
from finetune.data.batch import target_of
from finetune.data.preprocessing.tta import View, over_views
from finetune.data.sources.base import Source
from finetune.data.splitting import drawn
from finetune.data.targets import CLASSIFICATION, TargetRule
from finetune.data_check.samples.observed import Observed, facts_of_batch, without_facts
from finetune.errors import ArgumentError, FineTuneError
from finetune.interpret.heatmaps import Heatmaps
from finetune.interpret.map_evidence import map_evidence
from finetune.interpret.predictions import Predictions
from finetune.model import compiling
from finetune.model.channels_last import channels_last
from finetune.nested import as_plain
from finetune.training import loop
from finetune.training.tasks import Task
from finetune.trial import PREDICTION, Trial


@dataclass(frozen=True)
class Passes:
    """A model over data outside of `fit`. Nothing is learned, and the model is as before afterwards.

    Attributes:
        trial: The model and its settings.
        step: Function from a batch to outputs, `FineTuner.predict_step`.
    """

    trial: Trial
    step: Callable[[Any], Any]

    def outputs(
        self, source: Source, batch_size: int, tta: bool | Sequence[View] = False, rule: TargetRule | None = None
    ) -> tuple[Tensor, list[Any]]:
        """Return the outputs for a source in its order, and the targets of its batches, on the CPU.

        Args:
            source: The data.
            batch_size: Samples per batch.
            tta: Test-time augmentation, as in `FineTuner.predict`.
            rule: Targets that the task accepts; None to check no targets.

        Raises:
            DataError: If a sample cannot be used.
            ArgumentError: If the step returns no tensor.
        """
        pipeline = self.trial.pipeline
        audited = pipeline.audited(source, "evaluation" if rule else "prediction", rule=rule)
        batches = pipeline.batches(audited, batch_size, rule=rule, world=self.trial.world, ordered=True)
        step, found = over_views(self.step, tta), []
        with self.over(source):
            for batch, output in loop.outputs(step, self._module, batches, self.trial.precision, "Predicting"):
                if not isinstance(plain := as_plain(output), Tensor):
                    raise ArgumentError(
                        f"Expected predict_step to return a tensor [N, ...], but got a {type(plain).__name__}."
                    )
                found.append((torch.atleast_1d(plain).float().cpu(), as_plain(target_of(batch))))
        found = self.trial.world.interleaved(found)
        return torch.cat([output for output, _ in found]), [targets for _, targets in found]

    def predictions(self, source: Source, batch_size: int, tta: bool | Sequence[View] = False) -> Predictions:
        """Return the predictions for a source without targets."""
        outputs, _ = self.outputs(source, batch_size, tta)
        known = self.trial.known
        return Predictions(outputs, self.trial.answered_task(), source, known.classes, None, known.calibration)

    def labeled_predictions(self, source: Source, task: Task, batch_size: int) -> Predictions:
        """Return the predictions for a source with targets."""
        outputs, targets = self.outputs(source, batch_size, rule=self.trial.rule)
        found = torch.cat([torch.as_tensor(target).cpu() for target in targets])
        known = self.trial.known
        return Predictions(outputs, task, source, known.classes or source.classes, found, known.calibration)

    def heatmaps(self, source: Source, of: Any, layer: str | None, batch_size: int) -> Heatmaps:
        """Return the evidence for answers. See `FineTuner.heatmaps` for `of` and `layer`."""
        pipeline, known = self.trial.pipeline, self.trial.known
        batches = pipeline.batches(pipeline.audited(source, "prediction"), batch_size)
        task = self.trial.answered_task()
        task = replace(task, kind=task.kind or CLASSIFICATION)  # of unknown outputs, the largest is the answer

        def judged(outputs: Tensor) -> Predictions:
            return Predictions(outputs, task, source, known.classes or source.classes, None, known.calibration)

        with self.over(source), compiling.run_eagerly(known.network.wrapped):
            return map_evidence(self._module, self.step, batches, judged, self.trial.precision, of=of, layer=layer)

    def features(self, source: Source, samples: int, batch_size: int, *, observed: bool = False) -> Features:
        """Return the inputs of every stage and of the head, for at most `samples` samples, stratified by class.

        If `observed`, an unreadable sample is no error, and the features have facts of the raw items.
        """
        part = drawn(source, samples, self.trial.settings.seed)
        network, precision = self.trial.known.network, self.trial.precision
        head, modules = network.required_heads()[0], dict(self._module.named_modules())
        layers = [stage.name for stage in network.stages()[:-1] if stage.name and stage.name in modules]
        layers = layers if not observed or len(part) <= STAGES_UP_TO else []
        pipeline = self.trial.pipeline

        def computed() -> Features:
            read = Observed(part, pipeline.preprocessing) if observed else pipeline.audited(part, "training")
            step = without_facts(self.step) if observed else self.step
            with self.over(part):
                passes = loop.outputs(step, self._module, pipeline.batches(read, batch_size), precision, "Measuring")
                facts = facts_of_batch if observed else None
                return collect(self._module, layers, head, passes, samples, facts=facts)

        settings = None if PREDICTION in self.trial.custom else (head, precision.name)
        return remembered(computed, self._module, pipeline.preprocessing, part, layers, settings, facts=observed)

    @contextmanager
    def over(self, source: Source) -> Iterator[None]:
        """Enter the context for passes over a source: memory format, compilation, clear errors.

        If the model fails, it is tried on the data again to explain the failure. A trial beforehand would cost a
        second forward pass in every call.
        """
        backend = self.trial.settings.backend
        compilation = nullcontext() if backend is None else compiling.compiled(self._module, backend)
        try:
            with self.memory_format(source), compilation:
                yield
        except FineTuneError:
            raise
        except Exception:
            self.trial.on(source)
            raise

    def memory_format(self, source: Source, *, trains_all: bool = False) -> AbstractContextManager[None]:
        """Return a context with channels_last weights if they are faster and give the same results."""
        turned = self.trial.known.channels_last
        turned = turned and self.trial.gains_from_channels_last(source, trains_all=trains_all)
        return channels_last(self._module) if turned else nullcontext()

    @property
    def _module(self) -> nn.Module:
        return self.trial.known.network.module
