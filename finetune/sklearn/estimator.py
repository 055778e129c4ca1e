"""`FineTuneEstimator`: what the classifier and the regressor share."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data
from torch import nn

from finetune.data.randomness import seeded
from finetune.model.patterns import Patterns
from finetune.model.surgery.heads import HeadFactory, num_outputs
from finetune.sklearn.inputs import are_items, as_inputs, checked_items
from finetune.strategies import Strategy
from finetune.training.callbacks.base import Callback
from finetune.training.metrics import Metrics
from finetune.training.optim.optimizers import OptimizerFactory
from finetune.training.optim.phases import Phase
from finetune.training.optim.rates import Rate
from finetune.training.optim.schedules import Schedule
from finetune.training.tasks import Loss
from finetune.tuner import FineTuner

if TYPE_CHECKING:
    from typing_extensions import Self


class FineTuneEstimator(BaseEstimator):
    """Base class of the estimators. See `FineTuneClassifier`."""

    def __init__(
        self,
        model: str | nn.Module | Callable[..., nn.Module] = "resnet18",
        *,
        weights: str | Path | None = "DEFAULT",
        in_channels: int | None = None,
        preprocessing: Any = None,
        head: nn.Module | HeadFactory | str | None = None,
        freeze: bool | Patterns = False,
        strategy: str | Strategy | Sequence[Phase] | None = None,
        epochs: int = 1,
        lr: Rate | None = None,
        schedule: str | Schedule = "cosine",
        batch_size: int = 32,
        val: Any = None,
        augment: Any = True,
        augment_views: int | None = None,
        cache: str | Path | bool = "auto",
        callbacks: Sequence[Callback] | Callback | None = None,
        loss: str | Loss | None = None,
        metrics: Metrics = None,
        optimizer: str | OptimizerFactory = "adamw",
        weight_decay: float = 0.01,
        max_grad_norm: float | None = None,
        gradient_accumulation_steps: int = 1,
        device: str | torch.device = "auto",
        precision: str = "auto",
        compile: bool | str = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.weights = weights
        self.in_channels = in_channels
        self.preprocessing = preprocessing
        self.head = head
        self.freeze = freeze
        self.strategy = strategy
        self.epochs = epochs
        self.lr = lr
        self.schedule = schedule
        self.batch_size = batch_size
        self.val = val
        self.augment = augment
        self.augment_views = augment_views
        self.cache = cache
        self.callbacks = callbacks
        self.loss = loss
        self.metrics = metrics
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.device = device
        self.precision = precision
        self.compile = compile
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags

    def _checked(self, X: Any, *, reset: bool) -> np.ndarray:
        """Return inputs as an array, after scikit-learn's checks of numbers."""
        if are_items(X):
            return checked_items(X)
        array: np.ndarray = validate_data(self, X, reset=reset, allow_nd=True)
        return array

    def _fit(self, X: np.ndarray, y: np.ndarray, outputs: int, **changed: Any) -> Self:
        """Train a new model on checked inputs, and targets that it has one output per class or value for.

        Args:
            X: Checked inputs.
            y: Targets.
            outputs: Number of outputs.
            changed: Arguments of `FineTuner` in place of those of the estimator.
        """
        check_consistent_length(X, y)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if isinstance(self.random_state, (int, np.integer)):
            seed = int(self.random_state)
        changed = {"model": self._built(X, seed), "seed": seed, **changed}
        tuner = FineTuner(**self._arguments_of(FineTuner, **changed))
        if self.head is not None or isinstance(self.model, str) or num_outputs(tuner.head) != outputs:
            tuner.replace_head(outputs, head=copy.deepcopy(self.head))
        if self.freeze is not False:
            tuner.freeze(None if self.freeze is True else self.freeze)
        callbacks = copy.deepcopy(self.callbacks) or ()
        given = self._arguments_of(tuner.fit, train=(as_inputs(X), y), callbacks=callbacks, progress=self.verbose)
        self.history_ = tuner.fit(**given)
        self.tuner_ = tuner
        return self

    def _arguments_of(self, function: Callable[..., Any], **given: Any) -> dict[str, Any]:
        """Return the arguments that a function shares with the estimator, and those given."""
        shared = inspect.signature(function).parameters.keys() & self.get_params(deep=False).keys()
        return {name: getattr(self, name) for name in shared} | given

    def _built(self, X: np.ndarray, seed: int) -> nn.Module | str:
        """Return the name of the model, a copy of the module, or the module that the function returns."""
        if isinstance(self.model, (str, nn.Module)):
            return copy.deepcopy(self.model)
        takes_size = any(
            parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            for parameter in inspect.signature(self.model).parameters.values()
        )
        with seeded(seed, "model"):
            return self.model(X.shape[1]) if takes_size else self.model()

    def _inputs(self, X: Any) -> Any:
        check_is_fitted(self)
        return as_inputs(self._checked(X, reset=False))
