"""Spans to export, and messages that can be waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from spanweld.exporters.batching import Backoff
from spanweld.model import (
    AttributeValue,
    Link,
    Origin,
    Resource,
    Span,
    SpanContext,
    SpanId,
    SpanKind,
    StatusCode,
    TraceId,
)
from spanweld.settings import BatchSettings

TRACE_ID = TraceId(0x4BF92F3577B34DA6A3CE929D0E0E4736)
RESOURCE = Resource({"service.name": "users", "process.pid": 42})
SOON = BatchSettings(schedule_delay=0.01)
QUICK = Backoff(first=0.01, most=0.05, most_asked_for=0.2)
START_NS = 1_700_000_000_000_000_000

SERVER_ATTRIBUTES: Mapping[str, AttributeValue] = {
    "http.request.method": "POST",
    "url.path": "/api/users",
    "url.scheme": "http",
    "http.response.status_code": 201,
    "server.address": "127.0.0.1",
    "server.port": 8080,
    "client.address": "127.0.0.1",
    "network.peer.address": "127.0.0.1",
    "network.peer.port": 54321,
    "network.protocol.version": "1.1",
}


def span(
    span_id: int,
    name: str = "POST",
    *,
    trace_id: int = TRACE_ID,
    parent: int | None = None,
    remote: bool = False,
    kind: SpanKind = SpanKind.INTERNAL,
    start_ms: float = 0.0,
    ms: float = 1.0,
    origin: Origin = Origin.MANUAL,
    attributes: Mapping[str, AttributeValue] | None = None,
    status: StatusCode = StatusCode.UNSET,
    message: str = "",
    links: tuple[Link, ...] = (),
    flags: int = 1,
    trace_state: str = "",
) -> Span:
    start_ns = START_NS + round(start_ms * 1e6)
    return Span(
        name=name,
        context=SpanContext(TraceId(trace_id), SpanId(span_id), flags),
        parent_span_id=None if parent is None else SpanId(parent),
        parent_is_remote=remote,
        kind=kind,
        start_ns=start_ns,
        end_ns=start_ns + round(ms * 1e6),
        origin=origin,
        attributes=attributes or {},
        status=status,
        status_message=message,
        links=links,
        trace_state=trace_state,
    )


def server_span(
    span_id: int,
    *,
    trace_id: int = TRACE_ID,
    parent: int | None = None,
    remote: bool = False,
    ms: float = 12.4,
    start_ms: float = 0.0,
    attributes: Mapping[str, AttributeValue] | None = None,
    status: StatusCode = StatusCode.UNSET,
    flags: int = 1,
) -> Span:
    return span(
        span_id,
        trace_id=trace_id,
        parent=parent,
        remote=remote,
        kind=SpanKind.SERVER,
        start_ms=start_ms,
        ms=ms,
        origin=Origin.AUTOMATIC,
        attributes=SERVER_ATTRIBUTES if attributes is None else attributes,
        status=status,
        flags=flags,
    )


class Messages:
    """A ``say`` that keeps what was said."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._said: list[str] = []

    def __call__(self, message: str) -> None:
        with self._changed:
            self._said.append(message)
            self._changed.notify_all()

    @property
    def said(self) -> list[str]:
        with self._changed:
            return list(self._said)

    def wait_for(self, part: str, timeout: float = 20.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(part in message for message in self._said), timeout), (
                f"{part!r} was not said, but {self._said}"
            )


def wait_until(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    """Polls what has no way to be waited for; fails after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.002)
