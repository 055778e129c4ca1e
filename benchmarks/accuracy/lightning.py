"""Lightning's `BackboneFinetuning`, with the optimizer of the example in its documentation."""

from __future__ import annotations

import tempfile
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.accuracy.work import Work


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


def train(work: Work, unfreeze_at: float | None = None) -> nn.Module:
    """Train the head, then everything from the callback's own epoch on, or from this share of the budget on."""
    options = {} if unfreeze_at is None else {"unfreeze_backbone_at_epoch": int(work.task.epochs * unfreeze_at)}
    module: nn.Module = Classifier(*work.split()).train()  # Lightning keeps the modes that it is given
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=work.task.epochs,
            callbacks=[BackboneFinetuning(**options)],
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, work.loader())
    return module
