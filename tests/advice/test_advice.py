"""Advice from evidence: its quadrant, reasons and chart, and its use in `fit`."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from finetune import Advice, FineTuner, strategies
from finetune.advice.advice import judge
from finetune.advice.chart import MUCH, NEAR, QUADRANTS, quadrant
from finetune.advice.evidence import Evidence
from finetune.demo import DigitNet

EVIDENCE = Evidence(
    samples=400, measured=200, class_sizes=(60, 60, 40, 40), h_score=0.5, log_me=-0.2, knn=0.6, probe=0.7, spread=0.02,
    curve=((40, 0.5), (80, 0.6), (160, 0.7)), probe_of_stages=0.75, probe_on_validation=0.65,
)  # fmt: skip

HEAD_RATE = 1e-3


def at(samples: float, nearness: float, spread: float = 0.0) -> Evidence:
    """Return evidence at a point of the chart."""
    return replace(EVIDENCE, samples=round(4 * samples), probe=0.25 + 0.75 * nearness, spread=spread)


@given(st.floats(1, 10_000), st.floats(-0.2, 1))
def test_every_point_has_a_quadrant_with_a_valid_strategy(samples, nearness):
    advice = judge(at(samples, nearness), HEAD_RATE)

    assert advice.quadrant == quadrant(round(4 * samples) / 4, advice.evidence.nearness).name
    assert callable(strategies.get_strategy(advice.strategy))
    assert advice.lr in (None, (0.1 * HEAD_RATE, HEAD_RATE))
    assert 0 < advice.confidence <= 1
    assert [reason.count(". ") + reason.endswith(".") for reason in advice.reasons] == [1, 1, 1]


def test_confidence_is_lower_if_the_spread_reaches_another_recommendation():
    for much in (2, 4000):
        here, there = quadrant(much, NEAR - 0.05), quadrant(much, NEAR + 0.05)
        clear, doubtful = (judge(at(much, NEAR - 0.05, spread), HEAD_RATE) for spread in (0.01, 0.1))
        assert clear.confidence == here.right
        assert (doubtful.confidence < here.right) == (not here.advises_as(there))


def test_recommended_rates_are_printed_and_end_at_the_default_of_the_head():
    far = next(each for each in QUADRANTS if each.first_share is not None)
    samples, nearness = (2 * MUCH if far.much else 2), (NEAR + 0.1 if far.near else NEAR - 0.1)

    advice = judge(at(samples, nearness), 1 / 768)

    assert far.first_share == 0.1
    assert advice.lr == (0.00013, 0.0013)
    assert str(advice).startswith(f"Recommended: fit(strategy={far.strategy!r}, lr=(0.00013, 0.0013))")
    assert "larger learning rates below the head" in advice.reasons[1]


def test_the_text_has_the_call_the_reasons_and_every_number():
    said = " ".join(str(judge(EVIDENCE, HEAD_RATE)).split())

    assert said.startswith("Recommended: fit(strategy=")
    for reason in judge(EVIDENCE, HEAD_RATE).reasons:
        assert reason in said
    for number in (
        "400",
        "0.700",
        "0.633 to 0.759 (95 %)",
        "0.750",
        "0.650",
        "0.600",
        "0.500 from 40",
        "imbalance 1.5",
        "-0.200",
    ):
        assert number in said
    assert "on validation" not in str(judge(replace(EVIDENCE, probe_on_validation=None), HEAD_RATE))


def test_the_words_hold_at_the_ends_of_the_scale():
    perfect = judge(replace(EVIDENCE, probe=1.0, spread=0.0), HEAD_RATE)
    assert "100 % accurate (95 % interval 98 % to 100 %)" in perfect.reasons[0]
    assert perfect.quadrant == "8 or more samples per class, near"
    assert "much" not in str(perfect)
    assert perfect.plot().axes[0].get_xlim() == (0, 1)
    few = judge(replace(EVIDENCE, samples=8, measured=8, class_sizes=(2, 2, 2, 2), probe=0.0), HEAD_RATE)
    assert "0 % accurate (95 % interval 0 % to 32 %)" in few.reasons[0]
    assert few.quadrant == "fewer than 8 samples per class, far"
    assert few.plot().axes[0].get_xlim() == (0, 1)


def test_a_doubt_names_the_other_place_and_the_confidence():
    doubtful = judge(at(2, NEAR - 0.05, 0.1), HEAD_RATE)
    percent = f"{100 * doubtful.confidence:.0f} %"
    assert "may also count as fewer than 8 samples per class, near" in doubtful.reasons[2]
    assert doubtful.reasons[2].endswith(f"lowers the confidence to {percent}.")
    assert f"Confidence {percent}" in str(doubtful)


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_the_interval_of_the_probe_is_a_wilson_interval(probe, measured):
    low, high = replace(EVIDENCE, probe=probe, measured=measured).interval
    assert 0 <= low <= probe + 1e-9
    assert probe - 1e-9 <= high <= 1
    right = round(probe * measured)
    expected = stats.binomtest(right, measured).proportion_ci(0.95, "wilson")
    exact = replace(EVIDENCE, probe=right / measured, measured=measured).interval
    assert exact == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_random_weights_are_called_by_their_name(pictures):
    advice = FineTuner("resnet18", weights=None, device="cpu", preprocessing={"crop_size": 32}).advise(
        (pictures[0].repeat(1, 3, 4, 4), pictures[1])
    )
    assert advice.strategy == "full_finetune"
    assert "nothing was pretrained" in advice.reasons[0]
    assert "class, near" not in str(advice)
    assert "Confidence" not in str(advice)


def test_advice_shows_itself():
    advice = judge(EVIDENCE, HEAD_RATE)
    assert repr(advice).startswith("Advice(strategy='")
    assert len(repr(advice)) < 80
    page = advice._repr_html_()
    assert all(word in page for word in ("Recommended", "linear probe", advice.reasons[1]))
    ElementTree.fromstring(f"<div>{page}</div>")


def test_the_chart_shows_the_data(tmp_path: Path):
    figure = judge(EVIDENCE, HEAD_RATE).plot(tmp_path / "chart.png")

    axes = figure.axes[0]
    assert all(text.get_text().startswith(each.strategy) for text, each in zip(axes.texts, QUADRANTS, strict=True))
    assert "your data" in figure.legends[0].get_texts()[0].get_text()
    assert NEAR in axes.get_xticks()
    assert MUCH in axes.get_yticks()
    with Image.open(tmp_path / "chart.png") as drawn:
        assert drawn.size[0] > 300


@pytest.fixture(scope="module")
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    return torch.randn(40, 1, 8, 8, generator=generator) + labels[:, None, None, None], labels


def test_fit_accepts_the_recommendation(pictures):
    tuner = FineTuner(DigitNet(4))
    advice = tuner.advise(pictures)

    assert isinstance(advice, Advice)
    assert advice == judge(advice.evidence, HEAD_RATE)  # 1,280 features give the lowest default rate
    tuner.fit(pictures, epochs=2, strategy=advice.strategy, lr=advice.lr, progress=False)
    assert len(tuner.history) == 2
