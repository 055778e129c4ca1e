"""The estimators by scikit-learn's own checks, and in its searches, validations and pipelines."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import make_regression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor, nn

from finetune import ArgumentError, FineTuner
from finetune.sklearn import FineTuneClassifier, FineTuneRegressor
from tests.helpers.models import network_for, small_mlp
from tests.helpers.tensors import gaussian_blobs

FAST: dict[str, Any] = {"lr": 0.02, "device": "cpu", "random_state": 0, "weight_decay": 0.0}


class NetworkFor:
    """`network_for` with the same name in every process, as pytest-xdist needs it in the names of tests."""

    def __call__(self, features: int) -> nn.Module:
        return network_for(features)

    def __repr__(self) -> str:
        return "network_for"


@parametrize_with_checks(
    [
        FineTuneClassifier(NetworkFor(), epochs=20, batch_size=32, **FAST),
        FineTuneRegressor(NetworkFor(), epochs=60, batch_size=16, **FAST),
    ],
)
def test_the_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)


def pictures(count: int, *, channels_last: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return raw pictures, dark or bright, with the name of what they are."""
    y = np.array(["dark", "bright"] * (count // 2))
    noise = np.random.default_rng(0).integers(0, 40, (count, 12, 12, 3))
    X = (noise + np.where(y == "bright", 180, 20)[:, None, None, None]).astype("uint8")
    return X if channels_last else X.transpose(0, 3, 1, 2), y


def small_convolution() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


IMAGES: dict[str, Any] = {"preprocessing": {"crop_size": 12}, "epochs": 6, "batch_size": 8, **FAST}


@pytest.mark.no_cover
def test_a_grid_search_in_two_processes() -> None:
    X, y = pictures(24)
    search = GridSearchCV(FineTuneClassifier(small_convolution, **IMAGES), {"lr": [1e-9, 0.05]}, cv=2, n_jobs=2)
    search.fit(X, y)
    assert search.best_params_ == {"lr": 0.05}
    assert search.best_score_ > 0.9
    assert search.best_estimator_.predict(X[:2]).tolist() == ["dark", "bright"]


def test_cross_validation_is_that_of_a_tuner() -> None:
    X, y = make_regression(60, 5, random_state=0)
    estimator = FineTuneRegressor(network_for, epochs=40, **FAST)
    pipeline = TransformedTargetRegressor(make_pipeline(StandardScaler(), estimator), transformer=StandardScaler())
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.8


def test_an_estimator_trains_as_a_tuner_does() -> None:
    X, y = gaussian_blobs()
    model = small_mlp()
    classifier = FineTuneClassifier(model, epochs=2, batch_size=8, device="cpu", random_state=3).fit(X.numpy(), y)
    tuner = FineTuner(copy.deepcopy(model), device="cpu", seed=3)
    tuner.fit((X, y), epochs=2, batch_size=8, progress=False)
    np.testing.assert_allclose(classifier.predict_proba(X.numpy()), tuner.predict_proba(X), rtol=1e-6)
    assert [row["loss"] for row in classifier.history_] == [row["loss"] for row in tuner.history]
    assert torch.equal(model[0].weight, small_mlp()[0].weight)  # the user's own is untouched


@pytest.mark.parametrize("form", ["channels first", "ready", "paths", "images"])
def test_pictures_in_every_form(form: str, tmp_path: Path) -> None:
    X, y = pictures(16)
    images = [Image.fromarray(picture) for picture in X]
    for index, image in enumerate(images):
        image.save(tmp_path / f"{index}.png")
    forms: dict[str, Any] = {
        "channels first": X.transpose(0, 3, 1, 2),
        "ready": X / 127.5 - 1,
        "paths": np.array([str(tmp_path / f"{index}.png") for index in range(16)]),
        "images": images,
    }
    classifier = FineTuneClassifier(small_convolution, **{**IMAGES, "lr": 0.05, "epochs": 20}).fit(forms[form], y)
    assert classifier.score(forms[form], y) == 1
    assert classifier.tuner_.classes == ("bright", "dark")


class BagOfWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(8, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.head((self.words(input_ids) * attention_mask[..., None]).sum(1))
        return out


def test_texts_in_a_validation() -> None:
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "a", "fine", "poor", "film"])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", model_max_length=8)
    X = np.array(["a fine film", "a poor film"] * 8, dtype=object)
    torch.manual_seed(0)  # of the embedding
    classifier = FineTuneClassifier(BagOfWords(), preprocessing=tokenizer, epochs=20, **{**FAST, "lr": 0.1})
    assert cross_val_score(classifier, X, [True, False] * 8, cv=2).mean() == 1


def test_a_fitted_estimator_survives_pickling_and_cloning() -> None:
    X, y = pictures(16)
    fitted = FineTuneClassifier(small_convolution, **IMAGES).fit(X, y)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))
    assert not hasattr(clone(fitted), "tuner_")
    np.testing.assert_array_equal(clone(fitted).fit(X, y).predict_proba(X), fitted.predict_proba(X))


def test_freezing_a_strategy_and_a_head_reach_the_tuner() -> None:
    X, y = gaussian_blobs()
    model = small_mlp()
    frozen = FineTuneClassifier(model, freeze=True, head=nn.Linear(6, 3), **FAST).fit(X.numpy(), y)
    assert torch.equal(frozen.tuner_.model[0].weight, model[0].weight)
    probed = FineTuneClassifier(model, strategy="lp_ft", epochs=2, val=0.25, **FAST).fit(X.numpy(), y)
    assert [row["phase"] for row in probed.history_] == ["linear_probe", "finetune"]
    assert "val_loss" in probed.history_[-1]


def test_a_binary_loss_has_one_output() -> None:
    X, y = pictures(16)
    classifier = FineTuneClassifier(small_convolution, loss="bce", **{**IMAGES, "lr": 0.05}).fit(X, y)
    proba = classifier.predict_proba(X)
    assert proba.shape == (16, 2)
    assert classifier.score(X, y) == 1


def test_several_labels_per_sample() -> None:
    X = np.random.default_rng(0).normal(size=(60, 2)).astype("float32")
    y = (X > 0).astype(int)
    classifier = FineTuneClassifier(network_for, epochs=30, **{**FAST, "lr": 0.1}).fit(X, y)
    assert classifier.classes_.tolist() == [0, 1]
    assert classifier.tuner_.task.kind == "multilabel"
    assert classifier.score(X, y) > 0.9  # both labels of a sample right
    np.testing.assert_array_equal(classifier.predict(X), classifier.predict_proba(X) > 0.5)
    assert cross_val_score(classifier, X, y, cv=2, scoring="f1_macro").mean() > 0.9


# Arguments that the estimators do not take, or call otherwise, and the reason.
OTHERWISE = {
    "train": "X and y",
    "seed": "random_state",
    "progress": "verbose",
    "checkpoint_dir": "every fit is a new one",
    "resume_from": "every fit is a new one",
    "resume_changed": "every fit is a new one",
    "skip_corrupt": "X and y stay as long as they are",
    "distributed": "scikit-learn runs several fits at a time by n_jobs",
}


def test_arguments_and_defaults_are_those_of_a_tuner() -> None:
    own = inspect.signature(FineTuneClassifier).parameters
    theirs = {**inspect.signature(FineTuner).parameters, **inspect.signature(FineTuner.fit).parameters}
    assert theirs.keys() - own.keys() - {"self"} == OTHERWISE.keys()
    other = {name for name in own if name in theirs and own[name].default != theirs[name].default}
    assert other == {"model", "callbacks"}  # both are copied for every fit, and parameters of scikit-learn are optional


def test_without_a_seed_each_fit_is_another() -> None:
    X, y = gaussian_blobs()
    classifier = FineTuneClassifier(network_for, device="cpu")
    first, second = (clone(classifier).fit(X.numpy(), y).predict_proba(X.numpy()) for _ in range(2))
    assert not np.array_equal(first, second)


def test_one_class_and_odd_items_are_said() -> None:
    with pytest.raises(ValueError, match="Expected labels of two classes or more, but got one class"):
        FineTuneClassifier(network_for).fit(np.zeros((4, 2)), [0] * 4)
    with pytest.raises(ValueError, match=r"Expected texts, paths or images, but X\[1\] is a int"):
        FineTuneClassifier(network_for).fit(["a.png", 3], [0, 1])


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("finetune.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn.base", None)  # importing it fails
    with pytest.raises(ArgumentError, match=r"pip install 'torch-finetune\[sklearn\]'"):
        importlib.import_module("finetune.sklearn")
