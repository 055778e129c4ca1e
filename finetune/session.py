"""What a `FineTuner` knows and prepares: the model and its head, the data, the plan, the checkpoint.

The verbs of `finetune.tuner` are built from these pieces.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune.checkpoint import contents, file
from finetune.data.audit import audit, not_accepted
from finetune.data.base import Loader, Source, Stream, split_batch
from finetune.data.batches import Batches
from finetune.data.device import map_tensors
from finetune.data.inputs import PICTURE
from finetune.data.randomness import seeded
from finetune.data.transforms import Augmentation, Preprocessing, standard_augmentation
from finetune.errors import ArgumentError, CheckpointError, DataError, FineTuneError, HeadError, nearest
from finetune.features.cache import Cache
from finetune.intake import take_in
from finetune.model import adapters, compiling, families, freezing, head_search, heads, layout
from finetune.model.calling import call
from finetune.model.examples import samples_of_size
from finetune.model.recorder import reading_order
from finetune.model.stages import Stage, stages
from finetune.model.weights import load_state
from finetune.model.wrapping import is_synchronized
from finetune.planning import add_lora, phases_of, starting_weights
from finetune.strategies import Strategy
from finetune.training.callbacks.base import Callback
from finetune.training.history import History
from finetune.training.optim import build_optimizer
from finetune.training.phases import Phase
from finetune.training.precision import Precision, resolve_device, warn_of_half_weights
from finetune.training.preparation import Prepared, open_training, some_targets
from finetune.training.progress import describe_phase
from finetune.training.rates import Rate, default_rate, rates
from finetune.training.schedules import Schedule
from finetune.training.settings import Settings
from finetune.training.state import Run
from finetune.training.steps import Steps
from finetune.training.tasks import BINARY, CLASSIFICATION, Task, infer_task, task_of_kind

# A pass over fewer samples is done before another layout of the weights has paid for itself.
_FEW_SAMPLES = 32


class Session(Steps):
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
        self._replacements: list[contents.Replacement] = taken.changes  # what loading has to repeat
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
        self._scope = adapters.scope(self.inner)
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

    def _takes(self) -> str | None:
        """Return the kind of raw item that the preprocessing takes."""
        return None if self.preprocessing is None else self.preprocessing.kind

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

    def _head_names(self) -> tuple[str, ...]:
        """Return the heads' full names, found once: those that were replaced, or those of the model."""
        if not self._heads:
            self._heads = head_search.find_head(self.inner)
        return self._heads

    def _everything(self) -> list[str] | None:
        """Return the names of all that may train where that is not all there is; else None."""
        return None if self._scope is None else sorted(self._scope)

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

    def _stages(self) -> list[Stage]:
        """Return the stages from the stem to the head, in the order of the forward pass where that runs."""
        if self._order is None:
            self._order = self._reading_order()
        return stages(self.inner, self._known_heads(), self._order)

    def _reading_order(self) -> list[str]:
        """Return the parameters as the forward pass reads them; none where it does not run, or is not needed."""
        model = self.inner
        if families.depth(model) is not None:
            return []
        example = head_search.accepted_example(model, self._seen)
        with head_search.undisturbed(model), suppress(Exception):
            freezing.eval_mode(model)
            return reading_order(model, example)
        return []

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

    def _open(self, train: Any, val: Any) -> Prepared:
        """Open training and validation data; classes that the model knows keep its own order."""
        rules = self.classes if self._classes_rule else None
        data = open_training(train, val, rules, self.settings.seed, self._takes())
        found = data.train.classes
        if rules is None and self.classes and found and found != self.classes and {*found} <= {*self.classes}:
            data = open_training(train, val, self.classes, self.settings.seed, self._takes())
        return data

    def _tell_model(self, classes: Sequence[str] | None, task: Task) -> None:
        """Let the model itself say what it is trained for, where its family has a place for that."""
        named = classes if classes is not None and len(classes) == self._num_outputs() else None
        heads.tell_task(adapters.base(self.inner), task.kind, named)

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
        with seeded("look"), head_search.undisturbed(self.inner), self.precision.autocast():
            freezing.eval_mode(self.inner)
            try:
                with torch.no_grad():
                    output = call(self.inner, example)
            except Exception as error:
                raise not_accepted(type(self.inner).__name__, example, error) from error
            if self._may_turn(source):
                self._turns = layout.same_in_channels_last(self.inner, example, output, trains=trains)
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

    def _may_turn(self, source: Source) -> bool:
        """Tell whether another layout of the weights would pay, and no step of the user's own reads the present."""
        few = not isinstance(source, (Loader, Stream)) and len(source) < _FEW_SAMPLES
        plain = self.model is self.inner and not self._own_steps()
        return plain and not few and layout.gains_from_channels_last(self.inner, self.device)

    def _laid_out(self, source: Source) -> AbstractContextManager[None]:
        """Return the context for a pass over the data."""
        return layout.channels_last(self.inner) if self._turns and self._may_turn(source) else nullcontext()

    def _compiled(self) -> AbstractContextManager[None]:
        """Return the context for calls of the model that are not those of `fit`."""
        backend = self.settings.backend
        return nullcontext() if backend is None else compiling.compiled(self.inner, backend)

    def _own_steps(self) -> bool:
        """Tell whether a step is of the user's own making, and may do more than to hand its inputs to the model."""
        names = ("training_step", "validation_step", "predict_step")
        return any(getattr(type(self), name) is not getattr(Steps, name) for name in names)

    def _example(self, source: Source) -> Any:
        """Return the inputs of two samples, ready for the model; None where there are none."""
        few = source if isinstance(source, (Loader, Stream)) else source.subset(range(min(2, len(source))))
        try:
            batch = next(iter(self._batches(few, batch_size=2).epoch(0)), None)
        except DataError:  # the audit says it, with all the others of its kind
            return None
        return map_tensors(lambda tensor: tensor[:2], split_batch(batch)[0], None)

    def _example_of_size(self, size: Sequence[int] | None) -> Any:
        """Return two samples of `size`; without it, of the data, or that the model accepts; None if none is known."""
        if size is not None:
            return samples_of_size(self.inner, tuple(size))
        if self._seen is not None:
            return self._seen
        if isinstance(self.preprocessing, Preprocessing):
            pictures = samples_of_size(self.inner, (self.preprocessing.channels, *self.preprocessing.crop_size))
            if head_search.accepted_example(self.inner, pictures) is not None:
                return pictures
        return head_search.accepted_example(self.inner)

    def _num_outputs(self) -> int | None:
        names = self._known_heads()
        try:
            return heads.num_outputs(self.inner.get_submodule(names[0])) if names else None
        except HeadError:  # a head of the user's own, without a layer that tells
            return None

    def _num_heads(self) -> int:
        return len(self._known_heads())

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
        augment: bool | Augmentation = False,
        keep: bool = False,
        views: int | None = None,
    ) -> Batches:
        preprocessing = self.preprocessing
        if source.kind == PICTURE and preprocessing is None:
            preprocessing = self.preprocessing = Preprocessing()
        chosen: Augmentation | None = None if isinstance(augment, bool) else augment
        stand_ins: tuple[Augmentation, ...] = ()
        if augment is True and source.kind == PICTURE and isinstance(preprocessing, Preprocessing):
            chosen = standard = standard_augmentation(preprocessing)
            stand_ins = standard.stand_ins if views is None else ()
        classes = self._num_outputs() if self._task and self._task.kind == CLASSIFICATION else None
        return Batches(
            source,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=self.settings.seed,
            device=self.device,
            preprocessing=preprocessing,
            augment=chosen,
            views=views,
            stand_ins=stand_ins,
            num_classes=classes,
            keep=keep,
        )

    def _cache(self, cache: str | Path | bool, callbacks: Sequence[Callback]) -> Cache | None:
        """Return what computes the frozen prefix once, None if it is not to be.

        Raises:
            ArgumentError: it is no kind of cache and no folder, there or to be made.
        """
        where = self._cache_place(cache)
        if where is None or self.model is not self.inner:  # a wrapper may compile or divide the forward pass
            return None
        if compiling.is_compiled(self.inner):  # by the user
            return None
        changed = any(c.changes_inputs and type(c).change_batch is not Callback.change_batch for c in callbacks)
        return Cache(where, self._stages, self.precision.autocast, changed=changed)

    def _cache_place(self, cache: str | Path | bool) -> str | Path | None:
        kinds = ("auto", "memory", "disk")
        expected = f"Expected cache to be 'auto', 'memory', 'disk', a folder or False, but got {cache!r}."
        if cache is False or cache in kinds:
            return None if cache is False else cache
        if not isinstance(cache, (str, os.PathLike)) or not str(cache):
            raise ArgumentError(expected)
        folder = Path(cache).expanduser()
        meant = nearest(str(cache), kinds) if isinstance(cache, str) and not folder.exists() else ""
        around = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        if meant or not around.is_dir():
            raise ArgumentError(f"{expected}{meant or f' {str(around)!r} is not a folder.'}")
        return folder

    def _plan(
        self,
        strategy: str | Strategy | Sequence[Phase] | None,
        epochs: int,
        lr: Rate | None,
        schedule: str | Schedule,
    ) -> tuple[list[Phase], list[str]]:
        """Return the phases, each rehearsed, its patterns, rates and optimizer tried and undone, and a line on each."""
        lines = []
        phases = phases_of(strategy, self._stages_in_scope, epochs, lr, schedule)
        if self._scope is not None:
            phases = [self._within_scope(phase) for phase in phases]
        for phase in phases:
            if phase.lora_rank is not None:
                self._add_lora(phase.lora_rank)
        for phase in phases:
            if phase.start_from is not None:
                self._starting_weights(phase.start_from)  # what is wrong with them is said before any work
        replaced = self._scope is not None or any("head" in replacement for replacement in self._replacements)
        head = list(self.head.parameters()) if replaced else []
        head_trains = not head
        with freezing.freeze_state_restored(self.inner):
            for phase in phases:
                if phase.train is not None:
                    freezing.train_only(self.inner, phase.train)
                line = describe_phase(self.inner, phase, self._build_optimizer(phase))
                lines.append(f"{line}, {self.precision.name} on {self.device}")
                self._note_trainable()
                head_trains = head_trains or any(parameter.requires_grad for parameter in head)
        warn_of_half_weights(freezing.trainable(self.inner).values(), stacklevel=4)
        if not head_trains:
            name = self._head_names()[0]
            warnings.warn(
                f"The head {name!r} is frozen, so it stays random if it is new. Train it with unfreeze({name!r}), or "
                f"with PEFT name it in modules_to_save.",
                stacklevel=3,
            )
        return phases, lines

    def _within_scope(self, phase: Phase) -> Phase:
        """Return the phase with "everything", or adapters, being those that PEFT has given the model already."""
        everything = phase.train == "*" or phase.lora_rank is not None
        return replace(phase, train=self._everything(), lora_rank=None) if everything else phase

    def _starting_weights(self, start_from: str | Path) -> Mapping[str, torch.Tensor]:
        return starting_weights(self.inner, start_from, self._source, self.settings.seed)

    def _load_start(self, start_from: str | Path) -> None:
        load_state(self.inner, self._starting_weights(start_from), strict=False)

    def _add_lora(self, rank: int) -> None:
        added = add_lora(self.inner, self._head_names(), rank, self._replacements, self.settings.seed)
        if added is not None:
            self._replacements = [*self._replacements, added[0]]
            self._undo.append(added[1])
            self._order = None  # parameters within the adapted layers have other names now

    def _note_trainable(self) -> None:
        """Remember what training changes, and so a checkpoint has to hold.

        Raises:
            ArgumentError: processes that train together would not share the gradients of it.
        """
        training = freezing.trainable(self.inner)
        if self._scope is not None:
            self._scope |= training.keys()
        if self._synchronized is not None and {*map(id, training.values())} != {*map(id, self._synchronized.values())}:
            raise ArgumentError(
                "DistributedDataParallel shares the gradients of what was trainable when it was made, and now other "
                "parameters are. Replace the head and freeze first, and wrap the model then."
            )

    def _build_optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        optimizer, weight_decay = self.settings.optimizer, self.settings.weight_decay
        lr = default_rate(optimizer) if phase.lr is None else phase.lr
        in_order = self._stages()
        made = build_optimizer(self.inner, in_order, optimizer, lr, weight_decay)
        self._groups = rates(self.inner, in_order, lr)
        return made

    def _save(self, path: str | Path, *, training_state: bool = True) -> Path:
        run = self._run if training_state else None
        content = {
            "model": contents.describe_model(self.inner, self._source, self._scope),
            "heads": self._heads,
            "replacements": self._replacements,
            "classes": self.classes,
            "classes_rule": self._classes_rule,
            "preprocessing": self.preprocessing and self.preprocessing.to_dict(),
            "settings": self.settings.plain(),
            "task": self._task and self._task.kind,
            "history": list(self.history),
            "training": run and run.state_dict(),
        }
        file.write(Path(path), content)
        return Path(path)

    def _recall(self, content: Mapping[str, Any]) -> None:
        """Take from a checkpoint what is not in the model itself."""
        self._heads = content["heads"] and tuple(content["heads"])
        if self._scope is not None:
            self._scope |= content["model"]["weights"].keys() & dict(self.inner.named_parameters()).keys()
        self.classes = content["classes"] and tuple(content["classes"])
        self._classes_rule = content["classes_rule"]
        self.history = History(content["history"])
        self._task = content["task"] and task_of_kind(self.settings.loss, content["task"])

    def _resume(self, run: Run, path: Path, content: Mapping[str, Any]) -> None:
        try:
            run.load_state_dict(content["training"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is of a run with other metrics or callbacks than this one: {error}. Give fit and FineTuner "
                f"the arguments of the run that wrote it."
            ) from error
        contents.load_into(path, self.inner, content)
        self._recall(content)
