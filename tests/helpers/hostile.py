"""Checkpoints with a valid checksum and hostile content: one field at a time replaced by a value it never has.

`outcome` loads a file in one of the ways `WAYS` and says how that ended. `python -m tests.helpers.hostile STEP WAY ...`
does so for every STEP-th content, in a process of its own with limits, and prints one line of JSON for each.
"""

from __future__ import annotations

import copy
import json
import logging
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finetune import CheckpointError, FineTuner
from finetune.callbacks import EMA, L2SP, SWA, CSVLogger, EarlyStopping
from finetune.checkpoint import file, schema

Path_ = tuple[str | int, ...]

X = torch.linspace(-1, 1, 48).reshape(12, 4)
Y = torch.arange(12) % 3


def nested(depth: int) -> Any:
    """Return lists within lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "minus one": -1,
    "zero": 0,
    "million": 2_000_000,
    "huge": 2**63,
    "digits": 10**400,
    "float": 1e308,
    "nan": float("nan"),
    "empty text": "",
    "long text": "x" * 10**6,
    "class": "__class__.__init__",
    "list": [],
    "dict": {},
    "texts": ["a", "b"],
    "numbers": [1, 2, 3],
    "nested": nested(900),
    "of dicts": [{"a": 1}],
    "tensor": torch.zeros(3),
    "scalar": torch.zeros(()),
    "empty tensor": torch.zeros(0, 2**40),
    "integers": torch.zeros(2, 2, dtype=torch.int64),
}
"""Values to put in the place of a field, by name."""


def paths(content: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of every field, at most one of each list."""
    if at:
        yield at
    items: Any = content.items() if isinstance(content, dict) else ()
    if isinstance(content, (list, tuple)):
        items = list(enumerate(content))[:1]
    for key, value in items:
        yield from paths(value, (*at, key))


def replaced(content: Any, path: Path_, value: Any) -> Any:
    """Return a content with another value at a path."""
    key, *rest = path
    items: Any = list(content) if isinstance(content, (list, tuple)) else dict(content)
    items[key] = replaced(items[key], tuple(rest), value) if rest else value
    return items


def without(content: Any, path: Path_) -> Any:
    """Return a content without the field at a path."""
    key, *rest = path
    items: Any = list(content) if isinstance(content, (list, tuple)) else dict(content)
    if rest:
        items[key] = without(items[key], tuple(rest))
    else:
        del items[key]
    return items


def of_fields(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of a change to one field, and the content with it."""
    for path in paths(content):
        where = "/".join(map(str, path))
        yield f"{where} missing", without(content, path)
        for name, value in VALUES.items():
            yield f"{where} {name}", replaced(content, path, value)


def of_changes(content: dict[str, Any], head: str, layer: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield contents whose changes to the model are too large, or name missing layers.

    Args:
        content: Content of a checkpoint.
        head: Full name of the model's head.
        layer: Full name of another layer.
    """
    linear = {"type": "Linear", "arguments": {"in_features": 8, "out_features": 2**31, "bias": True}}
    wide = {"type": "Conv2d", "arguments": {"in_channels": 2**20, "out_channels": 2**20, "kernel_size": 9}}
    changes: dict[str, list[Any]] = {
        f"head of {n}": [{"n": n, "names": [head], "head": None}] for n in (-1, 0, 2_000_000, 2**31, 2**63, 10**30)
    }
    changes |= {
        "appended": [{"n": 2_000_000, "names": [head], "head": "append"}],
        "many heads": [{"n": 3, "names": [head], "head": None}] * 5000,
        "many large heads": [{"n": 100_000, "names": [head], "head": None}] * 50,
        "many appended": [{"n": 3, "names": [head], "head": "append"}] * 3000,
        "no head": [{"n": 3, "names": [], "head": None}],
        "names of nothing": [{"n": 3, "names": ["not.there"], "head": None}],
        "names of methods": [{"n": 3, "names": ["forward", "__class__", "training", "_modules"], "head": None}],
        "name of a part": [{"n": 3, "names": [f"{head}.weight"], "head": None}],
        "name of all": [{"n": 3, "names": [""], "head": None}],
        "the same name often": [{"n": 3, "names": [head] * 100_000, "head": None}],
        "large layer": [{"n": 2**31, "names": [head], "head": linear}],
        "wide layer": [{"n": 3, "names": [head], "head": wide}],
        "unknown layer": [{"n": 3, "names": [head], "head": {"type": "Embedding", "arguments": {}}}],
        "layer of a class": [{"n": 3, "names": [head], "head": {"type": "__class__", "arguments": {}}}],
        "layer with a device": [
            {"n": 3, "names": [head], "head": {"type": "Linear", "arguments": {"in_features": 8, "device": "cuda:99"}}}
        ],
        "layer with a subclass": [
            {"n": 3, "names": [head], "head": {"type": "Sequential", "children": {"a.b": linear}}}
        ],
        "layer of attributes": [
            {"n": 3, "names": [head], "head": {"type": "Sequential", "children": {"forward": {"type": "ReLU"}}}}
        ],
        "deep layer": [{"n": 3, "names": [head], "head": _deep(300)}],
        "removed": [{"n": 3, "names": [head], "head": None, "removed": [layer, "__class__", "", "forward"]}],
        "rank": [{"lora_rank": 2**31, "layers": [layer]}],
        "rank of nothing": [{"lora_rank": 2, "layers": ["not.there"]}],
        "rank of methods": [{"lora_rank": 2, "layers": ["forward", ""]}],
        "rank of a pattern": [{"lora_rank": 2, "layers": ["(a+)+$" + "a" * 40]}],
        "many ranks": [{"lora_rank": 2, "layers": [layer]}] * 200,
        "in_channels": [{"in_channels": 10**6}],
        "more in_channels": [{"in_channels": 2**40}],
        "many in_channels": [{"in_channels": 1 + i % 2} for i in range(500)],
    }
    for name, value in changes.items():
        yield f"replacements: {name}", {**content, "replacements": value}
    for name, size in {
        "crop": {"crop_size": [10**6, 10**6]},
        "resize": {"resize_size": 10**9},
        "kind": {"kind": "x"},
    }.items():
        yield f"preprocessing: {name}", {**content, "preprocessing": size}
    for name in ("settings", "inputs", "objects"):
        yield (
            f"{name}: more",
            {**content, name: {**content[name], "__class__": 1, "model": "resnet18", "device": "cuda:9"}},
        )


def of_origins(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield contents of models by name that are large, or are built with other arguments."""
    origins: dict[str, Any] = {
        "vit of any size": {"family": "torchvision", "name": "vit_b_16", "options": {"image_size": 2**20}},
        "vit of a large size": {"family": "torchvision", "name": "vit_b_16", "options": {"image_size": 16_000}},
        "a large model": {"family": "torchvision", "name": "vit_h_14", "options": {"image_size": 224}},
        "classes": {"family": "torchvision", "name": "resnet18", "options": {"num_classes": 10**7}},
        "an expression": {"family": "torchvision", "name": "resnet18", "options": {"norm_layer": "print"}},
        "a detector": {"family": "torchvision", "name": "maskrcnn_resnet50_fpn", "options": {"weights_backbone": None}},
        "weights": {"family": "torchvision", "name": "resnet18", "options": {"weights": "DEFAULT"}},
        "timm classes": {"family": "timm", "name": "test_resnet", "options": {"num_classes": 10**7}},
        "timm weights": {"family": "timm", "name": "test_resnet", "options": {"checkpoint_path": "/etc/passwd"}},
        "timm hub": {"family": "timm", "name": "hf_hub:nobody/nothing", "options": {}},
        "a large timm model": {"family": "timm", "name": "vit_gigantic_patch14_clip_224", "options": {}},
    }
    vit = {"family": "huggingface", "name": "v", "class": "ViTForImageClassification"}
    swin = {**vit, "class": "SwinForImageClassification"}
    for name, config in {
        "hidden": {"hidden_size": 2**20, "num_attention_heads": 2},
        "layers": {"hidden_size": 2, "num_attention_heads": 1, "intermediate_size": 1, "num_hidden_layers": 10**9},
        "labels": {"num_labels": 10**9},
        "image": {"image_size": 10**9},
    }.items():
        origins[f"hf {name}"] = {**vit, "config": config}
    origins["hf window"] = {**swin, "config": {"window_size": 150, "image_size": 600, "patch_size": 4}}
    origins["hf class"] = {**vit, "class": "Trainer", "config": {}}
    origins["hf method"] = {**vit, "class": "__class__", "config": {}}
    for name, origin in origins.items():
        yield f"source: {name}", replaced(content, ("model", "source"), origin)


def _deep(levels: int) -> dict[str, Any]:
    layer: dict[str, Any] = {"type": "ReLU", "arguments": {}}
    for _ in range(levels):
        layer = {"type": "Sequential", "children": {"0": layer}}
    return layer


# ---------------------------------------------------------------------- loading


def net() -> nn.Module:
    """Return the user's own model."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def callbacks(folder: Path) -> list[Any]:
    """Return one callback of each kind that has a state."""
    return [EMA(), SWA(), L2SP(), EarlyStopping("loss"), CSVLogger(folder / "log.csv")]


def tuner() -> FineTuner:
    """Return the tuner that a run is resumed in."""
    return FineTuner(net(), device="cpu", metrics=["accuracy", "auroc"])


def fit(tuner: FineTuner, folder: Path, epochs: int = 2, **options: Any) -> None:
    """Train for some epochs, with checkpoints in the folder."""
    tuner.fit(
        (X, Y), epochs=epochs, batch_size=4, progress=False, cache=False, callbacks=callbacks(folder), **options
    )  # fmt: skip


def run_content(folder: Path) -> dict[str, Any]:
    """Return the content of the checkpoint of a run that ended within its second epoch."""

    class StopError(Exception):
        pass

    from finetune.callbacks import Callback, ModelCheckpoint

    class StopWithin(Callback):
        only_watches = True

        def on_step_end(self, run: Any) -> None:
            if run.epoch == 1 and run.position.window == 2:
                run.save(folder / "within.safetensors")
                raise StopError

    with suppress(StopError):
        tuner().fit(
            (X, Y), epochs=2, batch_size=4, progress=False, cache=False,
            callbacks=[*callbacks(folder), StopWithin(), ModelCheckpoint(folder)],
        )  # fmt: skip
    return file.read(folder / "within.safetensors").content


def named_content(folder: Path) -> dict[str, Any]:
    """Return the content of the checkpoint of a model by name."""
    made = FineTuner("squeezenet1_1", weights=None, device="cpu").replace_head(3)
    return file.read(made.save_checkpoint(folder / "named.safetensors")).content


def load(path: Path, folder: Path) -> FineTuner:
    """Load a model by its name."""
    return FineTuner.load_checkpoint(path, device="cpu")


def load_into(path: Path, folder: Path) -> FineTuner:
    """Load a checkpoint into the user's model."""
    return FineTuner.load_checkpoint(path, net(), device="cpu")


def start(path: Path, folder: Path) -> FineTuner:
    """Start from a checkpoint."""
    return FineTuner(net(), weights=path, device="cpu")


def resume(path: Path, folder: Path) -> FineTuner:
    """Resume a run, and check that the tuner is unchanged after an error."""
    resumed = tuner()
    before = _state(resumed)
    try:
        fit(resumed, folder, resume_from=path)
    except CheckpointError:
        assert _same(before, _state(resumed)), "the tuner has changed"
        raise
    return resumed


WAYS: dict[str, Callable[[Path, Path], FineTuner]] = {
    "load": load,
    "load_into": load_into,
    "start": start,
    "resume": resume,
}


def _state(tuner: FineTuner) -> dict[str, Any]:
    weights = {name: value.clone() for name, value in tuner.model.state_dict().items()}
    free = [parameter.requires_grad for parameter in tuner.model.parameters()]
    known = tuner.classes, list(tuner.history), tuner.network.heads, str(tuner)  # the head, too, so that both find it
    return {"weights": weights, "free": free, "known": known}


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    return torch.equal(left, right) if isinstance(left, Tensor) else bool(left == right)


class Outcome(NamedTuple):
    """How loading a file ended: `"loaded"`, `"refused"` or the error; its seconds, and MB of memory above the start."""

    result: str
    seconds: float
    memory: float


def outcome(way: str, content: dict[str, Any], folder: Path) -> Outcome:
    """Write a content to a file with a valid checksum and load it. The file must be written by this format."""
    path = folder / "hostile.safetensors"
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    file.write(path, content, version=schema.format_version())
    sys.setrecursionlimit(limit)
    before = _peak(reset=True)
    begun = time.perf_counter()
    try:
        WAYS[way](path, folder)
        result = "loaded"
    except CheckpointError as error:
        result = "refused" if len(str(error)) < 2000 else f"a message of {len(str(error))} letters"
    except Exception as error:
        late = str(error).startswith("The metric")  # whose collected values have a form that only it knows
        result = "refused" if late else f"{type(error).__name__}: {error}"[:200]
    seconds = time.perf_counter() - begun
    return Outcome(result, seconds, _peak() - before)


def _peak(*, reset: bool = False) -> float:
    """Return the largest resident size of the process since it was reset, in MB; 0 where Linux does not tell."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except OSError:
        return 0.0


def contents(folder: Path) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Return all contents, with their names, by the way to load them."""
    run, named = run_content(folder), named_content(folder)
    model = {**run, "training": None}
    plain = [pair for pair in of_fields(copy.deepcopy(model)) if not pair[0].startswith("training")]
    plain += of_changes(model, "3", "0")
    small = replaced(named, ("model", "weights"), dict(list(named["model"]["weights"].items())[-2:]))
    by_name = [pair for pair in of_fields(small) if "source" in pair[0]]
    by_name += [*of_changes(named, "classifier.1", "features.0"), *of_origins(small)]
    states = [pair for pair in of_fields(run) if pair[0].startswith("training")]
    return {"load": by_name, "load_into": plain, "start": plain, "resume": states}


def main(step: int, *ways: str) -> None:
    """Load every `step`-th content in some ways, and print the way, the name and the outcome of each."""
    import warnings

    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    import tests.helpers.lean  # noqa: F401

    for library in ("peft", "timm", "transformers") if "load" in ways else ():  # whose import takes seconds
        with suppress(ImportError):
            __import__(library)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for way, pairs in contents(folder).items():
            for content_name, content in pairs[::step] if way in ways else ():
                signal.alarm(60)  # ends the process
                print(json.dumps([way, content_name, *outcome(way, content, folder)]), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *(sys.argv[2:] or WAYS))
