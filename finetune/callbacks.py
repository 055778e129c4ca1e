"""Callbacks for `fit`: the public door to `finetune.training.callbacks`."""

from finetune.training.callbacks import Callback, CSVLogger, EarlyStopping, ModelCheckpoint, TensorBoard

__all__ = ["CSVLogger", "Callback", "EarlyStopping", "ModelCheckpoint", "TensorBoard"]
