"""Backbones: each is trained once, by a plain loop that knows nothing of the library, and kept as a file."""

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

from benchmarks.pairs.networks import NETWORKS
from benchmarks.pairs.stencils import Part, generator
from benchmarks.pairs.worlds import World

FOLDER = Path(__file__).parent.parent / "results" / "backbones"  # which git ignores


@dataclass(frozen=True)
class Recipe:
    """How a backbone is trained: AdamW, one cycle of the rate, pictures of each stencil drawn anew in every step."""

    stencils: int = 200  # a class
    held_out: int = 40
    steps: int = 1200
    batch_size: int = 64
    lr: float = 3e-3
    weight_decay: float = 0.05


RECIPE = Recipe()


def new_network(network: str, num_classes: int) -> nn.Module:
    """Return a network with random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS[network](num_classes)


def backbone(network: str, source: World) -> tuple[Mapping[str, Tensor], float]:
    """Return the weights of a backbone, and its accuracy on held-out pictures of its own classes.

    It is trained if there is no file of it. The file is named after all that decides it, so that it is never of
    another world or recipe than today's; of several processes that want it, one trains and the others wait.
    """
    return _kept(network, source, RECIPE, FOLDER)


@cache
def _kept(network: str, source: World, recipe: Recipe, folder: Path) -> tuple[Mapping[str, Tensor], float]:
    name = f"{network} {source.name}".replace(",", "").replace(" ", "-")
    path = folder / f"{name}-{_digest(network, source, recipe)}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(path.with_suffix(".lock")):
        if not path.exists():
            model, accuracy = _trained(network, source, recipe)
            unfinished = path.with_suffix(".unfinished")
            save_file(model.state_dict(), unfinished, {"accuracy": str(accuracy)})
            os.replace(unfinished, path)
    with safe_open(path, "pt") as file:
        accuracy = float(file.metadata()["accuracy"])
    return load_file(path), accuracy


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(network: str, source: World, recipe: Recipe) -> str:
    """Return a digest of the first weights, of some pictures and of the recipe."""
    pictures, _ = _images(source, "train", 2)
    digest = hashlib.sha256(repr(recipe).encode())
    for value in new_network(network, len(source.classes)).state_dict().values():
        digest.update(value.numpy().tobytes())
    rounded = (40 * pictures).round().to(torch.int16)  # processors differ in the last bit
    digest.update(rounded.numpy().tobytes())
    return digest.hexdigest()[:12]


def _trained(network: str, source: World, recipe: Recipe) -> tuple[nn.Module, float]:
    stencils, labels = _stencils(source, "train", recipe.stencils, recipe.held_out)
    draws = generator(source.name, "pretraining")
    model = new_network(network, len(source.classes))
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, recipe.steps)
    for _ in range(recipe.steps):
        chosen = torch.randint(len(labels), (recipe.batch_size,), generator=draws)
        loss = F.cross_entropy(model(source.look.pictures(stencils[chosen], draws)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    pictures, labels = _images(source, "test", recipe.held_out)
    with torch.no_grad():
        correct = model.eval()(pictures).argmax(1) == labels
    return model, correct.float().mean().item()


def _images(source: World, part: Part, count: int) -> tuple[Tensor, Tensor]:
    stencils, labels = _stencils(source, part, count)
    return source.look.pictures(stencils, generator(source.name, part, "look")), labels


def _stencils(source: World, part: Part, count: int, but: int = 0) -> tuple[Tensor, Tensor]:
    """Return up to so many stencils a class, of real ones all but those that are held out, and their labels."""
    drawn = [
        source.stencils.draw(name, int(min(count, source.stencils.available(name) - but)), part, seed=0)
        for name in source.classes
    ]
    return torch.cat(drawn), torch.arange(len(drawn)).repeat_interleave(torch.tensor([len(one) for one in drawn]))
