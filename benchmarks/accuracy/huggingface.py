"""Hugging Face's Trainer with the defaults of `TrainingArguments`; everything trains."""

from __future__ import annotations

import tempfile

from torch import nn
from transformers import Trainer, TrainingArguments

from benchmarks.accuracy.work import Work
from benchmarks.peers.huggingface import WithLoss, collate


def train(work: Work) -> nn.Module:
    """Train with AdamW at the rate, schedule and clipping that the arguments have by themselves."""
    model = work.tuner.model
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=work.task.batch_size,
            num_train_epochs=work.task.epochs,
            seed=work.task.seed,
            use_cpu=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(WithLoss(model), arguments, train_dataset=work.dataset(), data_collator=collate).train()
    return model
