"""The page and the JSON API: the answers of `classify`, and a clear error for everything else."""

from __future__ import annotations

import base64
import io
import tempfile
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from finetune import ArgumentError, FineTuner
from finetune.serve import Limits, create_app
from tests.helpers.image_files import picture

BREEDS = ("husky", "pug", "<b>사모예드</b>")
LIMITS = Limits(file_bytes=20_000, files=4, pixels=10_000)


def image_tuner(outputs: int = 3, loss: str | None = "cross_entropy") -> FineTuner:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs)
    )
    tuner = FineTuner(model, device="cpu", loss=loss, preprocessing={"crop_size": 16, "resize_size": 18})
    if loss != "mse":
        tuner.classes = BREEDS[:outputs]
    return tuner


def content(seed: int, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture(seed, **options).save(file, form)
    return file.getvalue()


def files(*contents: bytes) -> dict[str, Any]:
    return {"data": {"file": [(io.BytesIO(each), f"{place}.png") for place, each in enumerate(contents)]}}


@pytest.fixture(scope="module")
def client() -> FlaskClient:
    return create_app(image_tuner(), limits=LIMITS).test_client()


def ask(client: FlaskClient, *contents: bytes, **options: Any) -> Any:
    return client.post("/api/predict", **files(*contents), **options)


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_answers_are_those_of_classify(client: FlaskClient, mode: str) -> None:
    contents = [content(seed, size=(40 + seed, 32), mode=mode) for seed in range(3)]
    answers = ask(client, *contents).json["answers"]
    expected = image_tuner().classify(contents)
    assert [each["name"] for each in answers] == ["0.png", "1.png", "2.png"]
    for answer, own in zip(answers, expected, strict=True):
        assert answer["answer"] == own.best
        assert [each["name"] for each in answer["classes"]] == list(own.classes)
        assert [each["probability"] for each in answer["classes"]] == pytest.approx(own.probabilities, abs=1e-6)


def test_concurrent_requests_get_their_own_answers(client: FlaskClient) -> None:
    contents = [content(seed) for seed in range(12)]
    alone = [ask(client, each).json["answers"][0] for each in contents]
    with ThreadPoolExecutor(12) as threads:
        together = list(
            threads.map(lambda each: ask(client.application.test_client(), each).json["answers"][0], contents * 4)
        )
    for found, expected in zip(together, alone * 4, strict=True):
        assert found["answer"] == expected["answer"]
        for one, other in zip(found["classes"], expected["classes"], strict=True):
            assert one["probability"] == pytest.approx(other["probability"], abs=1e-6)


def test_the_bytes_of_a_file_are_answered(client: FlaskClient) -> None:
    found = client.post("/api/predict", data=content(1), content_type="image/png").json["answers"]
    assert found[0]["classes"] == ask(client, content(1)).json["answers"][0]["classes"]


def test_top_limits_the_classes(client: FlaskClient) -> None:
    assert len(ask(client, content(1), query_string={"top": 2}).json["answers"][0]["classes"]) == 2


@pytest.mark.parametrize("top", ["0", "-1", "x", "1.5", "²"])
def test_an_invalid_top_is_a_clear_error(client: FlaskClient, top: str) -> None:
    response = ask(client, content(1), query_string={"top": top})
    assert (response.status_code, response.json["error"]["code"]) == (400, "bad_parameter")


def test_a_file_that_cannot_be_read_leaves_the_others(client: FlaskClient) -> None:
    answers = ask(client, content(1), b"not an image", content(2)).json["answers"]
    assert [each.get("error", {}).get("code") for each in answers] == [None, "not_readable", None]
    assert answers[2]["classes"] == ask(client, content(2)).json["answers"][0]["classes"]


def test_an_unsure_answer_is_rejected() -> None:
    answer = ask(create_app(image_tuner(), reject=0.99).test_client(), content(1)).json["answers"][0]
    assert answer["rejected"]
    assert answer["answer"] is None
    assert len(answer["classes"]) == 3


def test_a_multi_label_model_answers_with_every_label_above_its_threshold() -> None:
    app = create_app(image_tuner(loss="bce"), threshold=0.0, top=1)
    assert len(ask(app.test_client(), content(1)).json["answers"][0]["classes"]) == 3


def test_a_regression_answers_with_values() -> None:
    tuner = image_tuner(outputs=1, loss="mse")
    answer = ask(create_app(tuner).test_client(), content(1)).json["answers"][0]
    assert answer["values"]["value"] == pytest.approx(tuner.predict([content(1)]).item(), abs=1e-6)


def test_texts_and_links_of_classes_come_with_answers(tmp_path: Path) -> None:
    (tmp_path / "breeds.csv").write_text("class,text,link\npug,Small.,https://example.org\n")
    app = create_app(image_tuner(), info=tmp_path / "breeds.csv")
    classes = {each["name"]: each for each in ask(app.test_client(), content(1)).json["answers"][0]["classes"]}
    assert (classes["pug"]["text"], classes["pug"]["link"]) == ("Small.", "https://example.org")
    assert "text" not in classes["husky"]


def test_heatmaps_are_those_of_the_tuner(client: FlaskClient) -> None:
    contents = [content(1), content(2)]
    answers = ask(client, *contents, query_string={"heatmap": 1}).json["answers"]
    expected = image_tuner().heatmaps(contents)
    for place, answer in enumerate(answers):
        kind, _, encoded = answer["heatmap"].partition(",")
        assert kind == "data:image/png;base64"
        found, own = (Image.open(io.BytesIO(png)) for png in (base64.b64decode(encoded), expected.png(place, 512)))
        assert np.abs(np.asarray(found, int) - np.asarray(own, int)).max() <= 1
    assert "heatmap" not in ask(client, content(1)).json["answers"][0]


def test_a_model_without_positions_has_no_heatmaps() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    tuner = FineTuner(model, device="cpu", loss="cross_entropy", preprocessing={"crop_size": 16})
    tuner.classes = BREEDS
    client = create_app(tuner).test_client()
    assert client.get("/api/model").json["heatmaps"] is False
    response = ask(client, content(1), query_string={"heatmap": 1})
    assert (response.status_code, response.json["error"]["code"]) == (400, "no_heatmap")


# ---------------------------------------------------------------------- refusals


def test_limits_are_kept(client: FlaskClient) -> None:
    large = Image.new("RGB", (101, 100))
    file = io.BytesIO()
    large.save(file, "PNG")
    assert ask(client, file.getvalue()).json["error"]["code"] == "too_large"
    assert ask(client, bytes(20_001)).status_code == 413
    assert ask(client, *[content(1)] * 5).json["error"]["code"] == "too_many"
    assert ask(client, bytes(200_000)).json["error"]["code"] == "too_large"


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_get_a_clear_client_error(client: FlaskClient, body: bytes) -> None:
    for kind in ("image/png", "multipart/form-data; boundary=x", "application/json", ""):
        response = client.post("/api/predict", data=body, content_type=kind)
        assert 400 <= response.status_code < 500
        assert set(response.json["error"]) == {"code", "message"}


def test_a_truncated_image_is_refused(client: FlaskClient) -> None:
    whole = content(1)
    for length in range(0, len(whole), 200):
        assert ask(client, whole[:length]).status_code in (400, 415)


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/none", "GET", 404), ("/api/predict", "GET", 405), ("/", "POST", 405)]
)
def test_unknown_routes_answer_in_json(client: FlaskClient, path: str, method: str, status: int) -> None:
    response = client.open(path, method=method)
    assert response.status_code == status
    assert response.json["error"]["message"]
    assert (status == 405) == ("Allow" in response.headers)


def test_other_hosts_and_sites_are_refused(client: FlaskClient) -> None:
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 403
    assert client.get("/", headers={"Host": "127.0.0.1:8000"}).status_code == 200
    assert ask(client, content(1), headers={"Origin": "http://evil.example"}).status_code == 403
    assert ask(client, content(1), headers={"Origin": "http://localhost"}).status_code == 200
    named = create_app(image_tuner(), hosts=["Dogs.example"]).test_client()
    assert named.get("/", headers={"Host": "dogs.example"}).status_code == 200


def test_a_full_queue_is_said_with_a_time_to_wait() -> None:
    client = create_app(image_tuner(), queue=1).test_client()
    response = ask(client, content(1), content(2))
    assert (response.status_code, response.json["error"]["code"]) == (503, "busy")
    assert int(response.headers["Retry-After"]) > 0


class Slow(nn.Module):
    """A classifier that waits for an event while it is busy."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.may_go = threading.Event()
        self.may_go.set()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert self.may_go.wait(30)
        return self.head(images.mean((2, 3)))


def test_requests_beyond_the_queue_are_refused_while_others_are_computed() -> None:
    torch.manual_seed(0)
    slow = Slow()
    tuner = FineTuner(slow, device="cpu", loss="cross_entropy", preprocessing={"crop_size": 16, "resize_size": 18})
    app = create_app(tuner, queue=2)
    slow.may_go.clear()
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(ask, app.test_client(), content(seed)) for seed in range(3)]
        try:
            refused, _ = wait(asked, timeout=20, return_when=FIRST_COMPLETED)
        finally:
            slow.may_go.set()
        assert [each.result().status_code for each in refused] == [503]
        assert sorted(each.result().status_code for each in asked) == [200, 200, 503]


def test_nothing_of_an_upload_is_written_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    client = create_app(image_tuner()).test_client()
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    body = head + file.getvalue() + b"\r\n--x--\r\n"
    assert len(body) > 2_000_000
    monkeypatch.setattr(tempfile, "tempdir", "/there/is/no/such/folder")
    with pytest.raises(FileNotFoundError), tempfile.TemporaryFile():
        pass
    response = client.post("/api/predict", data=body, content_type="multipart/form-data; boundary=x")
    assert response.status_code == 200


def test_a_model_without_preprocessing_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="No preprocessing is known"):
        create_app(FineTuner(nn.Linear(4, 3), device="cpu"))


# ---------------------------------------------------------------------- page and descriptions


class Page(HTMLParser):
    """Elements of a page, and whether their ids are unique."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


@pytest.mark.parametrize(("header", "language"), [("ko-KR,ko;q=0.9", "ko"), ("de", "en"), ("", "en")])
def test_the_page_speaks_the_language_of_the_browser(client: FlaskClient, header: str, language: str) -> None:
    page = Page(client.get("/", headers={"Accept-Language": header}).text)
    assert ("html", {"lang": language}) in page.elements
    assert client.get("/?lang=ko").text.startswith('<!doctype html>\n<html lang="ko">')


def test_the_page_asks_no_other_server(client: FlaskClient) -> None:
    elements = Page(client.get("/").text).elements
    for _, attributes in elements:
        for name in ("src", "href", "action"):
            assert not (attributes.get(name) or "").startswith(("http", "//"))
        assert not {"style", "onclick", "onload"} & attributes.keys()
    for path in [each["src"] for tag, each in elements if tag == "script" and "src" in each]:
        with client.get(str(path)) as response:
            assert response.status_code == 200


def test_names_of_classes_are_escaped(client: FlaskClient) -> None:
    assert "<b>사모예드" not in client.get("/").text


def test_every_response_has_the_security_headers(client: FlaskClient) -> None:
    for path in ("/", "/page/page.js", "/none", "/health"):
        with client.get(path) as response:
            assert "unsafe" not in response.headers["Content-Security-Policy"]
            assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_both_languages_have_the_same_words() -> None:
    from finetune.serve.app import _words

    english, korean = _words().values()
    assert english.keys() == korean.keys()
    for name, text in english.items():
        assert sorted(part.partition("}")[0] for part in text.split("{")[1:]) == sorted(
            part.partition("}")[0] for part in korean[name].split("{")[1:]
        )


def test_health_and_metrics_tell_of_the_server() -> None:
    app = create_app(image_tuner())
    client = app.test_client()
    ask(client, content(1), content(2))
    assert client.get("/health").json == {"status": "ok"}
    text = client.get("/metrics").text
    assert 'finetune_requests_total{route="/api/predict",status="200"} 1.0' in text
    assert "finetune_batch_samples_sum 2.0" in text
    app.extensions["finetune"].close()
    assert client.get("/health").status_code == 503


def test_the_api_is_described() -> None:
    client = create_app(image_tuner(), top=2).test_client()
    described = client.get("/openapi.json").json
    assert described["paths"].keys() == {"/api/predict", "/api/model", "/health", "/metrics"}
    top, _ = described["paths"]["/api/predict"]["post"]["parameters"]
    assert top["schema"]["default"] == len(ask(client, content(1)).json["answers"][0]["classes"]) == 2
    model = client.get("/api/model").json
    assert (model["classes"], model["kind"], model["task"]) == (list(BREEDS), "image", "classification")
