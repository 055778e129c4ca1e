"""Backbones, each pretrained once by a plain loop without the library, and cached in a file."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.pairs.domains import Domain
from benchmarks.pairs.networks import NETWORKS
from benchmarks.pairs.stencils import Part, generator

FOLDER = Path(__file__).parent.parent / "results" / "backbones"  # ignored by git


@dataclass(frozen=True)
class Recipe:
    """Settings of pretraining: AdamW with a one-cycle schedule, and new images of the stencils in every step."""

    stencils: int = 200  # per class
    held_out: int = 40
    steps: int = 1200
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05


RECIPE = Recipe()


def new_network(network: str, num_classes: int) -> nn.Module:
    """Return a network with fixed random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS[network](num_classes)


@cache
def backbone(
    network: str, source: Domain, recipe: Recipe = RECIPE, folder: Path = FOLDER
) -> tuple[Mapping[str, Tensor], float]:
    """Return the weights of a backbone and its accuracy on held-out images of its source domain.

    Train the backbone unless its file exists. The file name includes a digest of the domain and the recipe, so that a
    change of either trains a new backbone. If several processes need the same one, a single one trains it.
    """
    name = f"{network} {source.name}".replace(",", "").replace(" ", "-")
    path = folder / f"{name}-{_digest(network, source, recipe)}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_suffix(".lock")):
        if not path.exists():
            model, accuracy = _trained(network, source, recipe)
            unfinished = path.with_suffix(".unfinished")
            save_file(model.state_dict(), unfinished, {"accuracy": str(accuracy)})
            os.replace(unfinished, path)
    with safe_open(path, "pt") as file:
        accuracy = float(file.metadata()["accuracy"])
    return load_file(path), accuracy


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(network: str, source: Domain, recipe: Recipe) -> str:
    """Return a digest of the initial weights, a few images and the recipe."""
    images, _ = _images(source, "train", 2)
    digest = hashlib.sha256(repr(recipe).encode())
    for value in new_network(network, len(source.classes)).state_dict().values():
        digest.update(value.numpy().tobytes())
    rounded = (40 * images).round().to(torch.int16)  # processors differ in the last bits
    digest.update(rounded.numpy().tobytes())
    return digest.hexdigest()[:12]


def _trained(network: str, source: Domain, recipe: Recipe) -> tuple[nn.Module, float]:
    stencils, labels = _stencils(source, "train", recipe.stencils, recipe.held_out)
    draws = generator(source.name, "pretraining")
    model = new_network(network, len(source.classes))
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, recipe.steps)
    for _ in range(recipe.steps):
        chosen = torch.randint(len(labels), (recipe.batch_size,), generator=draws)
        loss = F.cross_entropy(model(source.rendering.render(stencils[chosen], draws)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    images, labels = _images(source, "test", recipe.held_out)
    with torch.no_grad():
        correct = model.eval()(images).argmax(1) == labels
    return model, correct.float().mean().item()


def _images(source: Domain, part: Part, count: int) -> tuple[Tensor, Tensor]:
    stencils, labels = _stencils(source, part, count)
    return source.rendering.render(stencils, generator(source.name, part, "look")), labels


def _stencils(source: Domain, part: Part, count: int, held_out: int = 0) -> tuple[Tensor, Tensor]:
    """Return up to `count` stencils per class and their labels, leaving `held_out` real ones of each for the test."""
    drawn = [
        source.stencils.draw(name, int(min(count, source.stencils.available(name) - held_out)), part, seed=0)
        for name in source.classes
    ]
    return torch.cat(drawn), torch.arange(len(drawn)).repeat_interleave(torch.tensor([len(one) for one in drawn]))
