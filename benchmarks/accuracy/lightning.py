"""Lightning's `BackboneFinetuning`, with the optimizer from the example in its documentation."""

from __future__ import annotations

import tempfile
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.accuracy.trial import Trial


class Classifier(lightning.LightningModule):
    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, X: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(X))
        return logits

    def training_step(self, batch: Any, _: int) -> Tensor:
        X, y = batch
        return F.cross_entropy(self(X), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.head.parameters(), lr=1e-3)


def train(trial: Trial, unfreeze_at: float | None = None) -> nn.Module:
    """Train the head, then all layers from the callback's default epoch on, or from a fraction of the budget on."""
    options = {} if unfreeze_at is None else {"unfreeze_backbone_at_epoch": int(trial.task.epochs * unfreeze_at)}
    module: nn.Module = Classifier(*trial.split()).train()  # Lightning keeps the modes of the modules
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=trial.task.epochs,
            callbacks=[BackboneFinetuning(**options)],
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, trial.loader())
    return module
