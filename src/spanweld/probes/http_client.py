"""HTTP client: a client span for each HTTP/1.1 request that the target sends.

It begins with the request's first byte and ends with the response's head, or when none can come any more.
The programs are those of http_server, which see the traffic of the sockets that the target connected as well.
Names and attributes: OpenTelemetry semantic conventions, HTTP spans, stable.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from spanweld.bpf.clock import Clock
from spanweld.bpf.events import EventKind, HttpEnd, HttpMethod, ServerSpanEvent
from spanweld.model import (
    AttributeValue,
    Origin,
    Span,
    SpanContext,
    SpanId,
    SpanKind,
    StatusCode,
    TraceId,
)
from spanweld.probes.declaration import Decoded, Instrumentation
from spanweld.probes.http import add_host, add_method, address_text, authority, redacted, unpack_request

_HTTP_PORT = 80
_SIGNALS = ("traces", "logs", "metrics")

_FAILURES = {
    HttpEnd.CLOSED: "connection_closed",
    HttpEnd.RESET: "connection_reset",
    HttpEnd.TIMED_OUT: "timeout",
}


def decode_client_span(data: bytes, clock: Clock, span_kinds: Mapping[int, int]) -> Decoded:  # noqa: ARG001
    """EVENT_CLIENT_SPAN -> an automatic span."""
    event = unpack_request(data)
    attributes: dict[str, AttributeValue] = {}
    name = add_method(attributes, event)
    _add_url(attributes, event)
    attributes["network.protocol.version"] = f"1.{event.version_minor}"
    if event.addresses_family == socket.AF_UNIX:
        attributes["network.transport"] = "unix"
    else:
        attributes["network.peer.address"] = address_text(event.addresses_family, event.addresses_peer)
        attributes["network.peer.port"] = event.addresses_peer_port
    error = _FAILURES.get(HttpEnd(event.ended_by))
    if event.status:
        attributes["http.response.status_code"] = event.status
        if event.status >= 400 and error is None:
            error = str(event.status)
    if error is not None:
        attributes["error.type"] = error
    return Span(
        name=name,
        context=SpanContext(
            TraceId(event.trace_id_high << 64 | event.trace_id_low), SpanId(event.span_id), event.flags
        ),
        parent_span_id=SpanId(event.parent_span_id) if event.parent_span_id else None,
        parent_is_remote=False,
        kind=SpanKind.CLIENT,
        start_ns=clock.unix_ns(event.start),
        end_ns=clock.unix_ns(event.head_at),
        origin=Origin.AUTOMATIC,
        attributes=attributes,
        status=StatusCode.UNSET if error is None else StatusCode.ERROR,
        server_span_id=SpanId(event.server_span_id) if event.server_span_id else None,
    )


def _add_url(attributes: dict[str, AttributeValue], event: ServerSpanEvent) -> None:
    """url.full, and the server that it names. A proxy gets the absolute form. RFC 9112, section 3.2"""
    target = event.target[: event.target_length].decode("utf-8", "replace")
    host = event.host[: event.host_length].decode("utf-8", "replace")
    scheme, scheme_end, rest = target.partition("://")
    if scheme_end and scheme.isalpha():
        end = min((rest.find(mark) for mark in "/?" if mark in rest), default=len(rest))
        host, target = rest[:end].rpartition("@")[2], rest[end:]
        credentials = "REDACTED:REDACTED@" if "@" in rest[:end] else ""
    else:
        scheme, credentials = "http", ""
        if event.method == HttpMethod.CONNECT:
            host, target = target, ""
        elif target == "*":
            target = ""
    if not host and event.addresses_family != socket.AF_UNIX:
        host = authority(
            address_text(event.addresses_family, event.addresses_peer), event.addresses_peer_port
        )
    path, question, query = target.partition("?")
    attributes["url.full"] = f"{scheme}://{credentials}{host}{path}{question}{redacted(query)}"
    if host:
        add_host(attributes, host)
    if event.addresses_family != socket.AF_UNIX:
        attributes.setdefault("server.port", _HTTP_PORT)


def own_exports(environ: Mapping[str, str]) -> dict[int, list[str]]:
    """Where a service with this environment exports to itself, without TLS: ports, and paths at each.

    The paths of the endpoints that say one, and those that are appended to the endpoint for all signals.
    https://opentelemetry.io/docs/specs/otel/protocol/exporter/#endpoint-urls-for-otlphttp
    """
    found: dict[int, list[str]] = {}
    for signal in ("", *_SIGNALS):
        endpoint = environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT".replace("__", "_"), "")
        try:
            url = urlsplit(endpoint)
            port = url.port or _HTTP_PORT
        except ValueError:
            continue  # the service will not make anything of it, either
        if url.scheme != "http":
            continue
        paths = found.setdefault(port, [])
        if signal:
            paths.append(url.path or "/")
        else:
            paths += [f"{url.path.rstrip('/')}/v1/{name}" for name in _SIGNALS]
    return found


INSTRUMENTATION = Instrumentation(
    name="http_client",
    probes=(),  # those of http_server see both sides
    decoders={EventKind.CLIENT_SPAN: decode_client_span},
)
