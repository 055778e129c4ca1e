"""Search learning rate, weight decay and strategy with Optuna, and prune trials that fall behind.

    python examples/optuna_search.py dogs --model resnet18 --trials 30 --epochs 10 --storage sqlite:///optuna.db

Without a folder, a small network learns scikit-learn's digits. With a storage, the search continues where it ended.
Requires `pip install optuna "torch-finetune[demo]"`.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn

from finetune import FineTuner
from finetune.callbacks import Callback


class Pruning(Callback):
    """Report a value of each epoch to a trial, and end the trial if it falls behind the others."""

    only_watches = True

    def __init__(self, trial: optuna.Trial, monitor: str) -> None:
        self.trial, self.monitor = trial, monitor

    def on_epoch_end(self, run: Any) -> None:
        self.trial.report(run.row[self.monitor], step=run.epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {run.epoch}")


def small_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="folder with one subfolder per class")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--storage", help="database that keeps the trials, such as sqlite:///optuna.db")
    options = parser.parse_args()
    logging.getLogger("finetune").setLevel(logging.WARNING)

    digits = load_digits()
    few = (digits.data[:600] / 16).astype("float32"), digits.target[:600]

    def objective(trial: optuna.Trial) -> float:
        tuner = FineTuner(
            options.model if options.data else small_network(),
            weight_decay=trial.suggest_float("weight_decay", 1e-4, 0.1, log=True),
        )
        history = tuner.fit(
            options.data or few,
            val=0.2,  # the same split in every trial, because the seed is
            epochs=options.epochs,
            strategy=trial.suggest_categorical("strategy", ["linear_probe", "full_finetune"]),
            lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True),
            callbacks=[Pruning(trial, "val_accuracy")],
            progress=False,
        )
        return float(history[-1]["val_accuracy"])

    study = optuna.create_study(
        study_name="finetune",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
        storage=options.storage,
        load_if_exists=True,
    )
    study.optimize(objective, n_trials=options.trials)

    pruned = study.get_trials(states=[optuna.trial.TrialState.PRUNED])
    print(f"{len(study.trials)} trials, {len(pruned)} of them pruned")
    print(f"best val_accuracy {study.best_value:.4f} with {study.best_params}")


if __name__ == "__main__":
    main()
