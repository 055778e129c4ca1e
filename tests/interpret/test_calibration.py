"""Calibration: the temperature against SciPy's minimum, and the thresholds against every possible one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.metrics import f1_score
from torch import Tensor, nn

from finetune import ArgumentError, CheckpointError, FineTuner, NonFiniteError
from finetune.interpret.calibration import Calibration, best_threshold
from finetune.training.tasks import LOG_PROBABILITIES, PROBABILITIES, Task, infer_task

CLASSES, LABELS = infer_task("cross_entropy", None, num_outputs=3), infer_task("bce", None, num_outputs=3)
ONE = infer_task("bce", None, num_outputs=1)


def sample(seed: int, scale: float, *, labels: bool = False, count: int = 60) -> tuple[Tensor, Tensor]:
    """Return logits that are `scale` times as sure as they are right, and targets drawn from the right ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 3, generator=generator)
    if labels:
        return scale * logits, torch.bernoulli(logits.sigmoid(), generator=generator)
    return scale * logits, torch.multinomial(logits.softmax(1), 1, generator=generator).flatten()


def likelihood(outputs: Tensor, targets: Tensor, temperature: float) -> float:
    scaled = outputs.double() / temperature
    if targets.is_floating_point():
        return float(F.binary_cross_entropy_with_logits(scaled, targets.double()))
    return float(F.cross_entropy(scaled, targets))


@given(st.integers(0, 10**6), st.floats(0.5, 4), st.booleans())
def test_the_temperature_has_the_lowest_negative_log_likelihood(seed: int, scale: float, labels: bool) -> None:
    outputs, targets = sample(seed, scale, labels=labels)
    found = Calibration.fit(LABELS if labels else CLASSES, outputs, targets).temperature
    best = minimize_scalar(
        lambda log: likelihood(outputs, targets, np.exp(log)), bounds=(np.log(0.05), np.log(20)), method="bounded"
    )
    assert likelihood(outputs, targets, found) <= best.fun + 1e-7


@pytest.mark.parametrize("scale", [0.3, 1.0, 5.0])
def test_the_temperature_of_logits_that_are_too_sure_is_found(scale: float) -> None:
    outputs, targets = sample(0, scale, count=20_000)
    assert Calibration.fit(CLASSES, outputs, targets).temperature == pytest.approx(scale, rel=0.05)


@pytest.mark.parametrize("form", [LOG_PROBABILITIES, PROBABILITIES])
def test_the_form_of_the_outputs_changes_nothing(form: str) -> None:
    outputs, targets = sample(0, 3.0)
    given = outputs.log_softmax(1) if form == LOG_PROBABILITIES else outputs.softmax(1)
    task = Task("classification", F.cross_entropy, outputs=form)
    expected, found = Calibration.fit(CLASSES, outputs, targets), Calibration.fit(task, given, targets)
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-3)
    torch.testing.assert_close(found.probabilities(task, given), expected.probabilities(CLASSES, outputs))


def test_targets_that_the_loss_ignores_do_not_count() -> None:
    outputs, targets = sample(0, 3.0)
    task = infer_task(nn.CrossEntropyLoss(ignore_index=1), None, num_outputs=3)
    kept = targets != 1
    assert Calibration.fit(task, outputs, targets) == Calibration.fit(CLASSES, outputs[kept], targets[kept])


def test_elements_of_maps_count_as_samples_do() -> None:
    outputs, targets = sample(0, 3.0)
    maps, labels = outputs.T.reshape(1, 3, 6, 10), targets.reshape(1, 6, 10).clone()
    assert Calibration.fit(CLASSES, maps, labels) == Calibration.fit(CLASSES, outputs, targets)
    labels[0, 0] = -100  # borders, which the loss leaves out
    assert Calibration.fit(CLASSES, maps, labels) == Calibration.fit(CLASSES, outputs[10:], targets[10:])


@pytest.mark.parametrize(("loss", "count"), [("cross_entropy", 2), ("bce", 3), ("bce", 1)])
def test_outputs_that_are_nan_calibrate_nothing(loss: str, count: int) -> None:
    X, y = torch.randn(20, 4), torch.arange(20) % 2
    tuner = FineTuner(nn.Linear(4, count), loss=loss, device="cpu")
    data = X, torch.stack([y, 1 - y, y], 1).float() if count == 3 else y
    before = tuner.calibrate(data).predict_proba(X)
    bias = tuner.model.bias
    kept, bias.data = bias.data.clone(), bias.data * torch.nan
    for verb in (tuner.calibrate, tuner.interpret):
        with pytest.raises(NonFiniteError, match="NaN for 20 of 20 samples; the first is sample 0"):
            verb(data)
    with pytest.raises(NonFiniteError, match="NaN for 20 of 20"):
        tuner.predict_proba(X)
    bias.data = kept
    assert torch.equal(tuner.predict_proba(X), before)


def test_a_class_that_the_model_rules_out_changes_nothing() -> None:
    outputs, targets = sample(0, 3.0)
    ruled_out = torch.cat([outputs, torch.full((len(outputs), 1), -torch.inf)], 1)
    expected = Calibration.fit(CLASSES, outputs, targets)
    assert Calibration.fit(CLASSES, ruled_out, targets).temperature == pytest.approx(expected.temperature)


def test_rows_of_probabilities_are_targets_too() -> None:
    outputs, targets = sample(0, 3.0)
    rows = F.one_hot(targets, 3).float()
    assert Calibration.fit(CLASSES, outputs, rows) == Calibration.fit(CLASSES, outputs, targets)


@pytest.mark.parametrize(("sign", "limit"), [(1, 0.05), (-1, 20.0)])
def test_a_temperature_at_its_limit_is_said(sign: int, limit: float, caplog: pytest.LogCaptureFixture) -> None:
    outputs = sign * 10.0 * torch.eye(3)
    assert Calibration.fit(CLASSES, outputs, torch.arange(3)).temperature == limit
    assert f"reached its limit of {limit}" in caplog.text


scores = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=1, max_size=12)


@given(scores)
def test_a_threshold_has_the_highest_f1(pairs: list[tuple[float, bool]]) -> None:
    probabilities, labels = torch.tensor([p for p, _ in pairs]), torch.tensor([float(y) for _, y in pairs])
    found = best_threshold(probabilities, labels)

    def f1(threshold: float) -> float:
        return float(f1_score(labels.numpy(), (probabilities >= threshold).numpy(), zero_division=0))

    assert f1(found) == pytest.approx(max(map(f1, [0.0, *probabilities.tolist()])))


def test_a_label_that_never_occurs_keeps_one_half() -> None:
    assert best_threshold(torch.rand(5), torch.zeros(5)) == 0.5


def test_a_binary_task_has_one_threshold_and_a_multi_label_task_one_per_label() -> None:
    outputs, targets = sample(0, 1.0, labels=True)
    assert len(Calibration.fit(LABELS, outputs, targets).thresholds or ()) == 3
    for one in (outputs[:, :1], outputs[:, 0]):
        assert len(Calibration.fit(ONE, one, targets[:, 0]).thresholds or ()) == 1


def test_a_calibration_changes_probabilities_but_no_order_and_stays_in_the_checkpoint(tmp_path: Any) -> None:
    torch.manual_seed(0)
    X = torch.randn(60, 4)
    y = X[:, :3].argmax(1)
    tuner = FineTuner(nn.Sequential(nn.Linear(4, 3)), device="cpu")
    tuner.fit((X, y), epochs=3, lr=0.1)
    plain = tuner.predict_proba(X)
    torch.testing.assert_close(plain, tuner.predict(X).softmax(1))
    calibrated = tuner.calibrate((X, y)).predict_proba(X)
    assert not torch.allclose(plain, calibrated)
    assert torch.equal(plain.argmax(1), calibrated.argmax(1))

    path = tuner.save_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(
        FineTuner.load_checkpoint(path, nn.Sequential(nn.Linear(4, 3)), device="cpu").predict_proba(X), calibrated
    )

    tuner.fit((X, y), epochs=1)
    torch.testing.assert_close(tuner.predict_proba(X), tuner.predict(X).softmax(1))  # it was of other weights
    tuner.calibrate((X, y)).replace_head(3)
    tuner.classes = "a", "b", "c"
    torch.testing.assert_close(tuner.predict_proba(X), tuner.predict(X).softmax(1))


def test_a_failed_fit_keeps_the_calibration() -> None:
    X, y = torch.randn(20, 4), torch.arange(20) % 2
    tuner = FineTuner(nn.Linear(4, 2), device="cpu").calibrate((X, y))
    before = tuner.predict_proba(X)
    with pytest.raises(ArgumentError):
        tuner.fit((X, y), strategy="none")
    assert torch.equal(tuner.predict_proba(X), before)


@pytest.mark.parametrize(
    "saved",
    [
        {"temperature": 0, "thresholds": None}, {"temperature": -1.0, "thresholds": None},
        {"temperature": float("nan"), "thresholds": None}, {"temperature": float("inf"), "thresholds": None},
        {"temperature": 1.0, "thresholds": [0.5, -1]}, {"temperature": 1.0, "thresholds": [float("nan")]},
    ],
)  # fmt: skip
def test_the_calibration_of_a_file_is_checked(saved: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="Expected a temperature and thresholds"):
        Calibration.from_dict(saved)


def test_thresholds_of_another_number_of_labels_are_an_error() -> None:
    with pytest.raises(ArgumentError, match=r"has 2 thresholds, but the model has 3 labels\. Call calibrate again"):
        Calibration(1.0, (0.5, 0.5)).thresholds_for(3)


def test_a_regression_and_an_unknown_task_have_no_probabilities() -> None:
    X = torch.randn(8, 4)
    tuner = FineTuner(nn.Linear(4, 1), device="cpu")
    tuner.fit((X, torch.randn(8)))
    for call in (lambda: tuner.predict_proba(X), lambda: tuner.calibrate((X, torch.randn(8)))):
        with pytest.raises(ArgumentError, match="A regression has no probabilities"):
            call()
    with pytest.raises(ArgumentError, match=r"meaning of the outputs is unknown.* tuner\.classes = "):
        FineTuner(nn.Linear(4, 2), device="cpu").predict_proba(X)
