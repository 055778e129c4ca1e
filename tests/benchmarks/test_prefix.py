"""The prefix benchmark: cuts that change training are found, and the report counts split, declined and unequal ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.prefix.cuts import BOUNDARIES, check_model
from benchmarks.prefix.table import table
from finetune.caching.prefix.cut import cut_prefix
from finetune.caching.prefix.prefix import Prefix


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 10)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.block(self.stem(X)).mean((2, 3)))


class MixesSamples(Net):
    def forward(self, X: Tensor) -> Tensor:
        return super().forward(X - X.mean(0))


def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_sound_model_is_split_and_trains_equally_at_every_boundary() -> None:
    found = check_model(Net(), images())
    assert list(found) == list(BOUNDARIES)
    assert all(cut["split"] and cut["equal"] and cut["finite"] for cut in found.values())
    assert all(cut["replay_ms"] > 0 and cut["bytes"] > 0 for cut in found.values())


def test_a_declined_cut_has_a_reason() -> None:
    found = check_model(MixesSamples(), images())
    assert {cut["reason"] for cut in found.values()} == {"the frozen layers mix the samples of a batch"}


class Swapped(Prefix):
    """A prefix that returns the activations of the samples in reverse order."""

    def compute(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(activations.flip(0) for activations in super().compute(inputs))


def cut_and_swap(model: nn.Module, batch: Tensor) -> Prefix:
    prefix = cut_prefix(model, batch)
    prefix.__class__ = Swapped  # only now, because cut_prefix would decline it
    return prefix


def test_activations_of_the_wrong_samples_are_found() -> None:
    found = check_model(Net(), images(), cut_and_swap)
    assert not any(cut["equal"] or cut["equal_in_same_batches"] for cut in found.values())
    assert "differ" in found["head"]["why"]


def test_the_report_counts_and_lists_the_outcomes() -> None:
    split = {"split": True, "tensors": 1, "bytes": 2000, "share": 0.9, "cause": "c", "cut_ms": 20.0, "plain_ms": 2.0,
             "replay_ms": 0.5, "equal": True, "finite": True}  # fmt: skip
    rounds = {**split, "equal": False, "equal_in_same_batches": True, "why": "3 tensors differ"}
    wrong = {**split, "equal": False, "equal_in_same_batches": False, "why": "9 tensors differ"}
    declined = {"split": False, "reason": "a forward hook watches 'b'"}
    rows = {
        "a": {"name": "a", "status": "ok", "boundaries": {"head": split, "last stage": {**split, "share": 0.01}}},
        "b": {
            "name": "b",
            "status": "miss",
            "boundaries": {"head": rounds, "last stage": wrong, "in a block": declined},
        },
        "c": {"name": "c", "status": "not checked", "causes": {"build": "needs natten"}},
    }
    text = table({"timm": (["a", "b", "c", "d"], rows)})
    assert "**4 of 5 cuts split; 2 of these train bit for bit as without the cache, 1 more" in text
    assert "3 of 4 architectures were run" in text
    assert "| timm | head | 2 | 2 | 100% | 1 | 90% |" in text
    assert "`b`, head: 3 tensors differ. Equal in the same batches" in text
    assert "`b`, last stage: 9 tensors differ. **Unexplained.**" in text
    assert "| a forward hook watches ... | 1 |" in text
    assert "| timm | a | last stage | c |" in text
    assert "needs natten" in text
