"""`FineTuneClassifier`: a fine-tuned classifier for scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_array, column_or_1d

from finetune.errors import DataError
from finetune.sklearn.estimator import FineTuneEstimator

if TYPE_CHECKING:
    from typing_extensions import Self


class FineTuneClassifier(ClassifierMixin, FineTuneEstimator):
    """A classifier for scikit-learn's `GridSearchCV`, `cross_val_score` and `Pipeline`.

    Inputs are pictures [N, H, W, C] or [N, C, H, W], raw ones as uint8 and ready ones as floats; features [N, D]; or
    texts, paths or PIL images, one per sample. Labels are numbers or strings [N], or for several labels per sample 0 or
    1 [N, K]. There is no `sample_weight`; the callback `ClassWeights` weighs classes.

    Args:
        model: Name of a model, a module, of which each fit trains a copy, or a function that returns one: of no
            arguments, or of the number of features.
        weights: Weights, and the further arguments of `FineTuner`.
        in_channels: Number of image channels, if it differs from the model's.
        preprocessing: Preprocessing as in `FineTuner`.
        head: Head as in `replace_head`. None keeps a head that fits, except for a model name.
        freeze: True to train only the head, or patterns of the layers to freeze.
        strategy: Strategy, and the further arguments of `fit`.
        epochs: Passes over the training data.
        lr: Learning rate as in `fit`.
        schedule: Schedule as in `fit`.
        batch_size: Samples per batch.
        val: Fraction of the training data to validate on after every epoch, or validation data as in `fit`.
        augment: Augmentation of raw pictures as in `fit`.
        augment_views: Number of fixed augmented versions per picture as in `fit`.
        cache: Cache of frozen features as in `fit`.
        callbacks: Callbacks, of which each fit has copies.
        loss: Loss as in `FineTuner`.
        metrics: Metrics of the history as in `FineTuner`.
        optimizer: Optimizer as in `FineTuner`.
        weight_decay: Weight decay.
        max_grad_norm: Maximum gradient norm per update; None does not clip.
        gradient_accumulation_steps: Batches per update.
        device: Device to train on.
        precision: Precision as in `FineTuner`.
        compile: Whether to compile the model.
        random_state: Seed, a `RandomState`, or None for another seed in every fit.
        verbose: Whether to show the progress.

    Attributes:
        classes_: Labels in the order of the outputs; with several labels per sample, the numbers of the columns.
        tuner_: The `FineTuner` of the latest fit, for example to save a checkpoint.
        history_: Its history.

    Raises:
        ArgumentError, DataError: In `fit`, if an argument or the data is invalid.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.model_selection import cross_val_score
        >>> from torch import nn
        >>> def network(features):
        ...     return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> X, y = load_iris(return_X_y=True)
        >>> classifier = FineTuneClassifier(network, epochs=20, lr=0.01, device="cpu", random_state=0)
        >>> bool(cross_val_score(classifier, X, y, cv=3).mean() > 0.8)
        True
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Train a new model.

        Args:
            X: Inputs [N, ...].
            y: Labels [N], or 0 or 1 [N, K].

        Example:
            >>> from torch import nn
            >>> X = np.array([[0.0], [1.0]] * 8)
            >>> FineTuneClassifier(nn.Linear(1, 2), device="cpu").fit(X, ["no", "yes"] * 8).classes_
            array(['no', 'yes'], ...)
        """
        X, labels = self._checked(X, reset=True), _checked_labels(self, y)
        self._several = labels.ndim == 2
        if self._several:
            self.classes_ = np.arange(labels.shape[1])
            return self._fit(X, labels.astype("float32"), labels.shape[1], loss=self.loss or "bce")
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(f"Expected labels of two classes or more, but got one class, {self.classes_[0]!r}.")
        binary = self.loss == "bce" and len(self.classes_) == 2
        targets = numbers.astype("float32") if binary else numbers
        self._fit(X, targets, 1 if binary else len(self.classes_))
        if not binary:
            self.tuner_.classes = tuple(map(str, self.classes_))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities [N, K] of the classes, in the order of `classes_`.

        With several labels per sample, each has its own.

        Example:
            >>> from torch import nn
            >>> X = np.array([[0.0], [1.0]] * 8)
            >>> classifier = FineTuneClassifier(nn.Linear(1, 2), device="cpu").fit(X, ["no", "yes"] * 8)
            >>> classifier.predict_proba(X).shape
            (16, 2)
        """
        inputs = self._inputs(X)
        values: np.ndarray = self.tuner_.predict_proba(inputs, batch_size=self.batch_size).double().numpy()
        if self._several:
            return values
        if values.ndim == 1 or values.shape[1] == 1:
            positive = values.reshape(-1)
            values = np.column_stack([1 - positive, positive])
        proba: np.ndarray = values / values.sum(1, keepdims=True)  # float32 rounds
        return proba

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable label of each sample [N], or 1 for each of several labels above 0.5 [N, K].

        Example:
            >>> from torch import nn
            >>> X = np.array([[0.0], [1.0]] * 8)
            >>> classifier = FineTuneClassifier(nn.Linear(1, 2), epochs=40, lr=0.1, device="cpu", random_state=0)
            >>> classifier.fit(X, ["no", "yes"] * 8).predict(X[:2]).tolist()
            ['no', 'yes']
        """
        proba = self.predict_proba(X)
        labels: np.ndarray = (proba > 0.5).astype(int) if self._several else self.classes_[proba.argmax(1)]
        return labels


def _checked_labels(estimator: FineTuneClassifier, y: Any) -> np.ndarray:
    """Return labels as an array [N], or of 0 and 1 [N, K].

    Raises:
        ValueError: If there are none, or they are no labels.
    """
    if y is None:
        raise DataError(f"This {type(estimator).__name__} estimator requires y to be passed, but the target y is None.")
    labels: np.ndarray = check_array(y, ensure_2d=False, dtype=None, input_name="y")
    if type_of_target(labels) != "multilabel-indicator":
        labels = column_or_1d(labels, warn=True)
    check_classification_targets(labels)
    return labels
