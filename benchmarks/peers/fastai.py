"""fastai's Learner, with `train_bn=False`."""

from __future__ import annotations

from functools import partial

import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.callback.fp16 import MixedPrecision
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from torch import nn

from benchmarks.peers.workload import RATE, WEIGHT_DECAY, Workload

PACKAGE = "fastai"


class NoValidation(Callback):
    def before_validate(self) -> None:
        raise CancelValidException


def train(workload: Workload) -> float:
    task = workload.task
    # fastai's own mixed precision is for CUDA
    own = task.precision == "bf16" and task.device == "cuda"
    loader = DataLoader(workload.dataset(), bs=task.batch_size, shuffle=True, drop_last=False, num_workers=0)
    learner = Learner(
        DataLoaders(loader, loader, device=workload.device),
        workload.model(autocast=not own),
        nn.CrossEntropyLoss(),
        opt_func=partial(OptimWrapper, opt=torch.optim.AdamW),
        splitter=lambda model: workload.trained(),
        lr=RATE,
        wd=WEIGHT_DECAY,
        wd_bn_bias=True,
        train_bn=False,
        cbs=[NoValidation(), *([MixedPrecision(amp_mode="bf16")] if own else [])],
    )
    with workload.timed(), learner.no_bar(), learner.no_logging():
        learner.fit(task.epochs)
    return workload.seconds
