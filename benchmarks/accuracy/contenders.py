"""Who takes part, and what of each is its own default."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from benchmarks.accuracy.work import Task, Work, accuracy, samples_counted

OURS = "finetune"
_TWO_THIRDS = 2 / 3


@dataclass(frozen=True)
class Contender:
    """A way to fine-tune.

    Attributes:
        module: of this package, with `train(work, **options)`, which returns the trained model.
        package: whose version a row names.
        defaults: what it does by itself, for the table.
        own_head: whether its head is `head(features, num_classes)` of the module, and not the one that all have.
    """

    module: str
    package: str
    defaults: str
    options: Mapping[str, Any] = field(default_factory=dict)
    own_head: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is finetune, and so no peer."""
        return self.module == "finetune_"

    def is_double(self, task: Task) -> bool:
        """Tell whether it would do the same as the contender of that name without options."""
        return "unfreeze_at" in self.options and int(task.epochs * self.options["unfreeze_at"]) == 10


_LIGHTNING = "Adam at 1e-3 on the head, batch norm trains; the backbone joins at a tenth of that, doubled every epoch"

CONTENDERS: dict[str, Contender] = {
    OURS: Contender(
        "finetune_",
        "torch-finetune",
        "all trains, as with `full_finetune`; AdamW, the head's rate one over its number of features within 1e-3 and "
        "1e-2, from a third of it in the stage before to a hundredth in the first; weight decay 0.01, 5 % warm-up, "
        "cosine",
    ),
    "former_rates": Contender(
        "finetune_",
        "torch-finetune",
        "finetune with `lr=(1e-4, 1e-3)`, its default until this was measured",
        {"lr": (1e-4, 1e-3)},
    ),
    "linear_probe": Contender(
        "finetune_", "torch-finetune", "finetune's strategy of that name", {"strategy": "linear_probe"}
    ),
    "lp_ft": Contender("finetune_", "torch-finetune", "finetune's strategy of that name", {"strategy": "lp_ft"}),
    "gradual_unfreezing": Contender(
        "finetune_", "torch-finetune", "finetune's strategy of that name", {"strategy": "gradual_unfreezing"}
    ),
    "fastai": Contender(
        "fastai",
        "fastai",
        "`Learner.fine_tune`: one epoch of the head (batch norm trains) at 2e-3, then all, 1e-5 for the body and 1e-3 "
        "for the head; fastai's Adam with decoupled weight decay 0.01, one-cycle",
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
        f"the same with `unfreeze_backbone_at_epoch` at two thirds of the budget, where that is not 10: {_LIGHTNING}",
        {"unfreeze_at": _TWO_THIRDS},
    ),
    "huggingface": Contender(
        "huggingface",
        "transformers",
        "`TrainingArguments`: all trains, AdamW at 5e-5, no weight decay, linear to zero, gradients clipped at 1",
    ),
    "plain_sgd": Contender(
        "plain",
        "torch",
        "PyTorch's tutorial on transfer learning: all trains, SGD at 1e-3 with momentum 0.9, a tenth of it every 7 "
        "epochs",
        {"optimizer": "sgd"},
    ),
    "plain_adam": Contender(
        "plain", "torch", "the same loop with `torch.optim.Adam` as it comes: all trains at 1e-3", {"optimizer": "adam"}
    ),
}


def run(name: str, task: Task, source: nn.Module, data: Any, num_classes: int) -> dict[str, Any]:
    """Return the row of one contender on one task.

    Args:
        source: the pretrained network, which stays as it is.
        data: with `train` and `test`, each pictures float32 [N, C, H, W] and labels int64 [N].

    Raises:
        ImportError: the contender is not installed.
    """
    contender = CONTENDERS[name]
    module = import_module(f"benchmarks.accuracy.{contender.module}")
    head = (lambda features: module.head(features, num_classes)) if contender.own_head else None
    work = Work(task, source, data, num_classes, head)
    torch.manual_seed(task.seed)
    start = time.perf_counter()
    with samples_counted(work.head) as seen:
        model = module.train(work, **contender.options)
    seconds = time.perf_counter() - start
    return {
        "contender": name,
        **asdict(task),
        "accuracy": accuracy(model, data.test),
        "wrong": "" if seen[0] == work.samples else f"learned from {seen[0]} samples of {work.samples}",
        "seconds": round(seconds, 3),
        "version": _version(contender.package),
    }


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""
