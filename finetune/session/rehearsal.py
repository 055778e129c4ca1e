"""The plan of a run, rehearsed before any work: phases, rates, optimizers, and what is cached."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from finetune.caching.cache import Cache
from finetune.checkpoint.schema import HeadReplacement
from finetune.errors import ArgumentError, nearest
from finetune.model import compiling, freezing
from finetune.model.weights import load_state
from finetune.session.strategy import add_lora, phases_of, starting_weights
from finetune.session.trial import Trial
from finetune.strategies import Strategy
from finetune.training.callbacks.base import Callback
from finetune.training.optim.optimizers import build_optimizer
from finetune.training.optim.phases import Phase
from finetune.training.optim.rates import Rate, default_rate, rates
from finetune.training.optim.schedules import Schedule
from finetune.training.precision import warn_of_half_weights
from finetune.training.progress import describe_phase


class Plan(NamedTuple):
    """What a run is to do.

    Attributes:
        lines: what is said of each phase.
        trains_all: in every phase gradients go back to the first stage.
    """

    phases: list[Phase]
    lines: list[str]
    trains_all: bool


class Rehearsal(Trial):
    """A model that runs can be planned for."""

    def _plan(
        self,
        strategy: str | Strategy | Sequence[Phase] | None,
        epochs: int,
        lr: Rate | None,
        schedule: str | Schedule,
    ) -> Plan:
        """Return the phases, each rehearsed, its patterns, rates and optimizer tried and undone."""
        lines, trains_all = [], True
        phases = phases_of(strategy, self._stages_in_scope, epochs, lr, schedule)
        if self._scope is not None:
            phases = [self._within_scope(phase) for phase in phases]
        for phase in phases:
            if phase.lora_rank is not None:
                self._add_lora(phase.lora_rank)
        for phase in phases:
            if phase.start_from is not None:
                self._starting_weights(phase.start_from)  # what is wrong with them is said before any work
        replaced = self._scope is not None or any(isinstance(change, HeadReplacement) for change in self._replacements)
        head = list(self.head.parameters()) if replaced else []
        head_trains = not head
        with freezing.freeze_state_restored(self.inner):
            for phase in phases:
                if phase.train is not None:
                    freezing.train_only(self.inner, phase.train)
                line = describe_phase(self.inner, phase, self._build_optimizer(phase))
                lines.append(f"{line}, {self.precision.name} on {self.device}")
                self._note_trainable()
                trains_all = trains_all and {*self._stages()[0].parameters} <= freezing.trainable(self.inner).keys()
                head_trains = head_trains or any(parameter.requires_grad for parameter in head)
        warn_of_half_weights(freezing.trainable(self.inner).values(), stacklevel=4)
        if not head_trains:
            name = self._head_names()[0]
            warnings.warn(
                f"The head {name!r} is frozen, so it stays random if it is new. Train it with unfreeze({name!r}), or "
                f"with PEFT name it in modules_to_save.",
                stacklevel=3,
            )
        return Plan(phases, lines, trains_all)

    def _within_scope(self, phase: Phase) -> Phase:
        """Return the phase with "everything", or adapters, being those that PEFT has given the model already."""
        everything = phase.train == "*" or phase.lora_rank is not None
        return replace(phase, train=self._everything(), lora_rank=None) if everything else phase

    def _add_lora(self, rank: int) -> None:
        added = add_lora(self.inner, self._head_names(), rank, self._replacements, self.settings.seed)
        if added is not None:
            self._replacements = [*self._replacements, added[0]]
            self._undo.append(added[1])
            self._order = None  # parameters within the adapted layers have other names now

    def _starting_weights(self, start_from: str | Path) -> Mapping[str, torch.Tensor]:
        return starting_weights(self.inner, start_from, self._source, self.settings.seed)

    def _load_start(self, start_from: str | Path) -> None:
        load_state(self.inner, self._starting_weights(start_from), strict=False)

    def _build_optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        optimizer, weight_decay = self.settings.optimizer, self.settings.weight_decay
        in_order = self._stages()
        lr = default_rate(optimizer, self.inner, in_order) if phase.lr is None else phase.lr
        made = build_optimizer(self.inner, in_order, optimizer, lr, weight_decay)
        self._groups = rates(self.inner, in_order, lr)
        return made

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

    def _cache(self, cache: str | Path | bool, callbacks: Sequence[Callback]) -> Cache | None:
        """Return what computes the frozen prefix once, None if it is not to be.

        Raises:
            ArgumentError: it is no kind of cache and no folder, there or to be made.
        """
        where = self._cache_place(cache)
        if where is None:
            return None
        changed = any(c.changes_inputs and type(c).change_batch is not Callback.change_batch for c in callbacks)
        foreign = any(type(c).__module__.split(".")[0] != "finetune" for c in callbacks)
        return Cache(
            where,
            self._stages,
            self.precision.autocast,
            changed=changed,
            declined=self._not_to_be_cut(),
            guarded=foreign or self._own_steps(),
        )

    def _not_to_be_cut(self) -> str:
        """Return why the model's forward pass cannot be taken apart, `""` if nothing is known against it."""
        if self.model is not self.inner:
            return f"the model is wrapped in {type(self.model).__name__}, which may compile or divide its forward pass"
        if compiling.is_compiled(self.inner):
            return "the model came compiled; FineTuner(model, compile=True) compiles it in the parts that are needed"
        return ""

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
