"""The pairs: the seed decides everything, train and test are apart, and every backbone loads with its stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.pairs import PAIRS, Pair, backbones, worlds
from benchmarks.pairs.backbones import Recipe
from benchmarks.pairs.networks import NETWORKS
from benchmarks.pairs.pair import sizes
from benchmarks.pairs.worlds import World
from finetune import FineTuner

pytest.importorskip("sklearn")

pairs = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Backbones of three updates, in a folder of their own."""
    monkeypatch.setattr(backbones, "RECIPE", Recipe(stencils=4, held_out=4, steps=3))
    monkeypatch.setattr(backbones, "FOLDER", tmp_path)
    return tmp_path


def rows(pictures: Tensor) -> set[bytes]:
    return {picture.numpy().tobytes() for picture in pictures}


@pairs
def test_images_are_as_said(pair: Pair) -> None:
    data = pair.data(0, shots=3, test=4)
    for (X, y), count in zip(data, (3, 4, 4), strict=True):
        assert (X.shape, X.dtype) == ((count * pair.num_classes, 1, 16, 16), torch.float32)
        assert y.dtype == torch.int64
        assert y.bincount().tolist() == [count] * pair.num_classes
        assert abs(X.mean()) < 1.5
        assert 0.3 < X.std() < 2
    assert data.test[1].equal(data.shifted[1])


@pairs
def test_the_seed_decides(pair: Pair) -> None:
    once, again, other = (pair.data(seed, shots=2, test=3) for seed in (1, 1, 2))
    for (X, y), (same, label), (different, _) in zip(once, again, other, strict=True):
        assert X.equal(same)
        assert y.equal(label)
        assert not rows(X) & rows(different)


@pairs
def test_train_and_test_have_no_image_in_common(pair: Pair) -> None:
    data = pair.data(3, shots=20, test=20)
    assert not rows(data.train[0]) & rows(data.test[0])


@pytest.mark.parametrize("world", [worlds.DIGITS, worlds.PHOTOGRAPHS], ids=lambda world: world.name)
def test_real_images_are_given_once(world: World) -> None:
    """Also before position and noise: all of a class are divided between train and test."""
    for name in world.classes:
        every = world.stencils.load()[name]
        train, test = (world.stencils.draw(name, count, part, seed=3)
                       for part, count in (("train", 60), ("test", len(every) - 60)))  # fmt: skip
        assert torch.cat([train, test]).flatten(1).sort(0).values.equal(every.flatten(1).sort(0).values)


def test_the_test_images_are_the_same_for_any_number_of_shots() -> None:
    few, many = (PAIRS["letters to digits"].data(0, shots=shots, test=5) for shots in (1, 7))
    assert few.test[0].equal(many.test[0])


@pytest.mark.parametrize(
    ("shots", "classes", "imbalance", "expected"),
    [(10, 5, 1, [10] * 5), (10, 3, 4, [4, 8, 16]), (20, 5, 16, [3, 6, 12, 24, 48]), (1, 3, 100, [1, 10, 100])],
)
def test_sizes_are_geometric(shots: int, classes: int, imbalance: float, expected: list[int]) -> None:
    assert sizes(shots, classes, imbalance) == expected


def test_imbalance_is_as_said_and_the_seed_says_which_class_is_large() -> None:
    pair = PAIRS["latin to greek"]
    counts = [pair.data(seed, shots=10, imbalance=10, test=1).train[1].bincount() for seed in range(4)]
    assert all(count.max() == 10 * count.min() for count in counts)
    assert len({int(count.argmax()) for count in counts}) > 1


def test_more_real_images_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'[5-9]', but 100 were asked for to train and 100 to test"):
        PAIRS["digits 0-4 to 5-9"].data(0, shots=100, test=100)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_backbone_loads_and_its_stages_are_the_librarys(network: str, quick: Path) -> None:
    pair = Pair("test", worlds.FIGURES, worlds.OTHER_SHAPES, network)
    tuner = FineTuner(pair.model(0), device="cpu").replace_head(pair.num_classes)
    layers = [name for name, _ in tuner.model.named_children() if name.startswith("layer")]
    assert [stage.name for stage in tuner.network.stages()] == ["stem", *layers, "head"]
    data = pair.data(0, shots=2, test=2)
    tuner.fit(data.train, epochs=1, strategy="from_scratch", progress=False)
    assert 0 <= tuner.evaluate(data.test)["accuracy"] <= 1


def test_a_backbone_is_trained_once_and_again_for_another_recipe(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def files() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in quick.glob("*.safetensors")}

    weights, accuracy = backbones.backbone("batchnorm", worlds.FIGURES)
    (kept,) = files().items()
    backbones._kept.cache_clear()
    loaded, same = backbones.backbone("batchnorm", worlds.FIGURES)
    assert (dict([kept]), accuracy) == (files(), same)
    assert all(loaded[name].equal(value) for name, value in weights.items())
    monkeypatch.setattr(backbones, "RECIPE", Recipe(stencils=4, held_out=4, steps=2))
    other, _ = backbones.backbone("batchnorm", worlds.FIGURES)
    assert len(files()) == 2
    assert not other["head.weight"].equal(weights["head.weight"])


def test_every_pair_leads_to_classes_that_its_backbone_does_not_know() -> None:
    assert len(PAIRS) >= 8
    assert {pair.network for pair in PAIRS.values()} == set(NETWORKS)
    for pair in PAIRS.values():
        assert pair.source.name != pair.target.name
        drawn = [world for world in (pair.source, pair.target) if "handwritten" not in world.name]
        if len(drawn) == 2:  # a drawn figure is no handwritten one
            assert not set(pair.source.classes) & set(pair.target.classes)
