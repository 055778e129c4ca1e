"""Compare fine-tuning strategies on the same data, over several seeds.

    python examples/strategies.py dogs --model resnet18 --strategies linear_probe,lp_ft,lora --seeds 5 --epochs 10

Without a folder, a small network learns scikit-learn's digits 0 to 4 and is transferred to 5 to 9, ten images each.
Requires `pip install "torch-finetune[demo]"`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from finetune import FineTuner, compare

Split = tuple[np.ndarray, np.ndarray]


def pretrain_on_digits() -> tuple[nn.Module, Split, Split]:
    """Return a network trained on the digits 0 to 4, and training and validation data of 5 to 9."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype("float32")  # [N, 1, 8, 8]
    known = digits.target < 5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
            nn.Flatten(),
            nn.Linear(512, 5),
        )
    FineTuner(net).fit((images[known], digits.target[known]), epochs=3, lr=3e-3, progress=False)

    X, y = images[~known], digits.target[~known] - 5
    few = np.concatenate([np.flatnonzero(y == digit)[:10] for digit in range(5)])
    rest = np.setdiff1d(np.arange(len(y)), few)
    return net, (X[few], y[few]), (X[rest], y[rest])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="folder with one subfolder per class")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--strategies", default="linear_probe,lp_ft,full_finetune", help="separated by commas")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep finished runs here, and resume from them")
    options = parser.parse_args()

    model, train, val = (options.model, options.data, None) if options.data else pretrain_on_digits()

    # A forward pass is enough for an estimate ...
    tuner = FineTuner(model) if isinstance(model, str) else FineTuner(model).replace_head(5)
    print(tuner.advise(train, val))

    # ... and training for a measurement: paired over the seeds, with confidence intervals.
    arguments: dict[str, Any] = {"seeds": options.seeds, "budget": options.epochs, "folder": options.folder}
    comparison = compare(model, train, val, strategies=options.strategies.split(","), **arguments)
    print(comparison)


if __name__ == "__main__":
    main()
