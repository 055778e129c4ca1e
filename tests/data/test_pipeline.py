"""The pipeline from data to batches, without a `FineTuner`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from finetune.data.pipeline import Pipeline
from finetune.data.preprocessing.images import Preprocessing
from finetune.data.preprocessing.text import TextPreprocessing
from finetune.data.sources.base import Source
from finetune.data.sources.labels import Meaning
from finetune.data.targets import CLASSIFICATION, TargetRule
from finetune.errors import DataError

TINY = Preprocessing(crop_size=(8, 8), resize_size=8)


def arrays(n: int = 12) -> tuple[Tensor, Tensor]:
    return torch.arange(4.0 * n).view(n, 4), torch.arange(n) % 3


def test_a_folder_becomes_normalized_batches(class_folder: Callable[..., Path]) -> None:
    pipeline = Pipeline(TINY)
    source = pipeline.audited(pipeline.open(class_folder(cat=3, dog=2)), "training", rule=TargetRule(CLASSIFICATION, 2))
    (inputs, targets), rest = pipeline.batches(source, 4).epoch(0)

    assert inputs.shape == (4, 3, 8, 8)
    assert inputs.dtype == torch.float32
    assert torch.cat([targets, rest[1]]).tolist() == [0, 0, 0, 1, 1]


def test_the_example_is_the_first_two_samples() -> None:
    pipeline, (X, y) = Pipeline(), arrays()
    for data in ((X, y), TensorDataset(X, y), DataLoader(TensorDataset(X, y), batch_size=5)):
        assert torch.equal(pipeline.example(pipeline.open(data)), X[:2])


def test_empty_data_is_named_by_its_role() -> None:
    pipeline, (X, y) = Pipeline(), arrays()
    for empty in ((X[:0], y[:0]), ([], []), TensorDataset(X[:0], y[:0])):
        for labeled, role in ((True, "evaluation"), (False, "prediction")):
            with pytest.raises(DataError, match=f"The {role} data is empty"):
                pipeline.open(empty, labeled=labeled)
        for train, val, role in ((empty, None, "training"), (empty, 0.2, "training"), ((X, y), empty, "validation")):
            with pytest.raises(DataError, match=f"The {role} data is empty"):
                pipeline.open_training(train, val)


def test_the_seed_decides_split_and_order() -> None:
    def order(seed: int) -> list[float]:
        pipeline = Pipeline(seed=seed)
        data = pipeline.open_training(arrays(), 0.25)
        train, val = pipeline.training_batches(data, 4)
        assert val is not None
        return [row for batches in (train, val) for inputs, _ in batches.epoch(0) for row in inputs[:, 0].tolist()]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert sorted(order(0)) == sorted(order(1)) == arrays()[0][:, 0].tolist()


def test_training_data_is_audited_under_its_own_name() -> None:
    pipeline, (X, y) = Pipeline(), arrays()
    X[5, 0] = float("nan")
    with pytest.raises(DataError, match="sample 5"):
        pipeline.training_batches(pipeline.open_training((X, y), False), 4, rule=TargetRule(CLASSIFICATION, 3))
    with pytest.raises(DataError, match="labels are out of range"):
        pipeline.training_batches(pipeline.open_training(arrays(), arrays()), 4, rule=TargetRule(CLASSIFICATION, 2))


@pytest.mark.parametrize("from_data", [False, True])
def test_classes_of_the_weights_keep_their_order_and_those_of_data_rule(
    from_data: bool, class_folder: Callable[..., Path]
) -> None:
    folder, pipeline = class_folder(cat=2, dog=2), Pipeline(TINY)

    def opened(*classes: str) -> Source:
        known = {"meaning": Meaning(classes)} if from_data else {"model_classes": classes}
        return pipeline.open_training(folder, False, **known).train

    assert opened("dog", "cat", "eel").classes == ("dog", "cat", "eel")

    if from_data:
        with pytest.raises(DataError, match="'cat'"):
            opened("dog", "eel")
    else:
        assert opened("dog", "eel").classes == ("cat", "dog")


def test_the_preprocessing_says_what_it_takes() -> None:
    assert Pipeline(TINY).takes == "picture"
    assert Pipeline().takes is None
    assert TextPreprocessing.kind == "text"
