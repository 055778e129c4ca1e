"""The checks of a model through the public `FineTuner`, independent of its family."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.coverage.family import SAMPLES
from finetune import FineTuner
from finetune.errors import HeadError
from finetune.model.stages import stages

CHECKS = {
    "head": "head replaced",
    "shape": "output shape right",
    "frozen": "only the head moved, all else bit-identical",
    "loaded": "saved and loaded equal",
    "stages": "stages complete",
    "truth": "number of classes updated in model and config",
    "own_saving": "`save_pretrained` round trip equal",
}
RATE = 0.1
CLASSES = 7  # unlike any default configuration


class MissError(Exception):
    """A check failed."""


@dataclass
class Findings:
    """The results of the checks on one model.

    Attributes:
        checks: Result of each check: True, False, or None if it does not apply or was not reached.
        causes: Error message of each failed check.
        headless: Whether the library found no head.
        told: Whether the model needed `example_input_array`.
        parameters: Number of parameters.
        stages: Number of stages.
        seconds: Duration of each check.
    """

    checks: dict[str, bool | None] = field(default_factory=lambda: dict.fromkeys(CHECKS))
    causes: dict[str, str] = field(default_factory=dict)
    headless: bool = False
    told: bool = False
    parameters: int = 0
    stages: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Record the outcome and the duration of the block, catching any exception."""
        start = time.perf_counter()
        self.checks[name] = False
        try:
            yield
            self.checks[name] = True
        except Exception as error:  # any error of a library, a model or a check is a finding
            kind = "" if isinstance(error, MissError) else f"{type(error).__name__}: "
            self.causes[name] = (kind + " ".join(str(error).split()))[:400]
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)


class Labelled(Dataset[Any]):
    """A dataset of the samples of batched inputs, a tensor or a dict of tensors, each with its own label."""

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if isinstance(self.inputs, dict):
            return {name: tensor[index] for name, tensor in self.inputs.items()}, index
        return self.inputs[index], index


def check_model(model: nn.Module, inputs: Any, folder: Path | None = None) -> Findings:
    """Run every check on a model.

    If the library cannot guess the inputs of the model, they are set as `example_input_array`, as a user would do,
    and the findings record it.

    Args:
        model: Model to check. It is modified.
        inputs: Batch of two samples.
        folder: Folder for temporary checkpoints, by default the system's.
    """
    found = Findings(parameters=sum(parameter.numel() for parameter in model.parameters()))
    untouched = copy.deepcopy(model)
    data = Labelled(inputs)
    with found.check("head"):
        tuner = _with_new_head(model, inputs, found)
    if not found.checks["head"]:
        return found
    heads = tuner.network.required_heads()
    with found.check("frozen"):
        tuner.freeze()
        before = _clones(head for name in heads for head in model.get_submodule(name).parameters())
        tuner.fit(data, epochs=1, batch_size=SAMPLES, lr=RATE, schedule="constant", augment=False, progress=False)
        _moved(before, model, heads)
        _identical(model, untouched, heads)
    outputs = None
    with found.check("shape"):
        outputs = tuner.predict(data, batch_size=SAMPLES)
        if tuple(outputs.shape) != (SAMPLES, CLASSES):
            raise MissError(f"outputs of shape {list(outputs.shape)}, expected {[SAMPLES, CLASSES]}")
    with found.check("stages"):
        found.stages = _complete_stages(model, heads)
    with found.check("truth"):
        _truth(model)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with found.check("loaded"):
            path = tuner.save_checkpoint(Path(scratch) / "model.safetensors")
            _overwrite(untouched)  # otherwise a load without effect would pass
            loaded = FineTuner.load_checkpoint(path, untouched)
            path.unlink()
            _equal_states(model, untouched)
            if outputs is not None and not _same(loaded.predict(data, batch_size=SAMPLES), outputs):
                raise MissError("the loaded model predicts differently")
        del untouched
        if callable(getattr(model, "save_pretrained", None)) and hasattr(type(model), "from_pretrained"):
            with found.check("own_saving"):
                _own_round_trip(model, Path(scratch) / "own")
    return found


def _with_new_head(model: nn.Module, inputs: Any, found: Findings) -> FineTuner:
    try:
        return FineTuner(model, device="cpu").replace_head(CLASSES)
    except HeadError as error:
        found.headless = True
        if "accepted none of the inputs" not in str(error) or hasattr(model, "example_input_array"):
            raise
    model.example_input_array = inputs  # the convention of Lightning's modules
    tuner = FineTuner(model, device="cpu").replace_head(CLASSES)
    found.headless, found.told = False, True
    return tuner


def _clones(tensors: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _moved(before: list[Tensor], model: nn.Module, heads: tuple[str, ...]) -> None:
    """Check that each head took a step.

    One changed tensor per head is enough: deep networks with random weights may have features near zero, for which
    only the bias of a head has a gradient. AdamW's first step is as large as the learning rate, and weight decay
    alone changes the weights far less.
    """
    old = iter(before)
    for name in heads:
        steps = [(value - next(old)).abs().max().item() for value in model.get_submodule(name).parameters()]
        if not max(steps, default=0.0) > RATE / 2:
            raise MissError(f"the head {name} did not move")


def _identical(model: nn.Module, untouched: nn.Module, heads: tuple[str, ...]) -> None:
    """Check every parameter and buffer outside the heads, including non-persistent ones."""
    now, then = _tensors(model, heads), _tensors(untouched, heads)
    if now.keys() != then.keys():
        raise MissError(f"added or removed by training: {', '.join(sorted(now.keys() ^ then.keys())[:5])}")
    moved = [name for name, tensor in now.items() if not _same(tensor, then[name])]
    if moved:
        raise MissError(f"{len(moved)} tensors outside the head moved, the first {moved[0]}")


def _tensors(model: nn.Module, heads: tuple[str, ...]) -> dict[str, Tensor]:
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor for name, tensor in named if not _within(name, heads)}


def _within(name: str, heads: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{head}.") for head in heads)


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or torch.equal(_bytes(one), _bytes(other))  # NaNs compare equal only as bytes


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def _complete_stages(model: nn.Module, heads: tuple[str, ...]) -> int:
    found = stages(model, heads)
    listed = [name for stage in found for name in stage.parameters]
    expected = [name for name, _ in model.named_parameters()]
    if sorted(listed) != sorted(expected):
        missing, twice = set(expected) - set(listed), {name for name in listed if listed.count(name) > 1}
        raise MissError(f"in no stage: {sorted(missing)[:3]}, in two: {sorted(twice)[:3]}")
    last, head = set(found[-1].parameters), {name for name in expected if _within(name, heads)}
    if last != head:
        raise MissError(f"the last stage and the head differ by {sorted(last ^ head)[:4]}")
    if len(found) < 2:
        raise MissError("there is only one stage")
    return len(found)


def _truth(model: nn.Module) -> None:
    """Check the number of classes that the model and its configuration report, if they do."""
    config = getattr(model, "config", None)
    for owner, name in ((model, "num_classes"), (model, "num_labels"), (config, "num_labels")):
        value = getattr(owner, name, None)
        if isinstance(value, int) and value != CLASSES:
            raise MissError(f"{type(owner).__name__}.{name} says {value}, the head has {CLASSES}")
    for name in ("id2label", "label2id"):
        value = getattr(config, name, None)
        if isinstance(value, dict) and len(value) != CLASSES:
            raise MissError(f"{type(config).__name__}.{name} has {len(value)} entries, the head has {CLASSES}")


@torch.no_grad()
def _overwrite(model: nn.Module) -> None:
    for tensor in model.state_dict().values():
        if isinstance(tensor, Tensor):
            tensor.zero_()


def _equal_states(model: nn.Module, loaded: nn.Module) -> None:
    one, other = model.state_dict(), loaded.state_dict()
    if one.keys() != other.keys():
        raise MissError(f"the state dicts differ by {sorted(one.keys() ^ other.keys())[:3]}")
    unequal = [name for name in one if isinstance(one[name], Tensor) and not _same(one[name], other[name])]
    if unequal:
        raise MissError(f"{len(unequal)} tensors differ after loading, the first {unequal[0]}")


def _own_round_trip(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    _equal_states(model, type(model).from_pretrained(folder))
