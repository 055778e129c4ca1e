"""The kinds of task, and their losses."""

from __future__ import annotations

from finetune.training.tasks.inference import (
    check_names,
    has_several,
    infer_task,
    is_custom,
    numbers_are_targets,
    task_of_kind,
)
from finetune.training.tasks.losses import Loss, as_labels, class_indices, option_of, takes_probabilities, tried
from finetune.training.tasks.task import LOG_PROBABILITIES, LOGITS, PROBABILITIES, Task, number_of_classes

__all__ = [
    "LOGITS",
    "LOG_PROBABILITIES",
    "PROBABILITIES",
    "Loss",
    "Task",
    "as_labels",
    "check_names",
    "class_indices",
    "has_several",
    "infer_task",
    "is_custom",
    "number_of_classes",
    "numbers_are_targets",
    "option_of",
    "takes_probabilities",
    "task_of_kind",
    "tried",
]
