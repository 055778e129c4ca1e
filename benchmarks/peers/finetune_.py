"""finetune, as in its README, with the defaults of `fit`."""

from __future__ import annotations

from benchmarks.peers.workload import MEAN, PARTS, RATE, STD, WEIGHT_DECAY, Workload
from finetune import FineTuner

PACKAGE = "torch-finetune"


def train(workload: Workload) -> float:
    task = workload.task
    side = (task.size, task.size)
    tuner = FineTuner(
        workload.network,
        preprocessing={"crop_size": side, "resize_size": task.size, "mean": MEAN, "std": STD},
        device=task.device,
        precision=task.precision,
        weight_decay=WEIGHT_DECAY,
    )
    tuner.freeze("*").unfreeze(list(PARTS[task.part]))
    data = task.folder or workload.arrays
    with workload.timed():
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
    return workload.seconds
