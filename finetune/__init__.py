"""Transfer learning for PyTorch in three lines.

from finetune import FineTuner

tuner = FineTuner("resnet18").replace_head(120)
tuner.fit("dogs/train", "dogs/val", epochs=5)
tuner.save_checkpoint("dogs.safetensors")
"""

from finetune import callbacks, strategies
from finetune.advice.judgement import Advice
from finetune.comparison.advise import advise
from finetune.comparison.compare import compare
from finetune.comparison.results import Comparison
from finetune.data.preprocessing.pictures import Preprocessing
from finetune.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    FineTuneError,
    HeadError,
    NonFiniteError,
    PatternError,
)
from finetune.soup import greedy_soup
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
    "Comparison",
    "DataError",
    "FineTuneError",
    "FineTuner",
    "HeadError",
    "History",
    "LayerDecay",
    "NonFiniteError",
    "PatternError",
    "Phase",
    "Preprocessing",
    "StepOutput",
    "advise",
    "callbacks",
    "compare",
    "greedy_soup",
    "strategies",
]
