"""Hugging Face's Trainer with the defaults of `TrainingArguments`, over all layers."""

from __future__ import annotations

import tempfile

from torch import nn
from transformers import Trainer, TrainingArguments

from benchmarks.accuracy.trial import Trial
from benchmarks.peers.huggingface import WithLoss, collate


def train(trial: Trial) -> nn.Module:
    """Train with AdamW and the default rate, schedule and gradient clipping."""
    model = trial.tuner.model
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=trial.task.batch_size,
            num_train_epochs=trial.task.epochs,
            seed=trial.task.seed,
            use_cpu=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(WithLoss(model), arguments, train_dataset=trial.dataset(), data_collator=collate).train()
    return model
