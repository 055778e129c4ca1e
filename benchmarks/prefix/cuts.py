"""Check a model's cuts: whether each is split or declined, trains equally from cached features, and its replay time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.coverage.cheap_weights import CheapWeights
from benchmarks.coverage.workers import failed, versions
from benchmarks.prefix.suites import load_suite
from benchmarks.rows import Row
from finetune.caching.declined import Declined
from finetune.caching.prefix.cut import cut_prefix
from finetune.caching.prefix.prefix import Prefix
from finetune.caching.store.memory_store import MemoryStore
from finetune.errors import HeadError
from finetune.model.freezing import train_mode, train_only
from finetune.model.outputs import call
from finetune.model.stages import stages
from finetune.model.surgery.head_search import find_head
from finetune.nested import tensors_of

BOUNDARIES = {
    "head": "the head is trainable",
    "last stage": "the last stage and the head are trainable",
    "in a block": "the head and one layer inside a block in the middle of the model are trainable",
}
# The samples of each step: an epoch in order, which fills the store, then two with batches mixed from it.
_MIXED = ([0, 1], [2, 3], [2, 0], [3, 1], [1, 2], [0, 3])
_SAME = ([0, 1], [2, 3]) * 3
_REPEATS = 5


def check_architecture(suite: str, name: str) -> Row:
    """Return the row of one architecture. Runs in a worker process."""
    start = time.perf_counter()
    try:
        family = load_suite(suite)
        with CheapWeights():
            built = family.build(name)
        boundaries = check_model(built.model, built.inputs)
    except HeadError as error:
        return {"family": suite, "name": name, "status": "no head", "causes": {"head": " ".join(str(error).split())}}
    except Exception as error:  # an error of a library or a model is a finding
        return failed(suite, name, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    unequal = any(not (cut.get("equal", True) or cut.get("equal_in_same_batches")) for cut in boundaries.values())
    return {
        "family": suite,
        "name": name,
        "status": "miss" if unequal else "ok",
        "causes": {boundary: found["why"] for boundary, found in boundaries.items() if "why" in found},
        "boundaries": boundaries,
        "seconds": round(time.perf_counter() - start, 1),
        "note": built.note,
        "versions": versions(family.packages),
    }


def check_model(model: nn.Module, inputs: Any, cut: Callable[..., Prefix | Declined] = cut_prefix) -> dict[str, Row]:
    """Return the findings for each boundary.

    Args:
        model: Model to cut. It is modified.
        inputs: A batch of two samples.
        cut: Function that cuts the model, called with the model and a batch.
    """
    samples = _four_samples(inputs)
    train_mode(model)
    return {
        boundary: _checked(model, patterns, samples, cut) for boundary, patterns in _patterns(model, inputs).items()
    }


def _checked(model: nn.Module, patterns: list[str], samples: Any, cut: Callable[..., Prefix | Declined]) -> Row:
    train_only(model, patterns)
    train_mode(model)
    start = time.perf_counter()
    prefix = cut(model, _taken(samples, [0, 1]))
    seconds = time.perf_counter() - start
    if isinstance(prefix, Declined):
        return {"split": False, "reason": prefix.reason}
    prefix.strict = True  # report a diverging replay instead of running the model whole
    row = {
        "split": True,
        "tensors": len(prefix.specs),
        "bytes": prefix.bytes_per_sample,
        "share": round(prefix.share, 4),
        "cause": prefix.cause,
        "cut_ms": round(1000 * seconds, 1),
        **_times(model, prefix, _taken(samples, [0, 1])),
    }
    return {**row, **_compared(model, prefix, samples)}


def _patterns(model: nn.Module, inputs: Any) -> dict[str, list[str]]:
    """Return the patterns of trainable layers by boundary, without boundaries that the model lacks."""
    head = list(find_head(model, inputs))
    if not any(list(model.get_submodule(name).parameters()) for name in head):
        raise HeadError(f"{', '.join(head)} has no parameters")
    inside = tuple(f"{name}." for name in head)
    heads = [f"{name}.*" for name in head]
    patterns = {"head": heads}
    backbone = [stage for stage in stages(model, head) if not any(name.startswith(inside) for name in stage.parameters)]
    if backbone:
        patterns["last stage"] = [*backbone[-1].parameters, *heads]
    layers = [layer for layer in _layers_within_blocks(model) if not f"{layer}.".startswith(inside)]
    if layers:
        patterns["in a block"] = [f"{layers[len(layers) * 3 // 5]}.*", *heads]
    return patterns


def _layers_within_blocks(model: nn.Module) -> list[str]:
    """Return the layers with parameters, except for the first within each module."""
    layers = [name for name, module in model.named_modules() if name and not list(module.children())]
    layers = [name for name in layers if list(model.get_submodule(name).parameters())]
    parents = [name.rpartition(".")[0] for name in layers]
    return [
        name for position, name in enumerate(layers) if parents[position] and parents[position] in parents[:position]
    ]


def _four_samples(inputs: Any) -> Any:
    """Return the two samples and reversed copies: the last dimension is flipped except for its ends."""

    def doubled(tensor: Tensor) -> Tensor:
        other = tensor.clone()
        other[..., 1:-1] = tensor[..., 1:-1].flip(-1)
        return torch.cat([tensor, other])

    return {name: doubled(tensor) for name, tensor in inputs.items()} if isinstance(inputs, dict) else doubled(inputs)


def _taken(samples: Any, indices: list[int]) -> Any:
    return {n: tensor[indices] for n, tensor in samples.items()} if isinstance(samples, dict) else samples[indices]


def _compared(model: nn.Module, prefix: Prefix, samples: Any) -> Row:
    """Train for a few steps without and with the prefix, and compare the results bit for bit.

    If they differ, repeat the comparison with the same batches that filled the store. If that is equal, the frozen
    layers round a sample differently depending on its position in the batch, which explains the difference.
    """
    try:
        row = _compared_over(model, prefix, samples, _MIXED)
        if not row["equal"]:
            row["equal_in_same_batches"] = _compared_over(model, prefix, samples, _SAME)["equal"]
    except Exception as error:  # any error is a finding
        row = {"equal": False, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    return row


def _compared_over(model: nn.Module, prefix: Prefix, samples: Any, steps: Sequence[list[int]]) -> Row:
    with _restored(model):
        plain = _trained(model, None, samples, steps)
    with _restored(model):
        cached = _trained(model, prefix, samples, steps)
    unequal = [name for name, value in plain.items() if not _same(value, cached[name])]
    row: Row = {"equal": not unequal, "finite": all(bool(value.isfinite().all()) for value in plain.values())}
    if unequal:
        apart = max(float((plain[name].double() - cached[name].double()).abs().max()) for name in unequal)
        row["why"] = f"{len(unequal)} of {len(plain)} tensors differ by up to {apart:.1e}, first {unequal[0]}"
    return row


def _trained(model: nn.Module, prefix: Prefix | None, samples: Any, steps: Sequence[list[int]]) -> dict[str, Tensor]:
    """Return the trained parameters, the buffers, the losses and the random state after a few steps."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    store = MemoryStore(prefix.specs, 4) if prefix else None
    losses = []
    for indices in steps:
        batch = _taken(samples, indices)
        if prefix and store:
            stored = _activations(prefix, store, batch, torch.tensor(indices))
            with prefix.serving(batch, stored, guarded=False):  # _restored changed the model in place
                outputs = tensors_of(call(model, batch))
        else:
            outputs = tensors_of(call(model, batch))
        loss = _loss(outputs, torch.tensor(indices))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {**_moving(model), "the losses": torch.stack(losses), "the random state": torch.get_rng_state()}


def _activations(prefix: Prefix, store: MemoryStore, batch: Any, indices: Tensor) -> tuple[Tensor, ...]:
    if not prefix.accepts(batch):
        raise ValueError("the prefix rejects a batch like the one it was cut on")
    if not store.has(indices):
        store.put(indices, prefix.compute(batch))
    return store.get(indices)


def _loss(outputs: list[Tensor], indices: Tensor) -> Tensor:
    """Return the cross-entropy of every output that depends on trainable parameters."""
    scored = [output.flatten(1).float() for output in outputs if output.requires_grad and output.dim() > 1]
    return torch.stack([F.cross_entropy(scores, indices % scores.shape[1]) for scores in scored]).sum()


def _moving(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the trainable parameters and the buffers, which training may change."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    return {name: value.detach().clone() for name, value in [*named, *model.named_buffers()]}


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    before = _moving(model)
    yield
    now = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for name, value in before.items():
            now[name].copy_(value)
            now[name].grad = None


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal, with NaN equal to NaN."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _times(model: nn.Module, prefix: Prefix, batch: Any) -> Row:
    """Return the milliseconds of a plain and of a replayed forward pass over two samples."""
    activations = prefix.compute(batch)

    def replay() -> None:
        with prefix.serving(batch, activations):
            call(model, batch)

    with torch.no_grad():
        return {"plain_ms": _milliseconds(lambda: call(model, batch)), "replay_ms": _milliseconds(replay)}


def _milliseconds(run: Callable[[], Any]) -> float:
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return round(1000 * statistics.median(times), 3)
