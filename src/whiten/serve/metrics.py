"""Counters and timings of a service, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_METHODS = frozenset(["GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"])

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Metrics:
    """The counters of one service.

    Args:
        images: returns the current number of indexed images; nan if that is not known.
        waiting: returns the number of requests that wait for the model.
    """

    def __init__(self, images: Callable[[], float], waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "whiten_requests",
            "Requests by route and status",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "whiten_request_seconds",
            "From a request's first byte to the last of its answer",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.embedded = Counter(
            "whiten_embedded_images",
            "Images that passed through the model",
            registry=self._registry,
        )
        self.embedding = Histogram(
            "whiten_embedding_seconds",
            "Decoding and embedding a batch of images",
            buckets=_SECONDS,
            registry=self._registry,
        )
        size = Gauge("whiten_index_images", "Images in the index", registry=self._registry)
        size.set_function(images)
        queue = Gauge("whiten_waiting", "Requests that wait for the model", registry=self._registry)
        queue.set_function(waiting)
        ProcessCollector(registry=self._registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class Measured:
    """Counts and times every request, including refused ones."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0
        start = time.perf_counter()

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            # Methods and paths made up by clients must not create new counters.
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, route, status or "none").inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start)
