"""The public surface, written out: growth is a decision, every name is documented, and importing is light."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import finetune
from finetune import FineTuner, callbacks, errors

ROOT = Path(__file__).resolve().parent.parent

NAMES = [
    "Advice", "ArgumentError", "CheckpointError", "Classification", "Comparison", "DataCheck", "DataError",
    "DistributedError", "Export", "ExportError", "FineTuneError", "FineTuner", "HeadError", "Heatmaps", "History",
    "Interpretation", "LayerDecay", "NonFiniteError", "PatternError", "Phase", "Preprocessing", "StepOutput", "Table",
    "advise", "callbacks", "compare", "greedy_soup", "strategies",
]  # fmt: skip

METHODS = {
    "advise": ["train", "val", "*", "samples", "batch_size"],
    "calibrate": ["val", "*", "batch_size"],
    "check_data": ["train", "val", "*", "samples", "batch_size"],
    "classify": ["data", "*", "top", "threshold", "reject", "batch_size", "tta"],
    "evaluate": ["data", "*", "batch_size"],
    "fit": [
        "train", "val", "*", "epochs", "strategy", "lr", "schedule", "batch_size", "augment", "augment_views", "cache",
        "callbacks", "checkpoint_dir", "resume_from", "resume_changed", "skip_corrupt", "progress",
    ],
    "export": ["path", "format", "*", "verify", "quantize", "tolerance", "batch_size"],
    "find_lr": ["train", "*", "lr", "batch_size", "augment", "steps"],
    "freeze": ["pattern"],
    "heatmaps": ["data", "*", "of", "layer", "batch_size"],
    "interpret": ["data", "*", "heatmaps", "batch_size"],
    "load_checkpoint": ["path", "model", "**settings"],
    "predict": ["data", "*", "batch_size", "tta"],
    "predict_proba": ["data", "*", "batch_size", "tta"],
    "predict_step": ["batch"],
    "push_to_hub": ["repo", "*", "private", "token", "message"],
    "replace_head": ["n", "*", "head", "layer", "example"],
    "report": ["path", "data", "*", "train", "batch_size"],
    "save_checkpoint": ["path", "*", "card", "sharded"],
    "summary": ["input_size", "*", "depth"],
    "training_step": ["batch"],
    "unfreeze": ["names"],
    "validation_step": ["batch"],
}  # fmt: skip

CONSTRUCTOR = [
    "model", "*", "weights", "in_channels", "preprocessing", "loss", "metrics", "optimizer", "weight_decay",
    "max_grad_norm", "gradient_accumulation_steps", "device", "precision", "compile", "seed", "distributed",
]  # fmt: skip

PROPERTIES = ["classes", "head", "history", "inner", "loss", "model", "network", "preprocessing", "task"]
ATTRIBUTES = ["device", "precision", "settings"]
CALLBACKS = [
    "CSVLogger", "Callback", "ClassWeights", "EMA", "EarlyStopping", "L2SP", "Logger", "MLflow", "Mixup",
    "ModelCheckpoint", "Report", "SWA", "SkipNonFinite", "TensorBoard", "WeightsAndBiases",
]  # fmt: skip


def written(function: Any) -> list[str]:
    """Return a signature as it is written: `*` before what is keyword-only."""
    names: list[str] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in names:
            names.append("*")
        names.append(f"**{name}" if parameter.kind is parameter.VAR_KEYWORD else name)
    return [name for name in names if name != "self"]


def test_the_names_of_the_package() -> None:
    assert sorted(finetune.__all__) == finetune.__all__ == NAMES
    assert all(hasattr(finetune, name) for name in NAMES)


def test_the_verbs_of_a_tuner_and_their_arguments() -> None:
    methods = {
        name: written(getattr(FineTuner, name))
        for name in dir(FineTuner)
        if not name.startswith("_") and callable(getattr(FineTuner, name))
    }
    assert methods == METHODS
    assert written(FineTuner) == CONSTRUCTOR


def test_the_attributes_of_a_tuner() -> None:
    properties = {name for name in dir(FineTuner) if isinstance(getattr(FineTuner, name), property)}
    assert sorted(name for name in properties if not name.startswith("_")) == PROPERTIES
    tuner = FineTuner(nn.Sequential(nn.Linear(2, 2)), device="cpu")
    assert sorted(name for name in vars(tuner) if not name.startswith("_")) == ATTRIBUTES


def test_the_callbacks() -> None:
    public = {name for name in dir(callbacks) if isinstance(getattr(callbacks, name), type)}
    assert sorted(name for name in public if issubclass(getattr(callbacks, name), callbacks.Callback)) == CALLBACKS


def test_every_error_is_ours_and_a_fitting_builtin() -> None:
    bases = {
        name: error.__bases__[1].__name__
        for name, error in vars(errors).items()
        if isinstance(error, type) and issubclass(error, errors.FineTuneError) and error is not errors.FineTuneError
    }
    assert bases == {
        "ArgumentError": "ValueError",
        "PatternError": "ValueError",
        "HeadError": "ValueError",
        "DataError": "ValueError",
        "CheckpointError": "RuntimeError",
        "DistributedError": "RuntimeError",
        "ExportError": "RuntimeError",
        "NonFiniteError": "ArithmeticError",
    }


def public_callables() -> Iterator[tuple[str, Any]]:
    for name in NAMES:
        value = getattr(finetune, name)
        if isinstance(value, type) and issubclass(value, BaseException):
            continue
        if callable(value):
            yield name, value
        for inner in dir(value):
            member = getattr(value, inner)
            ours = getattr(member, "__module__", "") or ""
            error = isinstance(member, type) and issubclass(member, BaseException)
            if not inner.startswith("_") and callable(member) and ours.startswith("finetune") and not error:
                yield f"{name}.{inner}", member


# A boolean that is the only optional argument of a small class, or of one with names as Keras has them.
POSITIONAL = {"callbacks.EarlyStopping": {"restore_best"}}


def test_trap_41_no_boolean_is_positional() -> None:
    seen = 0
    for name, function in public_callables():
        for parameter in inspect.signature(function).parameters.values():
            seen += 1
            boolean = isinstance(parameter.default, bool) or "bool" in str(parameter.annotation).split("[")[0]
            if parameter.kind is not parameter.KEYWORD_ONLY and parameter.name not in POSITIONAL.get(name, set()):
                assert not boolean, f"{name}: {parameter.name} is a positional boolean"
    assert seen > 50


@pytest.mark.parametrize("verb", ["fit", "evaluate", "predict", "replace_head"])
def test_trap_41_everything_past_the_data_is_keyword_only(verb: str) -> None:
    tuner = FineTuner(nn.Sequential(nn.Linear(2, 2)), device="cpu")
    with pytest.raises(errors.ArgumentError, match="positional"):
        getattr(tuner, verb)(2, 3, 4)


def test_importing_has_no_side_effect() -> None:
    script = """
        import logging, random, signal, sys, warnings
        import numpy, torch
        import rich.style  # draws a number from `random` at its import

        def state():
            return (
                torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
                warnings.filters[:], logging.root.handlers[:], logging.root.level, logging.root.disabled,
                torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
                torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
                torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision(),
                torch.cuda.is_initialized(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
                torch.multiprocessing.get_start_method(allow_none=True), torch.hub.get_dir(),
            )

        before, loaded = state(), set(sys.modules)
        import finetune
        import finetune.callbacks
        changed = [pair for pair in zip(before, state()) if pair[0] != pair[1]]
        assert not changed, changed
        optional = {"matplotlib.pyplot", "scipy", "sklearn", "typer", "pyarrow", "tensorboard", "torchmetrics"}
        optional &= set(sys.modules) - loaded
        assert not optional, optional
    """
    done = subprocess.run(
        [sys.executable, "-W", "error:::finetune", "-c", textwrap.dedent(script)],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


# Names under finetune.strategies and objects that verbs, callbacks and attributes hand out.
STRATEGIES = [
    "from_scratch", "full_finetune", "gradual_unfreezing", "last_stage", "linear_probe", "lora", "lp_ft", "surgical",
]  # fmt: skip
HANDED_OUT = ["Evidence", "RateSuggestion", "Run", "Summary", "Task"]

REFERENCE = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
DIRECTIVES = sorted(
    set(re.findall(r"^\.\. auto(?:class|exception|function):: (finetune\.[\w.]+)", REFERENCE, re.MULTILINE))
)


def handed_out() -> dict[str, Any]:
    """Return the classes of objects that users get without importing them, as found in the reference."""
    found = {name.rpartition(".")[2]: pydoc.locate(name) for name in DIRECTIVES if name.count(".") > 2}
    return {name: value for name, value in found.items() if name in HANDED_OUT}


def documented() -> dict[str, Any]:
    """Return everything that the reference describes, by the name under which a user finds it."""
    modules = ("callbacks", "strategies")
    found = {name: getattr(finetune, name) for name in NAMES if name not in modules} | handed_out()
    found |= {f"callbacks.{name}": getattr(callbacks, name) for name in callbacks.__all__}
    return found | {f"strategies.{name}": getattr(finetune.strategies, name) for name in STRATEGIES}


def public_methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield the documented methods that a class defines itself."""
    for name in vars(cls):
        if not name.startswith("_") and callable(getattr(cls, name)) and inspect.getdoc(getattr(cls, name)):
            yield name, getattr(cls, name)


def test_the_strategies() -> None:
    assert sorted({*finetune.strategies.STRATEGIES, "surgical"}) == STRATEGIES
    assert sorted(handed_out()) == HANDED_OUT


def test_every_public_name_stands_in_the_reference() -> None:
    targets = [pydoc.locate(name) for name in DIRECTIVES]
    assert None not in targets, f"not found: {[name for name in DIRECTIVES if pydoc.locate(name) is None]}"
    (members,) = re.findall(r"automodule:: finetune\.strategies\n +:members: (.*)", REFERENCE)
    assert sorted(members.split(", ")) == STRATEGIES
    missing = [name for name, value in documented().items() if value not in targets and "strategies." not in name]
    assert not missing
    verbs = re.findall(r"auto(?:method|property):: finetune\.FineTuner\.(\w+)", REFERENCE)
    assert not {*METHODS, *PROPERTIES} - {*verbs}


def test_every_public_name_has_an_example() -> None:
    missing = []
    for name, value in documented().items():
        if ">>>" not in (value.__doc__ or ""):
            missing.append(name)
        hooks = name == "Run" or name.startswith("callbacks.")  # shown by the example of the class
        if isinstance(value, type) and not hooks:
            missing += [f"{name}.{key}" for key, method in public_methods(value) if ">>>" not in method.__doc__]
    assert not missing, f"{len(missing)} without a >>> example: {', '.join(missing)}"
