"""Estimators for scikit-learn, imported as `finetune.sklearn`. Requires the `scikit-learn` package."""

from finetune.sklearn.classifier import FineTuneClassifier
from finetune.sklearn.regressor import FineTuneRegressor

__all__ = ["FineTuneClassifier", "FineTuneRegressor"]
