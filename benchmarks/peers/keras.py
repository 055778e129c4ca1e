"""Keras on torch, with the network as a `TorchModuleWrapper`."""

from __future__ import annotations

import os

from benchmarks.peers.work import CLASSES, RATE, WEIGHT_DECAY, Work

PACKAGE = "keras"


def train(work: Work) -> float:
    os.environ.update(KERAS_BACKEND="torch", KERAS_TORCH_DEVICE=work.task.device)
    import keras

    task = work.task
    layer = keras.layers.TorchModuleWrapper(work.model(autocast=True), output_shape=(None, CLASSES))
    model = keras.Sequential([keras.Input((3, task.size, task.size), dtype="uint8"), layer])
    model.compile(
        optimizer=keras.optimizers.AdamW(RATE, weight_decay=WEIGHT_DECAY),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    with work.timed():
        model.fit(work.loader(), epochs=task.epochs, verbose=0)
    work.updates = int(model.optimizer.iterations)
    return work.seconds
