"""The model and the user's data brought together: opened, tried on two samples, audited, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from finetune.advice.features import Features, collect
from finetune.data.audit import audit, not_accepted
from finetune.data.loading.batches import Batches
from finetune.data.prepare import Prepared, open_training, some_targets
from finetune.data.preprocessing.augmentations import Augmentation, chosen_augmentation
from finetune.data.preprocessing.base import PICTURE
from finetune.data.preprocessing.pictures import Preprocessing
from finetune.data.randomness import seeded
from finetune.data.sources.base import Loader, Source, Stream, split_batch
from finetune.data.splitting import split
from finetune.errors import DataError, FineTuneError
from finetune.model import channels_last, compiling, freezing
from finetune.model.inspection import probing
from finetune.model.outputs import call
from finetune.model.surgery import head_search, heads, peft
from finetune.nested import map_tensors
from finetune.session.anatomy import Anatomy
from finetune.training import loop
from finetune.training.steps import Steps
from finetune.training.tasks import BINARY, CLASSIFICATION, Task, infer_task

# A pass over fewer samples is done before another layout of the weights has paid for itself.
_FEW_SAMPLES = 32


class Trial(Anatomy):
    """A model that data can be tried on."""

    def _takes(self) -> str | None:
        """Return the kind of raw item that the preprocessing takes."""
        return None if self.preprocessing is None else self.preprocessing.kind

    def _open(self, train: Any, val: Any) -> Prepared:
        """Open training and validation data; classes that the model knows keep its own order."""
        rules = self.classes if self._classes_rule else None
        data = open_training(train, val, rules, self.settings.seed, self._takes())
        found = data.train.classes
        if rules is None and self.classes and found and found != self.classes and {*found} <= {*self.classes}:
            data = open_training(train, val, self.classes, self.settings.seed, self._takes())
        return data

    def _look_at(self, source: Source, *, trains: bool = False) -> None:
        """Try the model on two samples: whether it accepts them, where its head is, and how it is best laid out.

        A step of the user's own may make something else of its batch, so only the library's is tried.

        Raises:
            DataError: the model does not accept them.
            HeadError: it gives several results, and which are the logits is not clear.
        """
        example = self._seen = self._example(source)
        self._order = self._order or None  # an example may run where no guess did
        self._known_heads(example)
        self._turns = None
        if example is None or type(self).training_step is not Steps.training_step:
            self._looked = True
            return
        with seeded("look"), probing.undisturbed(self.inner), self.precision.autocast():
            freezing.eval_mode(self.inner)
            try:
                with torch.no_grad():
                    output = call(self.inner, example)
            except Exception as error:
                raise not_accepted(type(self.inner).__name__, example, error) from error
            if self._may_turn(source):
                self._turns = channels_last.same_in_channels_last(self.inner, example, output, trains=trains)
        head_search.check_results(self.inner, output, self._num_outputs() if self._known_heads() else 0)
        self._looked = True

    def _look_at_first(self, source: Source) -> None:
        """Try the model on two samples, the first time; `_explained` says later what is wrong with other data."""
        if not self._looked or (self._turns is None and self._may_turn(source)):
            self._look_at(source)

    @contextmanager
    def _explained(self, source: Source) -> Iterator[None]:
        """Where the model fails, say so of the data if it accepts none of it.

        To try it beforehand would cost a second forward pass in every call.
        """
        try:
            yield
        except FineTuneError:
            raise
        except Exception:
            self._look_at(source)
            raise

    def _example(self, source: Source) -> Any:
        """Return the inputs of two samples, ready for the model; None where there are none."""
        few = source if isinstance(source, (Loader, Stream)) else source.subset(range(min(2, len(source))))
        try:
            batch = next(iter(self._batches(few, batch_size=2).epoch(0)), None)
        except DataError:  # the audit says it, with all the others of its kind
            return None
        return map_tensors(lambda tensor: tensor[:2], split_batch(batch)[0], None)

    def _may_turn(self, source: Source, *, trains_all: bool = False) -> bool:
        """Tell whether another layout of the weights would pay, and no step of the user's own reads the present."""
        few = not isinstance(source, (Loader, Stream)) and len(source) < _FEW_SAMPLES
        plain = self.model is self.inner and not self._own_steps()
        gains = channels_last.gains_from_channels_last(self.inner, self.device, trains_all=trains_all)
        return plain and not few and gains

    def _laid_out(self, source: Source, *, trains_all: bool = False) -> AbstractContextManager[None]:
        """Return the context for passes over the data, in which nothing is frozen if `trains_all`."""
        turned = self._turns and self._may_turn(source, trains_all=trains_all)
        return channels_last.channels_last(self.inner) if turned else nullcontext()

    def _compiled(self) -> AbstractContextManager[None]:
        """Return the context for calls of the model that are not those of `fit`."""
        backend = self.settings.backend
        return nullcontext() if backend is None else compiling.compiled(self.inner, backend)

    def _own_steps(self) -> bool:
        """Tell whether a step is of the user's own making, and may do more than to hand its inputs to the model."""
        names = ("training_step", "validation_step", "predict_step")
        return any(getattr(type(self), name) is not getattr(Steps, name) for name in names)

    def _infer_task(self, source: Source) -> Task:
        return infer_task(self.settings.loss, some_targets(source), self._num_outputs())

    def _audited(self, source: Source, task: Task, role: str, skip_corrupt: bool = False) -> Source:
        """Check data against what the model answers."""
        outputs = {CLASSIFICATION: self._num_outputs(), BINARY: 2}.get(task.kind or "")
        return audit(
            source, num_classes=outputs, role=role, skip_corrupt=skip_corrupt, preprocessing=self.preprocessing
        )

    def _batches(
        self,
        source: Source,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool | str | Augmentation = False,
        keep: bool = False,
        views: int | None = None,
    ) -> Batches:
        preprocessing = self.preprocessing
        if source.kind == PICTURE and preprocessing is None:
            preprocessing = self.preprocessing = Preprocessing()
        chosen = chosen_augmentation(augment, preprocessing, source.kind, views=views)
        classes = self._num_outputs() if self._task and self._task.kind == CLASSIFICATION else None
        return Batches(
            source,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.settings.seed,
            device=self.device,
            preprocessing=preprocessing,
            augment=chosen.augment,
            views=views,
            stand_ins=chosen.stand_ins,
            num_classes=classes,
            keep=keep,
        )

    def _features(self, source: Source, samples: int, batch_size: int) -> Features:
        """Return what each stage, and the head, is given of at most so many samples, of each class its share."""
        whole = isinstance(source, (Loader, Stream)) or len(source) <= samples
        part = source if whole else split(source, samples / len(source), self.settings.seed)[1]
        modules = dict(self.inner.named_modules())
        layers = [stage.name for stage in self._stages()[:-1] if stage.name and stage.name in modules]
        batches = self._batches(audit(part, role="training", preprocessing=self.preprocessing), batch_size)
        with self._explained(part), self._laid_out(part), self._compiled():
            passes = loop.outputs(self.predict_step, self.inner, batches, self.precision)
            return collect(self.inner, layers, self._head_names()[0], passes, samples)

    def _tell_model(self, classes: Sequence[str] | None, task: Task) -> None:
        """Let the model itself say what it is trained for, where its family has a place for that."""
        named = classes if classes is not None and len(classes) == self._num_outputs() else None
        heads.tell_task(peft.base(self.inner), task.kind, named)
