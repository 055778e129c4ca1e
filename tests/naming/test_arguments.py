"""Arguments as in other libraries."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetune import FineTuner, advise, compare, greedy_soup
from finetune.errors import ArgumentError, FineTuneError
from finetune.naming import arguments

DATA = torch.randn(12, 4), torch.arange(12) % 2


def tuner(**settings: Any) -> FineTuner:
    return FineTuner(nn.Linear(4, 2), device="cpu", **settings)


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ({"pretrained": True}, "weights='DEFAULT'"),
        ({"num_classes": 3}, r"Call replace_head\(n\)"),
        ({"lr": 1e-3}, "Pass lr= to fit"),
        ({"learning_rate": 1e-3}, "Pass lr= to fit"),
        ({"criterion": nn.MSELoss()}, "Pass loss="),
        ({"random_state": 1}, "Pass seed="),
        ({"los": "mse"}, "Did you mean 'loss'"),
        ({"qqqq": 1}, "Expected model, weights"),
    ],
)
def test_an_argument_that_the_constructor_lacks_is_an_error_with_what_to_write(given: Any, fix: str) -> None:
    name = next(iter(given))
    with pytest.raises(ArgumentError, match=f"FineTuner has no argument '{name}'.*{fix}"):
        tuner(**given)


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ({"num_workers": 2}, "Pass a DataLoader"),
        ({"shuffle": True}, "Pass a DataLoader"),
        ({"verbose": 1}, "Pass progress="),
        ({"validation_data": DATA}, "Pass val="),
        ({"validation_split": 0.1}, "Pass val="),
        ({"learning_rate": 1e-3}, "Pass lr="),
        ({"bs": 4}, "Pass batch_size="),
        ({"n_epochs": 4}, "Pass epochs="),
        ({"cbs": []}, "Pass callbacks="),
        ({"optimizer": "sgd"}, "Pass optimizer= to FineTuner"),
        ({"wd": 0.1}, "Pass weight_decay= to FineTuner"),
        ({"class_weight": {0: 1.0}}, r"ClassWeights\(\)"),
        ({"bacth_size": 4}, "Did you mean 'batch_size'"),
    ],
)
def test_an_argument_that_fit_lacks_is_an_error_with_what_to_write(given: Any, fix: str) -> None:
    with pytest.raises(ArgumentError, match=f"fit has no argument '{next(iter(given))}'.*{fix}"):
        tuner().fit(DATA, **given)


def test_inputs_and_labels_apart_are_an_error_with_what_to_write() -> None:
    with pytest.raises(ArgumentError, match=r"fit has no argument 'x'. Pass the pair \(X, y\)"):
        tuner().fit(x=DATA[0], y=DATA[1])
    for call in (lambda: tuner().evaluate(*DATA), lambda: tuner().fit(*DATA, 10), lambda: tuner().fit()):
        with pytest.raises(ArgumentError, match=r"argument.*the pair \(X, y\)"):
            call()


@pytest.mark.parametrize(
    ("verb", "given", "fix"),
    [
        ("evaluate", {"verbose": 0}, "Pass progress= to fit"),
        ("evaluate", {"bs": 4}, "Pass batch_size="),
        ("predict", {"num_workers": 4}, "Pass a DataLoader"),
        ("predict", {"validation_data": DATA}, "Pass val= to fit"),
    ],
)
def test_evaluate_and_predict_explain_arguments_that_they_lack(verb: str, given: Any, fix: str) -> None:
    with pytest.raises(ArgumentError, match=f"{verb} has no argument.*{fix}"):
        getattr(tuner(), verb)(DATA, **given)


def test_compare_explains_them_too() -> None:
    with pytest.raises(ArgumentError, match="Pass batch_size="):
        compare(nn.Linear(4, 2), DATA, DATA, bs=4)


def test_an_error_inside_a_verb_is_its_own() -> None:
    class Broken(FineTuner):
        def training_step(self, batch: Any) -> Any:
            return len(3)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        Broken(nn.Linear(4, 2), device="cpu").fit(DATA, progress=False)


def test_signatures_are_those_of_the_methods() -> None:
    assert "epochs" in inspect.signature(FineTuner.fit).parameters
    assert [one.kind.name for one in inspect.signature(FineTuner).parameters.values()].count("VAR_KEYWORD") == 0
    assert FineTuner.fit.__qualname__ == "FineTuner.fit"
    assert "Passes over the training data" in str(inspect.getdoc(FineTuner.fit))


def test_synonyms_are_of_arguments_and_none_is_one() -> None:
    known = {name for verb in (FineTuner, FineTuner.fit) for name in inspect.signature(verb).parameters}
    assert {*arguments._SYNONYMS} <= known
    assert not known & ({*arguments._OURS} | {*arguments._INSTEAD})


def test_a_warning_points_at_the_call_of_the_verb() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with pytest.warns(UserWarning, match="is frozen") as given:
        FineTuner(model, device="cpu").replace_head(2).freeze("1").fit(DATA, progress=False)
    assert given[0].filename == __file__


# ---------------------------------------------------------------------- counts

MISSING = "no/such/folder"  # an error of its own, if it is opened
VERBS = {
    "fit": lambda **counts: tuner().fit(MISSING, **counts),
    "evaluate": lambda **counts: tuner().evaluate(MISSING, **counts),
    "predict": lambda **counts: tuner().predict(MISSING, **counts),
    "advise": lambda **counts: tuner().advise(MISSING, **counts),
    "find_lr": lambda **counts: tuner().find_lr(MISSING, **counts),
    "compare": lambda **counts: compare(nn.Linear(4, 2), MISSING, **counts),
    "finetune.advise": lambda **counts: advise(nn.Linear(4, 2), MISSING, **counts),
    "greedy_soup": lambda **counts: greedy_soup([MISSING], MISSING, **counts),
}
COUNTS = {
    "fit": ("epochs", "augment_views"),
    "advise": ("samples",),
    "finetune.advise": ("samples",),
    "find_lr": ("steps",),
}
PAIRS = [(verb, name) for verb in VERBS for name in ("batch_size", *COUNTS.get(verb, ()))]


@pytest.mark.parametrize("value", [2.5, 32.0, -1, True, "8", [8], float("nan")], ids=repr)
@pytest.mark.parametrize(("verb", "name"), PAIRS)
def test_counts_are_checked_before_any_data_is_opened(verb: str, name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"Expected {name} to be a whole number of at least"):
        VERBS[verb](**{name: value})


@pytest.mark.parametrize(("verb", "name"), PAIRS)
def test_counts_may_be_whole_numbers_of_other_libraries(verb: str, name: str) -> None:
    with pytest.raises(FineTuneError, match="no/such/folder"):
        VERBS[verb](**{name: np.int64(12)})
    with pytest.raises(FineTuneError, match="no/such/folder"):
        VERBS[verb](**{name: torch.tensor(12)})


@pytest.mark.parametrize(("verb", "name"), [pair for pair in PAIRS if pair[1] != "augment_views"])
def test_counts_are_not_zero_or_none(verb: str, name: str) -> None:
    for value in (0, None):
        with pytest.raises(ArgumentError, match=f"Expected {name} to be a whole number of at least"):
            VERBS[verb](**{name: value})


def test_every_count_of_a_verb_is_checked() -> None:
    annotated = {
        name
        for verb in ("fit", "evaluate", "predict", "advise", "find_lr", "replace_head")
        for name, parameter in inspect.signature(getattr(FineTuner, verb)).parameters.items()
        if parameter.annotation in ("int", "int | None")
    }
    assert annotated == arguments._COUNTS.keys()
