"""Lightning's Trainer."""

from __future__ import annotations

import tempfile
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.workload import RATE, WEIGHT_DECAY, Workload

PACKAGE = "lightning"


class Classifier(lightning.LightningModule):
    def __init__(self, model: nn.Module, trained: list[nn.Parameter]) -> None:
        super().__init__()
        self.model, self._trained = model, trained

    def training_step(self, batch: Any, _: int) -> Tensor:
        X, y = batch
        return F.cross_entropy(self.model(X), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self._trained, lr=RATE, weight_decay=WEIGHT_DECAY)


def train(workload: Workload) -> float:
    task = workload.task
    trainer = lightning.Trainer(
        max_epochs=task.epochs,
        accelerator="gpu" if task.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if task.precision == "bf16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tempfile.gettempdir(),
    )
    module = Classifier(workload.model(), workload.trained()).train()  # Lightning keeps the modes of the modules
    with workload.timed():
        trainer.fit(module, workload.loader())
    return workload.seconds
