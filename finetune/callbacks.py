"""Callbacks for `fit`: the public door to `finetune.training.callbacks`."""

from finetune.training.callbacks.base import Callback
from finetune.training.callbacks.logs import CSVLogger, TensorBoard
from finetune.training.callbacks.saving import ModelCheckpoint
from finetune.training.callbacks.stopping import EarlyStopping

__all__ = ["CSVLogger", "Callback", "EarlyStopping", "ModelCheckpoint", "TensorBoard"]
