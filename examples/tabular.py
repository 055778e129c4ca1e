"""Transfer a regression model from one population to another, from tables of numbers.

    python examples/tabular.py large_hospital.csv small_hospital.csv

Each CSV file has a header and only numbers; the last column is the target. Without files, a model of the progression of
diabetes is trained on scikit-learn's older patients and transferred to the younger ones.
Requires `pip install "torch-finetune[demo]"`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_diabetes
from torch import nn

from finetune import FineTuner

Table = tuple[np.ndarray, np.ndarray]


def read(path: Path) -> Table:
    """Return the inputs [N, F] and the target [N, 1] of a CSV file of numbers."""
    values = np.loadtxt(path, delimiter=",", skiprows=1, dtype="float32", ndmin=2)
    return values[:, :-1], values[:, -1:]


def diabetes() -> tuple[Table, Table]:
    """Return scikit-learn's older and younger patients."""
    X, y = load_diabetes(return_X_y=True)
    X, y = X.astype("float32"), y.astype("float32")[:, None]
    young = X[:, 0] < np.quantile(X[:, 0], 0.3)
    return (X[~young], y[~young]), (X[young], y[young])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "tables", nargs="*", type=Path, help="a large table to train on, and a small one to transfer to"
    )
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    if len(options.tables) not in (0, 2):
        parser.error("expected two tables, or none")
    source, target = map(read, options.tables) if options.tables else diabetes()

    # Standardize with the statistics of the large table.
    mean, std, center, scale = source[0].mean(0), source[0].std(0) + 1e-6, source[1].mean(), source[1].std()
    source, target = (((X - mean) / std, (y - center) / scale) for X, y in (source, target))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(source[0].shape[1], 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1)
        )
    tuner = FineTuner(net, metrics=["mae"])
    tuner.fit(source, epochs=options.epochs, lr=3e-3, progress=False)
    before = tuner.evaluate(target)["mae"]

    # Keep the first layers and adapt the last: the small table has too few rows for more.
    tuner.freeze().fit(target, val=0.3, epochs=options.epochs, lr=1e-3, progress=False)
    print(f"mean absolute error on the small table: {before * scale:.1f} before the transfer")
    print(f"and {tuner.history[-1]['val_mae'] * scale:.1f} after it, on held-out rows")


if __name__ == "__main__":
    main()
