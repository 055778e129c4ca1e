"""Fingerprints: equal for equal values, different for any others."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from finetune import LayerDecay, Phase, Preprocessing, strategies
from finetune.comparison.fingerprint import fingerprint, fingerprint_data
from finetune.data.sources.open_source import open_source


def net(seed: int = 0, frozen: bool = False, width: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.1))
    model[0].requires_grad_(not frozen)
    return model


class Weighted:
    """A custom loss object."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, outputs: Any, targets: Any) -> Any:
        return self.weight * (outputs - targets).square().mean()


def times(factor: float) -> Callable[[float], float]:
    return lambda progress: factor * progress


# For each kind, functions that return different values.
KINDS: dict[str, list[Callable[[], Any]]] = {
    "numbers": [lambda: None, lambda: 1, lambda: 2, lambda: 0.5, lambda: "1", lambda: True],
    "rates": [lambda: {"*": 1e-4, "fc": 1e-3}, lambda: {"fc": 1e-3, "*": 1e-4}, lambda: (1e-4, 1e-3)],
    "decays": [lambda: LayerDecay(1e-3), lambda: LayerDecay(1e-3, 0.5), lambda: LayerDecay(1e-3, head=10)],
    "phases": [lambda: [Phase("fc", 2)], lambda: [Phase("fc", 3)], lambda: [Phase(["fc"], 2, lr=0.1)], lambda: []],
    "strategies": [
        lambda: strategies.lora,
        lambda: strategies.lp_ft,
        lambda: partial(strategies.lora, rank=4),
        lambda: partial(strategies.lora, rank=16),
        lambda: strategies.surgical("layer1"),
        lambda: strategies.surgical("layer2"),
    ],
    "functions": [lambda: times(1), lambda: times(2), lambda: (lambda progress: progress), lambda: abs, lambda: len],
    "sets in code": [lambda: (lambda x: x in {"a", "b", "c"}), lambda: (lambda x: x in {"a", "b", "d"})],
    "methods": [lambda: Weighted(1).__call__, lambda: Weighted(2).__call__],
    "objects": [lambda: Weighted(1), lambda: Weighted(2), lambda: object, lambda: Weighted],
    "losses": [nn.CrossEntropyLoss, lambda: nn.CrossEntropyLoss(label_smoothing=0.1), nn.MSELoss],
    "arrays": [lambda: torch.zeros(3), lambda: torch.zeros(3, 1), lambda: torch.ones(3), lambda: np.zeros(4)],
    "optimizers": [lambda: torch.optim.SGD, lambda: torch.optim.Adam, lambda: partial(torch.optim.SGD, lr=1)],
    "models": [net, lambda: net(1), lambda: net(frozen=True), lambda: net(width=4), lambda: net()[:2]],
    "preprocessing": [Preprocessing, lambda: Preprocessing(crop_size=(32, 32))],
}  # fmt: skip


def text(value: Any) -> str:
    return json.dumps(fingerprint(value))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_values_and_only_those_share_a_fingerprint(kind: str) -> None:
    texts = [text(make()) for make in KINDS[kind]]
    assert texts == [text(make()) for make in KINDS[kind]]
    assert len({*texts}) == len(texts)


def test_the_order_of_a_set_does_not_count() -> None:
    assert fingerprint({"b", "c", "a"}) == ["'a'", "'b'", "'c'"]
    code = fingerprint(lambda x: x in {"b", "c", "a"})[1]
    assert code[2] == [None, ["'a'", "'b'", "'c'"]]


def test_a_file_is_identified_by_its_size_and_time(tmp_path: Path) -> None:
    file = tmp_path / "probe.safetensors"
    settings = {"weights": str(file)}
    missing = text(settings)
    file.write_bytes(b"one")
    first, phase = text(settings), text(Phase(start_from=file))
    assert first == text(settings) != missing
    file.write_bytes(b"other")
    assert text(settings) != first
    assert text(Phase(start_from=file)) != phase
    assert text({"name": str(file)}) == json.dumps([["name", str(file)]])  # under this name, a string is not a path


class Own(Dataset[Any]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(3), index % 2


def test_data_is_identified_by_its_content(tmp_path: Path) -> None:
    X, y = torch.randn(6, 3), torch.arange(6) % 2
    data = [
        (X, y), (X.flip(0), y), (X, y.flip(0)), (X.numpy().astype("float16"), y), Own(4), Own(5),
        (["a b", "c", "d"], [0, 1, 0]), (["a b", "c", "e"], [0, 1, 0]),
    ]  # fmt: skip
    texts = [json.dumps(fingerprint_data(open_source(one))) for one in data]
    assert len({*texts}) == len(texts)
    assert texts[0] == json.dumps(fingerprint_data(open_source((X.clone(), y.tolist()))))

    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    before = json.dumps(fingerprint_data(open_source(tmp_path)))
    assert before == json.dumps(fingerprint_data(open_source(tmp_path)))
    Image.new("RGB", (9, 9)).save(tmp_path / "bee" / "0.png")
    assert before != json.dumps(fingerprint_data(open_source(tmp_path)))


def test_a_self_reference_has_no_fingerprint() -> None:
    endless = Weighted(1)
    endless.weight = endless  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"A Weighted that refers to itself.*Omit folder"):
        fingerprint(endless)
