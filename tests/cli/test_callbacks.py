"""Options for arguments and callbacks: all that Python can be told in words, the command line can be told."""

from __future__ import annotations

import inspect
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from finetune import FineTuner, callbacks
from finetune.cli.callbacks import LOGGERS, callbacks_of, loggers_of
from finetune.cli.train import train
from finetune.errors import ArgumentError

OPTIONS = inspect.signature(train).parameters

# Arguments by options of other names.
RENAMED = {
    "train": "data",
    "metrics": "metric",
    "gradient_accumulation_steps": "accumulate",
    "resume_from": "resume",  # from --checkpoint-dir
}
# Arguments that have no option, and the reason.
WITHOUT = {
    "preprocessing": "an object; the weights bring their own",
    "callbacks": "objects; each built-in one has options of its own",
    "distributed": "--nproc starts the processes, and they join each other",
}
# Options of `train` with the callback that each asks for.
CALLBACKS: dict[str, tuple[Any, str]] = {
    "class_weights": (True, "ClassWeights"),
    "mixup": (0.2, "Mixup"),
    "cutmix": (1.0, "Mixup"),
    "ema": (0.9, "EMA"),
    "swa": (0.5, "SWA"),
    "l2sp": (0.1, "L2SP"),
    "early_stopping": (2, "EarlyStopping"),
    "skip_non_finite": (3, "SkipNonFinite"),
    "report": (Path("report.html"), "Report"),
}
TRACKERS = {"csv": "CSVLogger", "tensorboard": "TensorBoard", "wandb": "WeightsAndBiases", "mlflow": "MLflow"}
# Callbacks that no option asks for, and the reason.
NOT_ASKED_FOR = {
    "Callback": "a base class",
    "Logger": "a base class",
    "ModelCheckpoint": "fit adds it for --checkpoint-dir",
}


def test_every_argument_is_an_option_or_has_a_reason() -> None:
    given = {*inspect.signature(FineTuner).parameters, *inspect.signature(FineTuner.fit).parameters} - {"self"}
    missing = {name for name in given if RENAMED.get(name, name) not in OPTIONS}
    assert missing == WITHOUT.keys()
    assert RENAMED.keys() <= given


def test_every_callback_is_an_option_or_has_a_reason() -> None:
    asked_for = {name for _, name in CALLBACKS.values()} | {*TRACKERS.values()}
    assert asked_for | NOT_ASKED_FOR.keys() == {*callbacks.__all__}
    assert CALLBACKS.keys() <= OPTIONS.keys()
    assert (*TRACKERS,) == LOGGERS


@pytest.mark.parametrize("option", [None, *CALLBACKS])
def test_an_option_asks_for_its_callback(option: str | None) -> None:
    options = {name: parameter.default for name, parameter in OPTIONS.items()} | {"out": Path("m.safetensors")}
    wanted: list[str] = []
    if option is not None:
        options[option], name = CALLBACKS[option]
        wanted = [name]
    assert [type(callback).__name__ for callback in callbacks_of(options)] == wanted


def test_values_reach_their_callbacks() -> None:
    options = {name: parameter.default for name, parameter in OPTIONS.items()} | {"out": Path("m.safetensors")}
    given = {name: value for name, (value, _) in CALLBACKS.items()}
    made = {type(callback).__name__: callback for callback in callbacks_of(options | given)}
    found: Any = [
        (made["Mixup"].alpha, made["Mixup"].cutmix), made["EMA"].decay, made["SWA"].start, made["L2SP"].strength,
        made["EarlyStopping"].patience, made["SkipNonFinite"].limit, made["Report"].path,
    ]  # type: ignore[attr-defined]  # fmt: skip
    assert found == [(0.2, 1.0), 0.9, 0.5, 0.1, 2, 3, Path("report.html")]


PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_writes_beside_the_output_or_to_its_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in PACKAGES and find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    monkeypatch.chdir(tmp_path)
    beside, placed = loggers_of([name, f"{name}:place"], Path("runs/dogs.safetensors"))
    attribute = {"csv": "path", "tensorboard": "folder", "wandb": "project", "mlflow": "experiment"}[name]
    default = {"csv": Path("runs/dogs.csv"), "tensorboard": Path("runs/runs/dogs"), "wandb": None, "mlflow": "Default"}
    assert type(beside).__name__ == TRACKERS[name]
    assert (getattr(beside, attribute), str(getattr(placed, attribute))) == (default[name], "place")


def test_a_logger_that_does_not_exist_is_said() -> None:
    with pytest.raises(ArgumentError, match=re.escape("no logger 'tensorbord'. Did you mean 'tensorboard'?")):
        loggers_of(["tensorbord:runs"], Path("m.safetensors"))
