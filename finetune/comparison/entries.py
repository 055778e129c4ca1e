"""What is compared: models and strategies in any form a user gives them, each with a label."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune.data.randomness import seeded
from finetune.errors import ArgumentError
from finetune.model.wrapping import unwrapped
from finetune.strategies import Strategy, get_strategy
from finetune.training.optim.phases import Phase, check_phases

GivenModel = str | nn.Module | Callable[[], nn.Module]
GivenStrategy = str | Strategy | Sequence[Phase]
Models = GivenModel | Sequence[GivenModel] | Mapping[str, GivenModel]
Strategies = GivenStrategy | Sequence[GivenStrategy] | Mapping[str, GivenStrategy]


@dataclass(frozen=True)
class Candidate:
    """One model with one strategy, as the user gave them."""

    model_label: str
    model: GivenModel
    strategy_label: str
    strategy: GivenStrategy

    @property
    def label(self) -> str:
        """What a line about it begins with."""
        return f"{self.model_label}, {self.strategy_label}"

    def made(self, seed: int) -> nn.Module | str:
        """Return the model as `make` gives it."""
        return make(self.model, self.model_label, seed)


def candidates(models: Models, strategies: Strategies, budget: int) -> list[Candidate]:
    """Return every model with every strategy.

    Raises:
        ArgumentError: there are none, or one is none; a list of phases has other epochs than the budget.
    """
    return [
        Candidate(model_label, model, strategy_label, strategy)
        for model_label, model in labelled_models(models).items()
        for strategy_label, strategy in _labelled_strategies(strategies, budget).items()
    ]


def make(model: GivenModel, label: str, seed: int) -> nn.Module | str:
    """Return a model's name, or a module that nobody else has: a copy, or what the user's function makes.

    Raises:
        ArgumentError: the function made something else.
    """
    if isinstance(model, str):
        return model
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    with seeded(seed, "model"):
        made = model()
    if not isinstance(made, nn.Module):
        raise ArgumentError(f"Expected {label} to make an nn.Module, but it made {made!r}.")
    return made


def labelled_models(models: Models) -> dict[str, GivenModel]:
    """Return the models by label.

    Raises:
        ArgumentError: there are none, or one is none.
    """
    alone = isinstance(models, (str, nn.Module)) or not isinstance(models, Iterable)
    labelled = _labelled([models] if alone else models, _label_of_model)
    for model in labelled.values():
        if not isinstance(model, (str, nn.Module)) and not callable(model):
            raise ArgumentError(
                f"Expected a model to be a name, an nn.Module or a function that makes one, but got {model!r}."
            )
    if not labelled:
        raise ArgumentError("Expected at least one model, but got none.")
    return labelled


def _labelled_strategies(strategies: Strategies, budget: int) -> dict[str, GivenStrategy]:
    alone = isinstance(strategies, str) or not isinstance(strategies, Iterable) or _are_phases(strategies)
    labelled = _labelled([strategies] if alone else strategies, _label_of_strategy)
    for label, strategy in labelled.items():
        if isinstance(strategy, str):
            get_strategy(strategy)
        elif not callable(strategy):
            epochs = sum(phase.epochs for phase in check_phases(strategy))
            if epochs != budget:
                raise ArgumentError(
                    f"The phases of {label!r} have {epochs} epochs in all, and the budget of every run is {budget}. "
                    f"Give them as many, or give a function of stages, epochs and lr that shares them out."
                )
    if not labelled:
        raise ArgumentError("Expected at least one strategy to compare, but got none.")
    return labelled


def _are_phases(strategies: Any) -> bool:
    """Tell a list of phases, which is one strategy, from a list of strategies."""
    return isinstance(strategies, Sequence) and {*map(type, strategies)} == {Phase}


def _labelled(given: Any, label_of: Callable[[Any], str]) -> dict[str, Any]:
    """Return what was given by a label: the user's own, or one that says what it is, numbered where two have it."""
    if isinstance(given, Mapping):
        return {str(label): one for label, one in given.items()}
    labelled: dict[str, Any] = {}
    for one in given:
        label = label_of(one)
        taken = sum(other == label or other.startswith(f"{label} (") for other in labelled)
        labelled[f"{label} ({taken + 1})" if taken else label] = one
    return labelled


def _label_of_model(model: Any) -> str:
    if isinstance(model, nn.Module):
        return type(unwrapped(model)).__name__
    return model if isinstance(model, str) else _label_of_function(model)


def _label_of_strategy(strategy: Any) -> str:
    if isinstance(strategy, str):
        return strategy
    if callable(strategy):
        return _label_of_function(strategy)
    return " + ".join(phase.name for phase in check_phases(strategy))


def _label_of_function(function: Any) -> str:
    if isinstance(function, functools.partial):
        options = [*map(str, function.args), *(f"{name}={value}" for name, value in function.keywords.items())]
        return f"{_label_of_function(function.func)}({', '.join(options)})"
    return str(getattr(function, "__name__", type(function).__name__))
