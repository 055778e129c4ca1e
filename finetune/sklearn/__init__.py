"""Estimators for scikit-learn, imported as `finetune.sklearn`. Requires `pip install 'torch-finetune[sklearn]'`."""

from finetune.errors import ArgumentError

try:
    from finetune.sklearn.classifier import FineTuneClassifier
    from finetune.sklearn.regressor import FineTuneRegressor
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "sklearn":
        raise
    raise ArgumentError(
        "The estimators require scikit-learn, which is not installed. Install it with: pip install "
        "'torch-finetune[sklearn]'"
    ) from error

__all__ = ["FineTuneClassifier", "FineTuneRegressor"]
