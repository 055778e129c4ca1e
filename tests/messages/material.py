"""Models, data and words for the cases: each provokes a message, follows its advice, and returns its text."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from finetune import Comparison, FineTuner, Preprocessing, compare
from finetune.errors import FineTuneError

Case = Callable[[Path], str]
CASES: dict[str, Case] = {}

_generator = torch.Generator().manual_seed(0)
y = torch.arange(36) % 3
X = torch.randn(3, 4, generator=_generator)[y] * 3 + torch.randn(36, 4, generator=_generator) / 4
ITEMS = [(X[i], int(y[i])) for i in range(len(X))]
IMAGES = Preprocessing(crop_size=8, resize_size=None, mean=(0.5,) * 3, std=(0.5,) * 3)


def case(*fragments: str) -> Callable[[Case], Case]:
    """Register a function that provokes the messages with these fragments, follows them, and returns their text."""

    def register(function: Case) -> Case:
        CASES.update(dict.fromkeys(fragments, function))
        return function

    return register


def tuner(outputs: int = 3, **settings: Any) -> FineTuner:
    torch.manual_seed(0)
    return FineTuner(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs)), device="cpu", **settings)


def of_images(outputs: int = 2) -> FineTuner:
    layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs)
    return FineTuner(nn.Sequential(*layers), device="cpu", preprocessing=IMAGES)


def fit(model: FineTuner, data: Any = (X, y), val: Any = None, **arguments: Any) -> FineTuner:
    model.fit(data, val, progress=False, **arguments)
    return model


def compared(val: Any = (X, y), model: Any = None, **arguments: Any) -> Comparison:
    given = {"strategies": "linear_probe", "seeds": 1, "budget": 1, "device": "cpu", "progress": False, **arguments}
    return compare(model or tuner().model, (X, y), val, **given)


def masked(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a loss that leaves out the targets of -1."""
    known = targets != -1
    return nn.functional.binary_cross_entropy_with_logits(outputs[known], targets[known].float())


def image(path: Path, level: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (level, 50, 50)).save(path)
    return path


def folder(path: Path, *names: str, count: int = 5) -> Path:
    for level, name in enumerate(names or ("cat", "dog")):
        for index in range(count):
            image(path / name / f"{index}.png", 60 * level + 40)
    return path


def error(action: Callable[[], Any]) -> str:
    """Return the message of the error that an action raises."""
    with pytest.raises(FineTuneError) as raised:
        action()
    message = str(raised.value)
    del raised  # its traceback refers to it, and until that cycle is collected, to a loader's processes
    return message


def warned(action: Callable[[], Any]) -> str:
    """Return the message of the warning that an action gives."""
    with pytest.warns(UserWarning) as given:  # noqa: PT030
        action()
    return str(given[0].message)


def logged(action: Callable[[], Any]) -> str:
    """Return what an action logs."""
    lines: list[str] = []
    logger, handler = logging.getLogger("finetune"), logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        action()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    return "\n".join(lines)


def tried(model: FineTuner, data: Any = (X, y)) -> str:
    """Return what a model learns its task to be."""
    return str(fit(model, data).task.why)


def advised(pattern: str, text: str) -> str:
    """Return the part of a message that the group of a pattern captures."""
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in {text}"
    return found[1]
