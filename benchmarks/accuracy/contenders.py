"""The contenders and their defaults."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from benchmarks.accuracy.trial import Task, Trial, accuracy, samples_counted

OURS = "finetune"
_TWO_THIRDS = 2 / 3


@dataclass(frozen=True)
class Contender:
    """A way to fine-tune.

    Attributes:
        module: Module of this package with a function `train(trial, **options)` that returns the trained model.
        package: Distribution whose version is recorded.
        defaults: Description of the defaults for the table.
        options: Arguments of `train`.
        own_head: Whether the head comes from the module's `head(features, num_classes)` instead of the shared one.
    """

    module: str
    package: str
    defaults: str
    options: Mapping[str, Any] = field(default_factory=dict)
    own_head: bool = False

    @property
    def ours(self) -> bool:
        """Whether the contender is finetune rather than a peer."""
        return self.module == "finetune_"

    def is_redundant(self, task: Task) -> bool:
        """Return whether the task makes the contender equal to the one without options."""
        return "unfreeze_at" in self.options and int(task.epochs * self.options["unfreeze_at"]) == 10


_LIGHTNING = (
    "Adam at 1e-3 on the head, trainable batch norm; then the backbone at a tenth of that rate, doubled every epoch"
)

CONTENDERS: dict[str, Contender] = {
    OURS: Contender(
        "finetune_",
        "torch-finetune",
        "all layers, as with `full_finetune`; AdamW, with a head rate of one over its number of features, between 1e-3 "
        "and 1e-2, and rates from a third of that in the stage before to a hundredth in the first; weight decay 0.01, "
        "5 % warm-up, cosine",
    ),
    "former_rates": Contender(
        "finetune_",
        "torch-finetune",
        "finetune with `lr=(1e-4, 1e-3)`, its default before this benchmark",
        {"lr": (1e-4, 1e-3)},
    ),
    "linear_probe": Contender(
        "finetune_", "torch-finetune", "finetune's strategy of this name", {"strategy": "linear_probe"}
    ),
    "lp_ft": Contender("finetune_", "torch-finetune", "finetune's strategy of this name", {"strategy": "lp_ft"}),
    "gradual_unfreezing": Contender(
        "finetune_", "torch-finetune", "finetune's strategy of this name", {"strategy": "gradual_unfreezing"}
    ),
    "fastai": Contender(
        "fastai",
        "fastai",
        "`Learner.fine_tune`: one epoch of the head (with trainable batch norm) at 2e-3, then all layers, at 1e-5 for "
        "the backbone and 1e-3 for the head; fastai's Adam with decoupled weight decay 0.01, one-cycle",
    ),
    "fastai_head": Contender(
        "fastai",
        "fastai",
        "the same with the head of `vision_learner`: two linear layers with batch norm and dropout",
        own_head=True,
    ),
    "lightning": Contender("lightning", "lightning", f"`BackboneFinetuning`: {_LIGHTNING}, from epoch 10 on"),
    "lightning_scaled": Contender(
        "lightning",
        "lightning",
        f"the same with `unfreeze_backbone_at_epoch` at two thirds of the budget, unless that is 10: {_LIGHTNING}",
        {"unfreeze_at": _TWO_THIRDS},
    ),
    "huggingface": Contender(
        "huggingface",
        "transformers",
        "`TrainingArguments`: all layers, AdamW at 5e-5, no weight decay, linear to zero, gradients clipped at 1",
    ),
    "plain_sgd": Contender(
        "plain",
        "torch",
        "PyTorch's tutorial on transfer learning: all layers, SGD at 1e-3 with momentum 0.9, divided by ten every 7 "
        "epochs",
        {"optimizer": "sgd"},
    ),
    "plain_adam": Contender(
        "plain",
        "torch",
        "the same loop with the defaults of `torch.optim.Adam`: all layers at 1e-3",
        {"optimizer": "adam"},
    ),
}


def run(name: str, task: Task, source: nn.Module, data: Any, num_classes: int) -> dict[str, Any]:
    """Train a contender on a task and return its row.

    Args:
        name: Name of the contender.
        task: Settings of the trial.
        source: Pretrained network. It is not modified.
        data: Object with `train` and `test`, each images float32 [N, C, H, W] and labels int64 [N].
        num_classes: Number of target classes.

    Raises:
        ImportError: If the contender is not installed.
    """
    contender = CONTENDERS[name]
    module = import_module(f"benchmarks.accuracy.{contender.module}")
    head = (lambda features: module.head(features, num_classes)) if contender.own_head else None
    trial = Trial(task, source, data, num_classes, head)
    torch.manual_seed(task.seed)
    start = time.perf_counter()
    with samples_counted(trial.head) as seen:
        model = module.train(trial, **contender.options)
    seconds = time.perf_counter() - start
    return {
        "contender": name,
        **asdict(task),
        "accuracy": accuracy(model, data.test),
        "wrong": "" if seen[0] == trial.samples else f"trained on {seen[0]} samples instead of {trial.samples}",
        "seconds": round(seconds, 3),
        "version": _version(contender.package),
    }


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""
