"""Keras on torch, with the network as a `TorchModuleWrapper`."""

from __future__ import annotations

import os

from benchmarks.peers.workload import CLASSES, RATE, WEIGHT_DECAY, Workload

PACKAGE = "keras"


def train(workload: Workload) -> float:
    os.environ.update(KERAS_BACKEND="torch", KERAS_TORCH_DEVICE=workload.task.device)
    import keras

    task = workload.task
    layer = keras.layers.TorchModuleWrapper(workload.model(autocast=True), output_shape=(None, CLASSES))
    model = keras.Sequential([keras.Input((3, task.size, task.size), dtype="uint8"), layer])
    model.compile(
        optimizer=keras.optimizers.AdamW(RATE, weight_decay=WEIGHT_DECAY),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    with workload.timed():
        model.fit(workload.loader(), epochs=task.epochs, verbose=0)
    workload.updates = int(model.optimizer.iterations)
    return workload.seconds
