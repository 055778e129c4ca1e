"""Texts and sounds of a request: invalid inputs are refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from flask.testing import FlaskClient

from finetune import FineTuner
from finetune.serve import create_app
from tests.data.preprocessing.test_sound import make_extractor, make_model
from tests.data.preprocessing.test_text import make_bert, make_tokenizer
from tests.helpers.sounds import RATE, write_sound


@pytest.fixture(scope="module")
def texts() -> FlaskClient:
    tuner = FineTuner(make_bert(), device="cpu", preprocessing=make_tokenizer())
    tuner.replace_head(2).classes = ("bad", "good")
    return create_app(tuner).test_client()


@pytest.fixture(scope="module")
def sounds() -> FlaskClient:
    tuner = FineTuner(make_model(), device="cpu", preprocessing=make_extractor())
    tuner.replace_head(2).classes = ("high", "low")
    return create_app(tuner).test_client()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"texts": ["a good film"]}', 200),
        (b'{"texts": [" "]}', 400),
        (b'{"texts": "a good film"}', 400),
        (b"[" * 100_000, 400),
        (b'{"texts": ["\\ud800"]}', 415),
    ],
    ids=["text", "blank", "no list", "nested deeply", "half of a character"],
)
def test_texts_are_answered_or_refused(texts: FlaskClient, body: bytes, status: int) -> None:
    response = texts.post("/api/predict", data=body, content_type="application/json")
    assert response.status_code == status
    assert (status == 200) == ("answers" in response.json)


@pytest.mark.parametrize(("frames", "outcome"), [(RATE, 200), (3, 415)])
def test_a_sound_that_the_model_does_not_accept_is_refused(
    sounds: FlaskClient, tmp_path: Path, frames: int, outcome: int
) -> None:
    path = write_sound(tmp_path / "sound.wav", 9000 * np.sin(np.arange(frames) / 9))
    response = sounds.post("/api/predict", data={"file": (io.BytesIO(path.read_bytes()), "a.wav")})
    assert response.status_code == outcome
    assert ("error" in response.json) == (outcome == 415)


def test_sounds_of_several_lengths_are_answered_as_each_alone(tmp_path: Path) -> None:
    tuner = FineTuner(make_model(), device="cpu", preprocessing=make_extractor(return_attention_mask=False))
    tuner.replace_head(2).classes = ("high", "low")
    client = create_app(tuner).test_client()
    files = [
        write_sound(tmp_path / f"{frames}.wav", 9000 * np.sin(np.arange(frames) / 9)).read_bytes()
        for frames in (RATE // 4, RATE, RATE // 2)
    ]

    def answers(*contents: bytes) -> list[list[float]]:
        sent = {"file": [(io.BytesIO(content), "a.wav") for content in contents]}
        found = client.post("/api/predict", data=sent).json["answers"]
        return [sorted(one["probability"] for one in answer["classes"]) for answer in found]

    alone = [answers(content)[0] for content in files]
    assert np.ptp(alone, axis=0).max() > 1e-4  # they differ, so that a wrong one is seen
    np.testing.assert_allclose(answers(*files), alone, atol=1e-6)
