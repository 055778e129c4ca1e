"""What is known of a model: its heads, its stages, how many outputs it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.checkpoint.schema import ModelChange
from finetune.data.preprocessing.pictures import Preprocessing
from finetune.errors import HeadError
from finetune.model import freezing
from finetune.model.families import family_of
from finetune.model.inspection import probing
from finetune.model.inspection.forward_graph import reading_order
from finetune.model.inspection.probing import samples_of_size
from finetune.model.stages import Stage, stages
from finetune.model.surgery import head_search, heads, peft
from finetune.model.wrapping import is_synchronized
from finetune.pretrained import take_in
from finetune.training.history import History
from finetune.training.precision import Precision, resolve_device
from finetune.training.run import Run
from finetune.training.settings import Settings
from finetune.training.steps import Steps
from finetune.training.tasks import Task


class Anatomy(Steps):
    """A model, with what is known of it; the attributes and arguments are `FineTuner`'s."""

    def __init__(
        self,
        model: nn.Module | str,
        weights: str | Path | None,
        in_channels: int | None,
        preprocessing: Any,
        settings: Settings,
        device: str | torch.device,
    ) -> None:
        self.settings = settings
        self.device = resolve_device(device)
        self.precision = Precision(settings.precision, self.device)
        self.history = History()
        taken = take_in(model, weights, in_channels, preprocessing, settings.seed)
        self.model = taken.model.to(self.device)
        self.classes = taken.classes
        self.preprocessing = taken.preprocessing
        self._source = taken.source
        self._replacements: list[ModelChange] = taken.changes  # what loading has to repeat
        self._heads: tuple[str, ...] | None = None
        self._seen: Any = None  # two samples of the data, as the model takes them
        self._looked = False  # the model was tried on data since its head was replaced
        self._turns: bool | None = None  # whether the weights may be laid out otherwise for a pass; None if not tried
        self._undo: list[Callable[[], None]] = []  # what takes back changes to the model, should planning fail
        self._order: list[str] | None = None  # the parameters as the forward pass reads them
        self._run: Run | None = None
        self._groups: dict[str, tuple[str, float]] | None = None  # as planned last, by parameter
        self._classes_rule = False  # class names from the weights give way to those of training data
        freezing.hold_frozen_in_eval(self.inner)
        self._scope = peft.scope(self.inner)
        self._synchronized = freezing.trainable(self.inner) if is_synchronized(self.model) else None

    @property
    def head(self) -> nn.Module:
        """The model's main head.

        Raises:
            HeadError: which layer it is is not clear.
        """
        return self.inner.get_submodule(self._head_names()[0])

    @property
    def task(self) -> Task | None:
        """The kind of answer the model is trained for, once it is known; `task.probabilities(outputs)`."""
        return self._task

    def _everything(self) -> list[str] | None:
        """Return the names of all that may train where that is not all there is; else None."""
        return None if self._scope is None else sorted(self._scope)

    def _head_names(self) -> tuple[str, ...]:
        """Return the heads' full names, found once: those that were replaced, or those of the model."""
        if not self._heads:
            self._heads = head_search.find_head(self.inner)
        return self._heads

    def _known_heads(self, example: Any = None) -> tuple[str, ...]:
        """Return the heads' names, none where they are not clear: what only reports does without.

        An example of the data shows what the model does, where its family does not say it.
        """
        if not self._heads and (example is not None or self._heads is None):
            try:
                self._heads = head_search.find_head(self.inner, example)
            except HeadError:
                self._heads = ()  # looking again would run the model again
        return self._heads or ()

    def _num_outputs(self) -> int | None:
        names = self._known_heads()
        try:
            return heads.num_outputs(self.inner.get_submodule(names[0])) if names else None
        except HeadError:  # a head of the user's own, without a layer that tells
            return None

    def _num_heads(self) -> int:
        return len(self._known_heads())

    def _stages(self) -> list[Stage]:
        """Return the stages from the stem to the head, in the order of the forward pass where that runs."""
        if self._order is None:
            self._order = self._reading_order()
        return stages(self.inner, self._known_heads(), self._order)

    def _stages_in_scope(self) -> list[Stage]:
        """Return the stages with what of them "everything" means; the head may always train.

        Raises:
            HeadError: which layer is the head is not clear.
        """
        self._head_names()
        *below, top = self._stages()
        if self._scope is None:
            return [*below, top]
        kept = [replace(s, parameters=tuple(name for name in s.parameters if name in self._scope)) for s in below]
        return [*(stage for stage in kept if stage.parameters), top]

    def _reading_order(self) -> list[str]:
        """Return the parameters as the forward pass reads them; none where it does not run, or is not needed."""
        model = self.inner
        if family_of(model).depth(model) is not None:
            return []
        example = probing.accepted_example(model, self._seen)
        with probing.undisturbed(model), suppress(Exception):
            freezing.eval_mode(model)
            return reading_order(model, example)
        return []

    def _example_of_size(self, size: Sequence[int] | None) -> Any:
        """Return two samples of `size`; without it, of the data, or that the model accepts; None if none is known."""
        if size is not None:
            return samples_of_size(self.inner, tuple(size))
        if self._seen is not None:
            return self._seen
        if isinstance(self.preprocessing, Preprocessing):
            pictures = samples_of_size(self.inner, (self.preprocessing.channels, *self.preprocessing.crop_size))
            if probing.accepted_example(self.inner, pictures) is not None:
                return pictures
        return probing.accepted_example(self.inner)
