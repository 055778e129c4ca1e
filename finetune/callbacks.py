"""Callbacks for `fit`."""

from finetune.training.callbacks.base import Callback
from finetune.training.callbacks.class_weights import ClassWeights
from finetune.training.callbacks.early_stopping import EarlyStopping
from finetune.training.callbacks.l2sp import L2SP
from finetune.training.callbacks.loggers.csv_logger import CSVLogger
from finetune.training.callbacks.loggers.logger import Logger
from finetune.training.callbacks.loggers.mlflow import MLflow
from finetune.training.callbacks.loggers.tensorboard import TensorBoard
from finetune.training.callbacks.loggers.weights_and_biases import WeightsAndBiases
from finetune.training.callbacks.mixup import Mixup
from finetune.training.callbacks.model_checkpoint import ModelCheckpoint
from finetune.training.callbacks.report import Report
from finetune.training.callbacks.skip_non_finite import SkipNonFinite
from finetune.training.callbacks.weight_averaging import EMA, SWA

__all__ = [
    "EMA",
    "L2SP",
    "SWA",
    "CSVLogger",
    "Callback",
    "ClassWeights",
    "EarlyStopping",
    "Logger",
    "MLflow",
    "Mixup",
    "ModelCheckpoint",
    "Report",
    "SkipNonFinite",
    "TensorBoard",
    "WeightsAndBiases",
]
