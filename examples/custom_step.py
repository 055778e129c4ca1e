"""Train with a custom loss: the focal loss, for rare classes (arXiv 1708.02002).

    python examples/custom_step.py defects/train --model resnet50 --gamma 2

Without a folder, the script trains a small network on generated points of which one in ten is positive.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune import FineTuner, StepOutput


class FocalLossTuner(FineTuner):
    """A `FineTuner` whose loss down-weights samples that are already classified well."""

    gamma = 2.0

    def training_step(self, batch: Any) -> StepOutput:
        inputs, targets = batch
        logits = self.model(inputs)
        log_p = F.log_softmax(logits, 1).gather(1, targets[:, None])[:, 0]  # [N]
        loss = -((1 - log_p.exp()) ** self.gamma * log_p).mean()
        return StepOutput(loss, logits, targets)  # with logits and targets, training metrics are computed too

    validation_step = training_step


def generate_points(count: int = 512) -> tuple[Tensor, Tensor]:
    """Return points [N, 8] and labels, of which about one in ten is 1."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(count, 8, generator=generator)
    return X, (X[:, :3].sum(1) > 2.2).long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="folder with one subfolder per class")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--gamma", type=float, default=2.0, help="focusing parameter; 0 is cross-entropy")
    options = parser.parse_args()

    if options.data is None:
        data: Any = generate_points()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
        tuner = FocalLossTuner(net, metrics=["accuracy", "f1"])
    else:
        data = options.data
        count = sum(folder.is_dir() for folder in options.data.iterdir())
        tuner = FocalLossTuner(options.model, metrics=["accuracy", "f1"]).replace_head(count).freeze()

    # Precision, accumulation, clipping, schedules, callbacks and history work around the step.
    tuner.gamma = options.gamma
    history = tuner.fit(data, val=0.2, epochs=options.epochs)
    print({name: round(history[-1][name], 3) for name in ("val_loss", "val_accuracy", "val_f1")})


if __name__ == "__main__":
    main()
