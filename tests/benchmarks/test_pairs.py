"""The pairs: the seed determines the data, training and test images are disjoint, and backbones are cached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.pairs import PAIRS, Pair, domains
from benchmarks.pairs.backbones import Recipe, backbone
from benchmarks.pairs.domains import Domain
from benchmarks.pairs.networks import NETWORKS
from benchmarks.pairs.pair import sizes
from finetune import FineTuner

pytest.importorskip("sklearn")

pairs = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


QUICK = Recipe(stencils=4, held_out=4, steps=3)


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pairs
def test_images_have_the_documented_shape_type_and_scale(pair: Pair) -> None:
    data = pair.data(0, shots=3, test=4)
    for (X, y), count in zip(data, (3, 4, 4), strict=True):
        assert (X.shape, X.dtype) == ((count * pair.num_classes, 1, 16, 16), torch.float32)
        assert y.dtype == torch.int64
        assert y.bincount().tolist() == [count] * pair.num_classes
        assert abs(X.mean()) < 1.5
        assert 0.3 < X.std() < 2
    assert data.test[1].equal(data.shifted[1])


@pairs
def test_the_seed_determines_the_images(pair: Pair) -> None:
    once, again, other = (pair.data(seed, shots=2, test=3) for seed in (1, 1, 2))
    for (X, y), (same, label), (different, _) in zip(once, again, other, strict=True):
        assert X.equal(same)
        assert y.equal(label)
        assert not rows(X) & rows(different)


@pairs
def test_training_and_test_images_are_disjoint(pair: Pair) -> None:
    data = pair.data(3, shots=20, test=20)
    assert not rows(data.train[0]) & rows(data.test[0])


@pytest.mark.parametrize("domain", [domains.DIGITS, domains.PHOTOGRAPHS], ids=lambda domain: domain.name)
def test_real_images_are_used_once(domain: Domain) -> None:
    """Training and test stencils of a class partition its images."""
    for name in domain.classes:
        every = domain.stencils.load()[name]
        train, test = (domain.stencils.draw(name, count, part, seed=3)
                       for part, count in (("train", 60), ("test", len(every) - 60)))  # fmt: skip
        assert torch.cat([train, test]).flatten(1).sort(0).values.equal(every.flatten(1).sort(0).values)


def test_the_test_images_do_not_depend_on_the_number_of_shots() -> None:
    few, many = (PAIRS["letters to digits"].data(0, shots=shots, test=5) for shots in (1, 7))
    assert few.test[0].equal(many.test[0])


@pytest.mark.parametrize(
    ("shots", "classes", "imbalance", "expected"),
    [(10, 5, 1, [10] * 5), (10, 3, 4, [4, 8, 16]), (20, 5, 16, [3, 6, 12, 24, 48]), (1, 3, 100, [1, 10, 100])],
)
def test_sizes_are_geometric(shots: int, classes: int, imbalance: float, expected: list[int]) -> None:
    assert sizes(shots, classes, imbalance) == expected


def test_class_sizes_have_the_requested_ratio_in_an_order_drawn_by_seed() -> None:
    pair = PAIRS["latin to greek"]
    counts = [pair.data(seed, shots=10, imbalance=10, test=1).train[1].bincount() for seed in range(4)]
    assert all(count.max() == 10 * count.min() for count in counts)
    assert len({int(count.argmax()) for count in counts}) > 1


def test_too_few_real_images_raise() -> None:
    with pytest.raises(ValueError, match=r"'[5-9]', but 100 were requested for training and 100 for testing"):
        PAIRS["digits 0-4 to 5-9"].data(0, shots=100, test=100)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_backbone_loads_and_the_library_finds_its_stages(network: str, tmp_path: Path) -> None:
    pair = Pair("test", domains.FIGURES, domains.OTHER_SHAPES, network, recipe=QUICK, folder=tmp_path)
    tuner = FineTuner(pair.model(0), device="cpu").replace_head(pair.num_classes)
    layers = [name for name, _ in tuner.model.named_children() if name.startswith("layer")]
    assert [stage.name for stage in tuner.network.stages()] == ["stem", *layers, "head"]
    data = pair.data(0, shots=2, test=2)
    tuner.fit(data.train, epochs=1, strategy="from_scratch", progress=False)
    assert 0 <= tuner.evaluate(data.test)["accuracy"] <= 1


def test_a_backbone_is_trained_once_per_recipe(tmp_path: Path) -> None:
    def files() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}

    weights, accuracy = backbone("batchnorm", domains.FIGURES, QUICK, tmp_path)
    (kept,) = files().items()
    backbone.cache_clear()
    loaded, same = backbone("batchnorm", domains.FIGURES, QUICK, tmp_path)
    assert (dict([kept]), accuracy) == (files(), same)
    assert all(loaded[name].equal(value) for name, value in weights.items())
    other, _ = backbone("batchnorm", domains.FIGURES, replace(QUICK, steps=2), tmp_path)
    assert len(files()) == 2
    assert not other["head.weight"].equal(weights["head.weight"])


def test_the_target_classes_of_every_pair_are_new_to_its_backbone() -> None:
    assert len(PAIRS) >= 8
    assert {pair.network for pair in PAIRS.values()} == set(NETWORKS)
    for pair in PAIRS.values():
        assert pair.source.name != pair.target.name
        drawn = [domain for domain in (pair.source, pair.target) if "handwritten" not in domain.name]
        if len(drawn) == 2:  # drawn and handwritten digits share names only
            assert not set(pair.source.classes) & set(pair.target.classes)
