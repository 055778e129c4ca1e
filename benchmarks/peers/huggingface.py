"""Hugging Face's Trainer."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from benchmarks.peers.workload import RATE, WEIGHT_DECAY, Workload

PACKAGE = "transformers"


class WithLoss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, X: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(X)
        return {"loss": F.cross_entropy(logits.float(), labels), "logits": logits}


def collate(items: list[Any]) -> dict[str, Tensor]:
    return {"X": torch.stack([X for X, _ in items]), "labels": torch.tensor([int(y) for _, y in items])}


def train(workload: Workload) -> float:
    task = workload.task
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=task.batch_size,
        num_train_epochs=task.epochs,
        learning_rate=RATE,
        weight_decay=WEIGHT_DECAY,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        optim="adamw_torch",
        bf16=task.precision == "bf16",
        use_cpu=task.device == "cpu",
        dataloader_pin_memory=task.device == "cuda",
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    optimizer = torch.optim.AdamW(workload.trained(), lr=RATE, weight_decay=WEIGHT_DECAY)
    trainer = Trainer(
        WithLoss(workload.model()),
        arguments,
        train_dataset=workload.dataset(),
        data_collator=collate,
        optimizers=(optimizer, None),
    )
    with workload.timed():
        trainer.train()
    return workload.seconds
