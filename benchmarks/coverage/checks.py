"""The checks on one model, through the public `FineTuner`; nothing here knows a family."""

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
    "truth": "the model's own number of classes true",
    "own_saving": "the model's own saving works",
}
RATE = 0.1
CLASSES = 7  # a number that no default configuration has


class MissError(Exception):
    """A check did not hold; the message says how."""


@dataclass
class Findings:
    """What came of the checks on one model: True, False, or None for one that does not apply or was not reached."""

    checks: dict[str, bool | None] = field(default_factory=lambda: dict.fromkeys(CHECKS))
    causes: dict[str, str] = field(default_factory=dict)
    headless: bool = False
    told: bool = False
    parameters: int = 0
    stages: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def check(self, name: str) -> Iterator[None]:
        """Record how the block went, whatever it raises, and how long it took."""
        start = time.perf_counter()
        self.checks[name] = False
        try:
            yield
            self.checks[name] = True
        except Exception as error:  # of a library, a model or a check: it is the finding
            kind = "" if isinstance(error, MissError) else f"{type(error).__name__}: "
            self.causes[name] = (kind + " ".join(str(error).split()))[:400]
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)


class Labelled(Dataset[Any]):
    """The rows of batched inputs, a tensor or a dict of them, each with a label."""

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if isinstance(self.inputs, dict):
            return {name: tensor[index] for name, tensor in self.inputs.items()}, index
        return self.inputs[index], index


def check_model(model: nn.Module, inputs: Any, folder: Path | None = None) -> Findings:
    """Run every check on `model`, which is changed, with the inputs of two samples.

    Where what the model reads is not to be guessed, it is told as a user would tell it, by the attribute
    `example_input_array`, and that is noted. `folder` is where checkpoints are written, and removed again.
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
            _overwrite(untouched)  # else a load that loads nothing would pass
            loaded = FineTuner.load_checkpoint(path, untouched)
            path.unlink()
            _equal_states(model, untouched)
            if outputs is not None and not _same(loaded.predict(data, batch_size=SAMPLES), outputs):
                raise MissError("the loaded model predicts otherwise")
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
    model.example_input_array = inputs  # as Lightning's modules say what they read
    tuner = FineTuner(model, device="cpu").replace_head(CLASSES)
    found.headless, found.told = False, True
    return tuner


def _clones(tensors: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _moved(before: list[Tensor], model: nn.Module, heads: tuple[str, ...]) -> None:
    """Check that each head took a step.

    One of its tensors is enough: deep networks with random weights can give features of almost zero, on
    which a head's bias alone has a gradient. AdamW's first step is as long as the rate; what weight decay
    does by itself is far shorter.
    """
    old = iter(before)
    for name in heads:
        steps = [(value - next(old)).abs().max().item() for value in model.get_submodule(name).parameters()]
        if not max(steps, default=0.0) > RATE / 2:
            raise MissError(f"the head {name} did not move")


def _identical(model: nn.Module, untouched: nn.Module, heads: tuple[str, ...]) -> None:
    """Check every parameter and buffer outside the heads, those that are not saved included."""
    now, then = _tensors(model, heads), _tensors(untouched, heads)
    if now.keys() != then.keys():
        raise MissError(f"not in both before and after: {', '.join(sorted(now.keys() ^ then.keys())[:5])}")
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
    return torch.equal(one, other) or torch.equal(_bytes(one), _bytes(other))  # a NaN is equal by its bytes only


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
        raise MissError("there is one stage only")
    return len(found)


def _truth(model: nn.Module) -> None:
    """Check what the model and its configuration say of themselves, where they say anything."""
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
