"""The OpenAPI description of the JSON API."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from finetune.data.preprocessing.base import IMAGE, TEXT
from finetune.serve.model import ServedModel
from finetune.serve.uploads import Limits


def describe_api(model: ServedModel, title: str, limits: Limits, top: int) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of the API for a model.

    Args:
        model: The served model.
        title: Title of the page.
        limits: Limits of a request.
        top: Number of classes per answer, unless a request says another.
    """
    answers = _response("An answer or an error per upload, in their order.", _object(answers=_array("#Answer")))
    error = {"content": _json(_object(error=_ref("Error")))}
    responses = {
        "200": answers,
        "400": {"description": "Nothing to answer, or a parameter of the wrong type.", **error},
        "413": {"description": "Too many, or too large.", **error},
        "415": {"description": "A file that cannot be read.", **error},
        "503": {
            "description": "Too many requests wait. Repeat it after the given time.",
            "headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}},
            **error,
        },
    }
    predict = {
        "summary": "Answer uploads.",
        "operationId": "predict",
        "parameters": [
            {
                "name": "top",
                "in": "query",
                "description": "Number of classes per answer.",
                "schema": {"type": "integer", "minimum": 1, "default": top},
            },
            {
                "name": "heatmap",
                "in": "query",
                "description": "Whether to return where the model looked, if it can show it.",
                "schema": {"type": "integer", "enum": [0, 1], "default": 0},
            },
        ],
        "requestBody": {"required": True, "content": _uploads(model.kind, limits)},
        "responses": responses,
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version("torch-finetune")},
        "paths": {
            "/api/predict": {"post": predict},
            "/api/model": {"get": _read("The model: its task, classes and limits.", "application/json")},
            "/health": {"get": _read("Whether the model answers.", "application/json")},
            "/metrics": {"get": _read("Counts and times for Prometheus.", "text/plain")},
        },
        "components": {"schemas": _SCHEMAS},
    }


def _uploads(kind: str, limits: Limits) -> dict[str, Any]:
    if kind == TEXT:
        text = {"type": "string", "pattern": r"\S", "maxLength": limits.characters}
        texts = {"type": "array", "items": text, "minItems": 1, "maxItems": limits.files}
        body = {"type": "object", "properties": {"texts": texts}, "required": ["texts"]}
        return {"application/json": {"schema": body}}
    file = {"type": "string", "contentMediaType": "image/*" if kind == IMAGE else "audio/wav"}
    several = {"type": "array", "items": file, "minItems": 1, "maxItems": limits.files}
    form = {"type": "object", "properties": {"file": several}, "required": ["file"]}
    return {"multipart/form-data": {"schema": form}, file["contentMediaType"]: {}}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _array(item: str) -> dict[str, Any]:
    return {"type": "array", "items": _ref(item.removeprefix("#"))}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": _json(schema)}


def _read(summary: str, content: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": summary, "content": {content: {}}}}}


_SCHEMAS: dict[str, Any] = {
    "Answer": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "The upload."},
            "answer": {
                "type": ["string", "null"],
                "description": 'The likeliest class; null for "don\'t know", no label, or a value.',
            },
            "rejected": {"type": "boolean", "description": 'Whether the answer is "don\'t know".'},
            "classes": _array("#Class"),
            "values": {
                "type": "object",
                "additionalProperties": {"type": "number"},
                "description": "Value of each output of a regression.",
            },
            "heatmap": {
                "type": "string",
                "description": "Image with the evidence for the answer, a data URI of a PNG.",
            },
            "error": _ref("Error"),
        },
        "required": ["name"],
    },
    "Class": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "probability": {"type": "number", "minimum": 0, "maximum": 1},
            "text": {"type": "string"},
            "link": {"type": "string"},
        },
        "required": ["name", "probability"],
    },
    "Error": _object(code={"type": "string"}, message={"type": "string"}),
}
