"""`Known`: the state that verbs learn about a model and its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from finetune.checkpoint.record import record_model
from finetune.checkpoint.schema import Checkpoint, fields_expected
from finetune.data.preprocessing.base import InputPreprocessing
from finetune.data.preprocessing.presets import preprocessing_of
from finetune.data.preprocessing.provenance import READY, Provenance, chosen_preprocessing
from finetune.data.preprocessing.text import TextPreprocessing
from finetune.data.sources.base import Source
from finetune.data.sources.labels import Meaning
from finetune.data.targets import TargetRule
from finetune.display.numbers import fixed
from finetune.errors import ArgumentError
from finetune.export.samples import synthetic
from finetune.interpret.calibration import Calibration
from finetune.model.network import Network
from finetune.pretrained import assumed_preprocessing
from finetune.training.history import History
from finetune.training.numerics.finite import check_weights_to_save
from finetune.training.numerics.precision import Precision
from finetune.training.progress.overview import describe_head, describe_model, listed
from finetune.training.settings import Settings
from finetune.training.tasks import Loss, Task, has_several, numbers_are_targets, task_of_kind


def recalled_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return and validate the keyword arguments of `FineTuner` in a checkpoint.

    Raises:
        CheckpointError: If it holds others, or one is invalid.

    Example:
        >>> from torch import nn
        >>> recalled_arguments(Known(Network.of(nn.Linear(4, 3))).to_checkpoint(Settings()))["optimizer"]
        'adamw'
    """
    with fields_expected(checkpoint.path):
        settings = Settings(**checkpoint.settings)
        Precision(settings.precision, torch.device("cpu"))
        Provenance(**checkpoint.inputs)
        if checkpoint.task is not None:
            task_of_kind(settings.loss, checkpoint.task)
        _calibration(checkpoint)
        preprocessing = preprocessing_of(checkpoint.preprocessing)
        if isinstance(preprocessing, TextPreprocessing):
            _ = preprocessing.pad_token_id  # reads the tokenizer's files
    return {**checkpoint.settings, "preprocessing": preprocessing}


@dataclass(frozen=True)
class Known:
    """The state of a `FineTuner` between two verbs. It is immutable, so a failed verb restores the previous one.

    Attributes:
        network: The module with its heads, stages and changes.
        preprocessing: Preprocessing from images, text or audio to model inputs; None if inputs need none.
        inputs: Where the preprocessing comes from, and whether training went through it.
        classes: Class names by output, or None.
        classes_from_data: Whether the class names, or their absence, come from training data, which replaces those of
            the weights.
        task: The task with its loss, or None before any targets have been seen.
        calibration: Temperature and thresholds of the probabilities, which new weights do away with.
        history: One row per epoch.
        rates: Group name and learning rate by parameter name in the latest plan; None before the first.
        tried: Whether the model has been tried on data since its head was replaced.
        random: Whether the weights were random at first, so that nothing was pretrained.
        data: Description of the data of the latest training, for the card.
        channels_last: Whether the model gives the same results with channels_last weights; None if not tried.
        file: Checkpoint that was last saved or loaded, None once the answers of the model have changed.

    Example:
        >>> from torch import nn
        >>> known = Known(Network.of(nn.Linear(4, 3)))
        >>> known.to_checkpoint(Settings()).model.class_name
        'Linear'
    """

    network: Network
    preprocessing: InputPreprocessing | None = None
    classes: tuple[str, ...] | None = None
    classes_from_data: bool = False
    task: Task | None = None
    calibration: Calibration = field(default_factory=Calibration)
    history: History = field(default_factory=History)
    rates: Mapping[str, tuple[str, float]] | None = None
    tried: bool = False
    random: bool = False
    channels_last: bool | None = None
    inputs: Provenance = field(default_factory=Provenance)
    file: Path | None = None
    data: Mapping[str, Any] | None = None

    @property
    def rule(self) -> TargetRule:
        """Targets that the task accepts."""
        return TargetRule() if self.task is None else self.task.rule(self.network.num_outputs)

    def meaning(self, loss: str | Loss | None, *, training: bool = False, custom: bool = False) -> Meaning:
        """Return the meaning of labels in new data.

        Args:
            loss: Loss of the tuner's settings.
            training: Whether the model is trained on the data, so that classes which come from pretrained weights or
                from nowhere are not binding.
            custom: Whether a subclass computes the loss in a step of its own.
        """
        if training and not self.classes_from_data:
            return Meaning(numbers=numbers_are_targets(loss, None, self.network.num_outputs, custom=custom))
        if self.classes is None and (training or self.history):
            return Meaning(numbers=True, names=False)
        outputs = self.network.num_outputs
        several = has_several(loss, self.task, outputs, len(self.classes or ()))
        if self.history and not self.classes_from_data:  # trained on numbers; the names of the outputs came otherwise
            return Meaning(self.classes, numbers=True, several=several)
        return Meaning(self.classes, numbers_are_targets(loss, self.task, outputs, custom=custom), several=several)

    def describe(self) -> Iterator[str]:
        """Yield a description of the state: model, head, task, classes, epochs and calibration."""
        yield describe_model(self.network)
        if self.network.found_heads:
            yield f"head {describe_head(self.network)}"
        if self.task is not None:
            yield f"{self.task.kind or 'custom'} task"
        if self.classes is not None:
            yield f"classes {', '.join(listed(self.classes))}"
        if self.history:
            count = len(self.history)
            yield f"{count:,} epoch{'s' * (count != 1)} trained"
        if self.calibration != Calibration():
            yield f"calibrated with temperature {fixed(self.calibration.temperature)}"
        if self.calibration.thresholds is not None:
            yield f"thresholds {', '.join(listed(self.calibration.named_thresholds(self.classes)))}"

    def opened(self, kind: str | None) -> Known:
        """Return the state with a preprocessing for raw items of a kind, or for ready inputs if it is None.

        Raises:
            DataError: If the model was trained on ready inputs, so that no preprocessing is known.
        """
        preprocessing, inputs = chosen_preprocessing(
            kind, self.preprocessing, self.inputs, lambda: assumed_preprocessing(self.network.module)
        )
        return replace(self, preprocessing=preprocessing, inputs=inputs)

    def opened_training(self, train: Source, val: Source | None) -> Known:
        """Return the state for training and validating on these sources. See `opened`.

        Raises:
            DataError: If the model was trained on ready inputs before, so that no preprocessing is known.
        """
        self.inputs.check(train.kind, self.preprocessing)
        inputs = self.inputs.after_training_on(train.kind)
        known = replace(self, inputs=inputs, preprocessing=inputs.kept(self.preprocessing)).opened(train.kind)
        known.inputs.check(None if val is None else val.kind, known.preprocessing)
        return known

    def stand_in(self) -> Any:
        """Return a few synthetic samples of the form that the model takes.

        Raises:
            ArgumentError: If no input is known that it accepts.
        """
        ready = self.inputs.trained_on == READY and self.network.example is not None
        return synthetic(None if ready else self.preprocessing, self._example)

    def _example(self) -> Any:
        example = self.network.example_of_size(None, None)
        if example is None:
            raise ArgumentError(
                f"{type(self.network.module).__name__} accepted none of the inputs tried. Pass some of its data: "
                f"verify=data."
            )
        return example

    def to_checkpoint(self, settings: Settings, training: dict[str, Any] | None = None) -> Checkpoint:
        """Return the content of a checkpoint.

        Args:
            settings: The tuner's settings.
            training: State of a run to resume; None for a checkpoint that is not resumable.

        Raises:
            NonFiniteError: If a weight is NaN, or a statistic of a norm layer is not finite.
        """
        network = self.network
        if training is None:  # otherwise the run has checked more
            check_weights_to_save(network.module)
        return Checkpoint(
            model=record_model(network.module, network.origin, network.scope),
            heads=network.found_heads or None,
            changes=network.changes,
            classes=self.classes,
            classes_from_data=self.classes_from_data,
            preprocessing=None if self.preprocessing is None else self.preprocessing.to_dict(),
            inputs=vars(self.inputs),
            settings=settings.plain(),
            objects=settings.objects(),
            task=None if self.task is None else self.task.kind,
            calibration=None if self.calibration == Calibration() else self.calibration.to_dict(),
            history=tuple(self.history),
            training=training,
            data=self.data,
        )

    def recalled(self, checkpoint: Checkpoint, settings: Settings) -> Known:
        """Return the state after the weights of `checkpoint` have been loaded into the module.

        A warning names the settings that the checkpoint does not hold, as they were objects, and nobody passed again.
        """
        settings.warn_of_lost(checkpoint.objects, checkpoint.path)
        network = self.network
        if network.scope is not None:
            saved = checkpoint.model.weights.keys() & dict(network.module.named_parameters()).keys()
            network = replace(network, scope=network.scope | saved)
        return replace(
            self,
            network=replace(network, known_heads=checkpoint.heads or ()),
            inputs=replace(self.inputs, trained_on=checkpoint.inputs["trained_on"]),
            classes=checkpoint.classes,
            classes_from_data=checkpoint.classes_from_data,
            history=History(checkpoint.history),
            data=checkpoint.data,
            calibration=_calibration(checkpoint),
            task=None if checkpoint.task is None else task_of_kind(settings.loss, checkpoint.task),
        )


def _calibration(checkpoint: Checkpoint) -> Calibration:
    return Calibration() if checkpoint.calibration is None else Calibration.from_dict(checkpoint.calibration)
