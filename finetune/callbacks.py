"""Callbacks for `fit`: the public door to `finetune.training.callbacks`."""

from finetune.training.callbacks.anchoring import L2SP
from finetune.training.callbacks.averaging import EMA, SWA
from finetune.training.callbacks.base import Callback
from finetune.training.callbacks.logs import CSVLogger, TensorBoard
from finetune.training.callbacks.saving import ModelCheckpoint
from finetune.training.callbacks.stopping import EarlyStopping
from finetune.training.callbacks.targets import ClassWeights, Mixup

__all__ = [
    "EMA",
    "L2SP",
    "SWA",
    "CSVLogger",
    "Callback",
    "ClassWeights",
    "EarlyStopping",
    "Mixup",
    "ModelCheckpoint",
    "TensorBoard",
]
