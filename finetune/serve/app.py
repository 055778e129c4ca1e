"""`create_app`: a Flask app with a page and a JSON API for a tuner."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from functools import cache
from importlib.resources import files
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any, TypeVar

from flask import Flask, Response, g, jsonify, render_template, request
from flask import Request as FlaskRequest
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from finetune.display.html import data_uri
from finetune.errors import DataError, whole_number
from finetune.interpret.classification import Answer
from finetune.naming.arguments import checks_arguments
from finetune.serve.batcher import Batcher, QueueFullError
from finetune.serve.class_info import ClassInfo, read_class_info
from finetune.serve.errors import RequestError
from finetune.serve.hosts import host_of, is_answered_for
from finetune.serve.metrics import CONTENT_TYPE, Metrics
from finetune.serve.model import ServedModel
from finetune.serve.openapi import describe_api
from finetune.serve.uploads import Limits, Upload, uploads_of

if TYPE_CHECKING:
    from finetune.tuner import FineTuner

Result = TypeVar("Result")

_LOOKS = 8  # heatmaps computed together
_PATIENCE = 60  # seconds for an answer
_RETRY_AFTER = 1  # seconds
_BUSY = "Too many requests are waiting. Repeat the request shortly."
_LANGUAGES = ("en", "ko")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class _InMemory(FlaskRequest):
    """A request whose files stay in memory. Flask's own writes large ones to a temporary file."""

    def _get_file_stream(self, *args: Any, **options: Any) -> io.BytesIO:
        return io.BytesIO()


@checks_arguments
def create_app(
    tuner: FineTuner,
    *,
    title: str | None = None,
    info: str | Path | None = None,
    top: int = 5,
    threshold: float | Mapping[str, float] | None = None,
    reject: float | None = None,
    hosts: Collection[str] = (),
    limits: Limits | None = None,
    batch_size: int = 32,
    queue: int = 256,
) -> Flask:
    """Return a WSGI app with a page and a JSON API for a trained tuner.

    Concurrent requests share forward passes. Nothing of an upload is written to a file or kept.

    Args:
        tuner: A trained tuner.
        title: Title of the page; None for a question in the visitor's language.
        info: CSV file with the columns `class`, `text` and `link`, which the page shows with an answer.
        top: Number of classes per answer.
        threshold: Lowest probability of a class in an answer, as in `FineTuner.classify`.
        reject: Probability of the best class below which the answer is "don't know".
        hosts: Names that the server is reached by, beside its addresses, `localhost` and the name of the machine.
        limits: Limits of a request; None for `Limits()`.
        batch_size: Samples per forward pass, at most.
        queue: Number of requests and of samples that may wait. Beyond it, requests get the status 503.

    Raises:
        ArgumentError: If an argument is invalid, or the model takes no images, texts or audio.
        DataError: If the CSV file is invalid.

    Example:
        >>> from finetune import FineTuner
        >>> tuner = FineTuner("resnet18", device="cpu", preprocessing={"crop_size": 32})
        >>> app = create_app(tuner, title="What is in the picture?")
        >>> app.test_client().get("/health").json
        {'status': 'ok'}
    """
    limits = limits or Limits()
    top, batch_size, queue = (
        whole_number("top", top),
        whole_number("batch_size", batch_size),
        whole_number("queue", queue),
    )
    model = ServedModel(tuner, threshold=threshold, reject=reject, limits=limits)
    about = {} if info is None else read_class_info(info, model.classes)
    return _Server(model, title, about, top, {*map(str.lower, hosts)}, limits, batch_size, queue).app


class _Server:
    """The routes of an app, and what they share."""

    def __init__(
        self,
        model: ServedModel,
        title: str | None,
        about: Mapping[str, ClassInfo],
        top: int,
        hosts: Collection[str],
        limits: Limits,
        batch_size: int,
        queue: int,
    ) -> None:
        self._model, self._title, self._about, self._top = model, title, about, top
        self._hosts, self._limits = hosts, limits
        self._metrics = Metrics(lambda: len(self._batcher))
        self._batcher: Batcher[Any, Answer] = Batcher(
            model.answer, batch_size=batch_size, queue=queue, observe=self._metrics.batches.observe
        )
        self._lookers: Batcher[Any, bytes] = Batcher(model.look, batch_size=_LOOKS, queue=4 * _LOOKS)
        # Requests wait in two places, for a decoder and for the model, and are counted in both.
        self._room = BoundedSemaphore(queue)
        # Decoding is work, and as many threads as processors do it fastest and in the least memory.
        self._decoders = BoundedSemaphore(os.cpu_count() or 1)
        self.app = self._app()

    def _app(self) -> Flask:
        app = Flask("finetune.serve", static_folder="page", static_url_path="/page", template_folder="page")
        app.request_class = _InMemory
        app.config.update(MAX_CONTENT_LENGTH=self._limits.request_bytes, MAX_FORM_PARTS=2 * self._limits.files + 8)
        app.json.sort_keys = False  # type: ignore[attr-defined]
        app.extensions["finetune"] = self
        app.before_request(self._begin)
        app.after_request(self._end)
        app.register_error_handler(RequestError, _refuse)
        app.register_error_handler(HTTPException, _refuse_http)
        app.get("/")(self.page)
        app.post("/api/predict")(self.predict)
        app.get("/api/model")(self.describe)
        app.get("/openapi.json")(self.openapi)
        app.get("/health")(self.health)
        app.get("/metrics")(self.metrics)
        return app

    def close(self) -> None:
        """Answer all waiting requests and stop the model threads."""
        self._batcher.close()
        self._lookers.close()

    # ------------------------------------------------------------------ routes

    def page(self) -> str:
        language = request.args.get("lang") or request.accept_languages.best_match(_LANGUAGES) or "en"
        language = language if language in _LANGUAGES else "en"
        return render_template(
            "index.html",
            language=language,
            words=_words()[language],
            title=self._title,
            model=self._facts(),
            other=next(name for name in _LANGUAGES if name != language),
        )

    def predict(self) -> Response:
        if not self._room.acquire(blocking=False):
            raise RequestError(503, "busy", _BUSY)
        try:
            return self._answered()
        finally:
            self._room.release()

    def _answered(self) -> Response:
        top, heatmaps = _number(request.args.get("top"), self._top), self._wants_heatmaps()
        uploads = uploads_of(request, self._model.kind, self._limits)
        read = [self._read(upload) for upload in uploads]
        samples = [each for each in read if not isinstance(each, RequestError)]
        waited = iter(_submitted(self._batcher, samples))
        looks = iter(_submitted(self._lookers, samples) if heatmaps else [])
        outcomes = [
            each if isinstance(each, RequestError) else self._outcome(next(waited), next(looks, None), top)
            for each in read
        ]
        refused = [each for each in outcomes if isinstance(each, RequestError)]
        if len(refused) == len(outcomes):
            raise refused[0]
        answers = [
            {"name": upload.name, **({"error": each.to_dict()} if isinstance(each, RequestError) else each)}
            for upload, each in zip(uploads, outcomes, strict=True)
        ]
        return jsonify(answers=answers)

    def describe(self) -> Response:
        return jsonify(self._facts())

    def openapi(self) -> Response:
        return jsonify(describe_api(self._model, self._title or "finetune", self._limits, self._top))

    def health(self) -> tuple[Response, int]:
        return (jsonify(status="ok"), 200) if self._batcher.alive else (jsonify(status="stopped"), 503)

    def metrics(self) -> Response:
        return Response(self._metrics.to_text(), content_type=CONTENT_TYPE)

    # ------------------------------------------------------------------ every request

    def _begin(self) -> None:
        g.begun = time.perf_counter()
        if not is_answered_for(host_of(request.headers.get("Host", "")), self._hosts):
            raise RequestError(403, "unknown_host", "This name is not one of the server's. Start it with --allow-host.")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.headers.get("Host"):
            raise RequestError(403, "other_site", "Requests from the pages of other sites are not answered.")

    def _end(self, response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule is not None else "other"
        self._metrics.requests.labels(route, str(response.status_code)).inc()
        self._metrics.seconds.labels(route).observe(time.perf_counter() - g.begun)
        response.headers.update(_HEADERS)
        if not request.path.startswith("/page/"):
            response.headers["Cache-Control"] = "no-store"
        return response

    # ------------------------------------------------------------------ answers

    def _read(self, upload: Upload) -> Any:
        try:
            with self._decoders:
                return self._model.read(upload)
        except RequestError as error:
            return error

    def _wants_heatmaps(self) -> bool:
        wanted = request.args.get("heatmap", "0")
        if wanted not in ("0", "1"):
            raise RequestError(400, "bad_parameter", "Expected heatmap to be 0 or 1.")
        if wanted == "1" and not self._model.has_heatmaps:
            raise RequestError(400, "no_heatmap", "The features of this model have no positions to show.")
        return wanted == "1"

    def _outcome(self, answer: Future[Answer], look: Future[bytes] | None, top: int) -> dict[str, Any] | RequestError:
        """Wait for an answer and return it for JSON, or an error if the model does not accept the sample."""
        try:
            row = self._row(_result(answer), top)
            return row if look is None else {**row, "heatmap": data_uri(_result(look))}
        except DataError as error:
            return RequestError(415, "not_readable", str(error))

    def _row(self, answer: Answer, top: int) -> dict[str, Any]:
        self._metrics.answers.labels(answer.best or "").inc()
        if self._model.is_regression:
            return {"values": answer.scores}
        shown = list(answer.scores.items())[: None if self._model.is_multilabel else top]
        classes = [{"name": name, "probability": chance, **self._texts(name)} for name, chance in shown]
        return {"answer": answer.best, "rejected": answer.rejected, "classes": classes}

    def _texts(self, name: str) -> dict[str, str]:
        about = self._about.get(name)
        return {} if about is None else {key: value for key, value in vars(about).items() if value}

    def _facts(self) -> dict[str, Any]:
        model, limits = self._model, self._limits
        return {
            "title": self._title,
            "task": model.task,
            "kind": {"picture": "image", "waveform": "audio"}.get(model.kind, model.kind),
            "classes": list(model.classes),
            "heatmaps": model.has_heatmaps,
            "limits": vars(limits),
        }


def _number(text: str | None, default: int) -> int:
    """Return the number of classes that a request asks for."""
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
        raise RequestError(400, "bad_parameter", "Expected top to be a whole number of at least 1.")
    return int(text[:9])


def _submitted(batcher: Batcher[Any, Result], samples: Sequence[Any]) -> list[Future[Result]]:
    try:
        return batcher.submit(samples)
    except QueueFullError as error:
        raise RequestError(503, "busy", _BUSY) from error


def _result(future: Future[Result]) -> Result:
    try:
        return future.result(timeout=_PATIENCE)
    except TimeoutError as error:
        raise RequestError(503, "busy", f"The model did not answer within {_PATIENCE} seconds.") from error


def _refuse(error: RequestError) -> Response:
    response = jsonify(error=error.to_dict())
    response.status_code = error.status
    if error.status == 503:
        response.headers["Retry-After"] = str(_RETRY_AFTER)
    return response


def _refuse_http(error: HTTPException) -> Response:
    """Return an error of Flask's own as JSON."""
    codes = {RequestEntityTooLarge: "too_large", NotFound: "not_found", MethodNotAllowed: "not_allowed"}
    code = codes.get(type(error), "bad_request" if (error.code or 500) < 500 else "failed")
    response = _refuse(RequestError(error.code or 500, code, error.description or error.name))
    response.headers.update((name, value) for name, value in error.get_headers() if name != "Content-Type")  # Allow
    return response


@cache
def _words() -> dict[str, dict[str, str]]:
    """Return the words of the page by language."""
    found: dict[str, dict[str, str]] = json.loads(files("finetune.serve").joinpath("page/words.json").read_text())
    return found
