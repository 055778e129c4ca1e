"""`Candidate`: a model and a strategy to compare, in any form that a user may pass, each with a label."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune.data.randomness import seeded
from finetune.errors import ArgumentError
from finetune.model.network import unwrapped
from finetune.naming.functions import function_name
from finetune.strategies import Strategy, get_strategy, strategy_name
from finetune.training.optim.phases import Phase, check_phases

GivenModel = str | nn.Module | Callable[[], nn.Module]
GivenStrategy = str | Strategy | Sequence[Phase]
Models = GivenModel | Sequence[GivenModel] | Mapping[str, GivenModel]
Strategies = GivenStrategy | Sequence[GivenStrategy] | Mapping[str, GivenStrategy]


@dataclass(frozen=True)
class Candidate:
    """A model with a strategy, as the user passed them."""

    model_label: str
    model: GivenModel
    strategy_label: str
    strategy: GivenStrategy

    @property
    def label(self) -> str:
        """Name of the candidate in progress and log lines."""
        return f"{self.model_label}, {self.strategy_label}"

    def build(self, seed: int) -> nn.Module | str:
        """Return the model for one run, as `build_model` does."""
        return build_model(self.model, self.model_label, seed)


def candidates(models: Models, strategies: Strategies, budget: int) -> list[Candidate]:
    """Pair every model with every strategy.

    Raises:
        ArgumentError: If there is no model or no strategy, if one of them is invalid, or if the epochs of a list of
            phases differ from the budget.
    """
    return [
        Candidate(model_label, model, strategy_label, strategy)
        for model_label, model in labeled_models(models).items()
        for strategy_label, strategy in _labeled_strategies(strategies, budget).items()
    ]


def build_model(model: GivenModel, label: str, seed: int) -> nn.Module | str:
    """Return the name of a model, a copy of a module, or the module that a function returns.

    Raises:
        ArgumentError: If the function does not return a module.
    """
    if isinstance(model, str):
        return model
    if isinstance(model, nn.Module):
        return copy.deepcopy(model)
    with seeded(seed, "model"):
        module = model()
    if not isinstance(module, nn.Module):
        raise ArgumentError(f"Expected {label} to return an nn.Module, but got {module!r}.")
    return module


def labeled_models(models: Models) -> dict[str, GivenModel]:
    """Return the models by label.

    Raises:
        ArgumentError: If there is no model, or one is invalid.
    """
    alone = isinstance(models, (str, nn.Module)) or not isinstance(models, Iterable)
    labeled = _labeled([models] if alone else models, _label_of_model)
    for model in labeled.values():
        if not isinstance(model, (str, nn.Module)) and not callable(model):
            raise ArgumentError(
                f"Expected a model to be a name, an nn.Module, or a function that returns one, but got {model!r}."
            )
    if not labeled:
        raise ArgumentError("Expected at least one model, but got none.")
    return labeled


def _labeled_strategies(strategies: Strategies, budget: int) -> dict[str, GivenStrategy]:
    alone = isinstance(strategies, str) or not isinstance(strategies, Iterable) or _are_phases(strategies)
    labeled = _labeled([strategies] if alone else strategies, strategy_name)
    for label, strategy in labeled.items():
        if isinstance(strategy, str):
            get_strategy(strategy)
        elif not callable(strategy):
            epochs = sum(phase.epochs for phase in check_phases(strategy))
            if epochs != budget:
                raise ArgumentError(
                    f"The phases of {label!r} take {epochs} epochs in total, but the budget of each run is {budget}. "
                    f"Change their epochs or the budget, or pass a strategy function, which gets the budget."
                )
    if not labeled:
        raise ArgumentError("Expected at least one strategy to compare, but got none.")
    return labeled


def _are_phases(strategies: Any) -> bool:
    """Return whether a list holds phases and is therefore one strategy rather than a list of strategies."""
    return isinstance(strategies, Sequence) and {*map(type, strategies)} == {Phase}


def _labeled(given: Any, label_of: Callable[[Any], str]) -> dict[str, Any]:
    """Return the models or strategies by the user's label, or a derived one, numbered if it occurs twice."""
    if isinstance(given, Mapping):
        return {str(label): one for label, one in given.items()}
    labeled: dict[str, Any] = {}
    for one in given:
        label = label_of(one)
        taken = sum(other == label or other.startswith(f"{label} (") for other in labeled)
        labeled[f"{label} ({taken + 1})" if taken else label] = one
    return labeled


def _label_of_model(model: Any) -> str:
    if isinstance(model, nn.Module):
        return type(unwrapped(model)).__name__
    return model if isinstance(model, str) else function_name(model)
