"""finetune, as its README has it, with the defaults of `fit`."""

from __future__ import annotations

from benchmarks.peers.work import MEAN, PARTS, RATE, STD, WEIGHT_DECAY, Work
from finetune import FineTuner

PACKAGE = "torch-finetune"


def train(work: Work) -> float:
    task = work.task
    side = (task.size, task.size)
    tuner = FineTuner(
        work.network,
        preprocessing={"crop_size": side, "resize_size": task.size, "mean": MEAN, "std": STD},
        device=task.device,
        precision=task.precision,
        weight_decay=WEIGHT_DECAY,
    )
    tuner.freeze("*").unfreeze(list(PARTS[task.part]))
    data = task.folder or work.arrays
    with work.timed():
        tuner.fit(
            data,
            val=False,
            epochs=task.epochs,
            lr=RATE,
            schedule="constant",
            batch_size=task.batch_size,
            augment=False,
            progress=False,
        )
    return work.seconds
