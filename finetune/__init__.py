"""Transfer learning for PyTorch in three lines.

from finetune import FineTuner

tuner = FineTuner("resnet18").replace_head(120)
tuner.fit("dogs/train", "dogs/val", epochs=5)
tuner.save_checkpoint("dogs.safetensors")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune import callbacks, strategies
    from finetune.advice.advice import Advice
    from finetune.comparison.advise import advise
    from finetune.comparison.compare import compare
    from finetune.comparison.comparison import Comparison
    from finetune.comparison.soup import greedy_soup
    from finetune.data.preprocessing.images import Preprocessing
    from finetune.data.tables.table import Table
    from finetune.data_check.data_check import DataCheck
    from finetune.errors import (
        ArgumentError,
        CheckpointError,
        DataError,
        DistributedError,
        ExportError,
        FineTuneError,
        HeadError,
        NonFiniteError,
        PatternError,
    )
    from finetune.export.export import Export
    from finetune.interpret.classification import Classification
    from finetune.interpret.heatmaps import Heatmaps
    from finetune.interpret.interpretation import Interpretation
    from finetune.training.history import History
    from finetune.training.metrics import StepOutput
    from finetune.training.optim.phases import Phase
    from finetune.training.optim.rates import LayerDecay
    from finetune.tuner import FineTuner

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "ArgumentError",
    "CheckpointError",
    "Classification",
    "Comparison",
    "DataCheck",
    "DataError",
    "DistributedError",
    "Export",
    "ExportError",
    "FineTuneError",
    "FineTuner",
    "HeadError",
    "Heatmaps",
    "History",
    "Interpretation",
    "LayerDecay",
    "NonFiniteError",
    "PatternError",
    "Phase",
    "Preprocessing",
    "StepOutput",
    "Table",
    "advise",
    "callbacks",
    "compare",
    "greedy_soup",
    "strategies",
]

_HOMES = {
    "Advice": "finetune.advice.advice",
    "Classification": "finetune.interpret.classification",
    "Comparison": "finetune.comparison.comparison",
    "DataCheck": "finetune.data_check.data_check",
    "Export": "finetune.export.export",
    "FineTuner": "finetune.tuner",
    "Heatmaps": "finetune.interpret.heatmaps",
    "History": "finetune.training.history",
    "Interpretation": "finetune.interpret.interpretation",
    "LayerDecay": "finetune.training.optim.rates",
    "Phase": "finetune.training.optim.phases",
    "Preprocessing": "finetune.data.preprocessing.images",
    "StepOutput": "finetune.training.metrics",
    "Table": "finetune.data.tables.table",
    "advise": "finetune.comparison.advise",
    "compare": "finetune.comparison.compare",
    "greedy_soup": "finetune.comparison.soup",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `finetune --help` does not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("callbacks", "strategies"):
        return import_module(f"finetune.{name}")
    value = getattr(import_module(_HOMES.get(name, "finetune.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
