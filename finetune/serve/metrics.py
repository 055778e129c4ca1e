"""`Metrics`: counts and times of a server, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counts and times of one app, in a registry of its own.

    Args:
        waiting: Function that returns the number of waiting samples.

    Attributes:
        requests: Requests by route and status.
        seconds: Time per request, by route.
        answers: Answers by class; `""` for "don't know".
        batches: Samples per forward pass.
    """

    def __init__(self, waiting: Callable[[], float]) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("finetune_requests", "Requests.", ["route", "status"], registry=registry)
        self.seconds = Histogram("finetune_request_seconds", "Time per request.", ["route"], registry=registry)
        self.answers = Counter("finetune_answers", "Answers.", ["answer"], registry=registry)
        self.batches = Histogram(
            "finetune_batch_samples", "Samples per forward pass.", buckets=[2**k for k in range(9)], registry=registry
        )
        Gauge("finetune_waiting_samples", "Samples that wait.", registry=registry).set_function(waiting)

    def to_text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
