"""`FineTuneRegressor`: a fine-tuned regression for scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import check_array

from finetune.errors import DataError
from finetune.sklearn.estimator import FineTuneEstimator

if TYPE_CHECKING:
    from typing_extensions import Self


class FineTuneRegressor(RegressorMixin, FineTuneEstimator):
    """A regression for scikit-learn's `GridSearchCV`, `cross_val_score` and `Pipeline`.

    The arguments and the inputs are those of `FineTuneClassifier`. Targets are numbers, one or several per sample; for
    those far from 0 and 1, use scikit-learn's `TransformedTargetRegressor`.

    Attributes:
        tuner_: The `FineTuner` of the latest fit.
        history_: Its history.

    Raises:
        ArgumentError, DataError: In `fit`, if an argument or the data is invalid.

    Example:
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> from torch import nn
        >>> X = np.arange(64.0)[:, None]
        >>> regressor = FineTuneRegressor(nn.Linear(1, 1), epochs=50, lr=0.1, device="cpu", random_state=0)
        >>> bool(make_pipeline(StandardScaler(), regressor).fit(X, X[:, 0] / 64).score(X, X[:, 0] / 64) > 0.9)
        True
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Train a new model.

        Args:
            X: Inputs [N, ...].
            y: Targets [N] or [N, K].

        Example:
            >>> from torch import nn
            >>> regressor = FineTuneRegressor(nn.Linear(2, 1), device="cpu")
            >>> regressor.fit(np.ones((8, 2)), np.arange(8)).predict(np.ones((3, 2))).shape
            (3,)
        """
        X = self._checked(X, reset=True)
        if y is None:
            raise DataError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        targets = check_array(y, dtype="float32", ensure_2d=False, input_name="y")
        self._flat = targets.ndim == 1
        return self._fit(X, targets.reshape(len(targets), -1), 1 if self._flat else targets.shape[1])

    def predict(self, X: Any) -> np.ndarray:
        """Return the values [N] or [N, K].

        Example:
            >>> from torch import nn
            >>> regressor = FineTuneRegressor(nn.Linear(2, 3), device="cpu").fit(np.ones((8, 2)), np.ones((8, 3)))
            >>> regressor.predict(np.ones((2, 2))).shape
            (2, 3)
        """
        inputs = self._inputs(X)
        values: np.ndarray = self.tuner_.predict(inputs, batch_size=self.batch_size).double().numpy()
        return values.reshape(-1) if self._flat else values
