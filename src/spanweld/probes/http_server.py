"""HTTP server: a server span for each HTTP/1.1 request that the target answers.

No symbol is needed: the tracepoints of system calls see the traffic of the sockets that the target accepted.
Names and attributes: OpenTelemetry semantic conventions, HTTP spans, stable.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

from spanweld.bpf.clock import Clock
from spanweld.bpf.events import (
    CARRIED,
    CONNECTION_OPAQUE_EVENT,
    Carried,
    ConnectionOpaqueEvent,
    ConnectionRole,
    EventKind,
    HttpEnd,
    OpaqueReason,
    ServerSpanEvent,
)
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
from spanweld.probes.declaration import (
    ConnectionOpaque,
    Decoded,
    Instrumentation,
    Place,
    Probe,
    RequestCarried,
)
from spanweld.probes.http import add_host, add_method, address_text, authority, redacted, unpack_request

_OPAQUE_TEXT = {
    OpaqueReason.TLS: "speaks TLS, which is opaque",
    OpaqueReason.HTTP2: "speaks HTTP/2, which is not followed yet",
    OpaqueReason.FRAMING: "sent or was sent what is not well-formed HTTP/1.1",
    OpaqueReason.HEAD_TOO_LONG: "has a head of more than 16 KiB",
    OpaqueReason.SCAN_LIMIT: "had too many lines in one system call",
    OpaqueReason.RESPONSE_WITHOUT_REQUEST: "was sent a response without a request",
    OpaqueReason.BUSY: "is used by two threads at once",
    OpaqueReason.QUEUE_FULL: "has more pipelined requests than are kept",
}


def decode_server_span(data: bytes, clock: Clock, span_kinds: Mapping[int, int]) -> Decoded:  # noqa: ARG001
    """EVENT_SERVER_SPAN -> an automatic span."""
    event = unpack_request(data)
    target = event.target[: event.target_length].decode("utf-8", "replace")
    attributes: dict[str, AttributeValue] = {}
    name = add_method(attributes, event)
    _add_target(attributes, target)
    attributes["url.scheme"] = "http"
    attributes["network.protocol.version"] = f"1.{event.version_minor}"
    if event.host_length:
        add_host(attributes, event.host[: event.host_length].decode("utf-8", "replace"))
    if event.user_agent_length:
        attributes["user_agent.original"] = event.user_agent[: event.user_agent_length].decode(
            "utf-8", "replace"
        )
    _add_addresses(attributes, event)
    status = StatusCode.UNSET
    if event.status:
        attributes["http.response.status_code"] = event.status
        if event.status >= 500:
            attributes["error.type"] = str(event.status)
            status = StatusCode.ERROR
    if event.ended_by == HttpEnd.CLOSED:
        attributes["error.type"] = "connection_closed"
        status = StatusCode.ERROR
    return Span(
        name=name,
        context=SpanContext(
            TraceId(event.trace_id_high << 64 | event.trace_id_low), SpanId(event.span_id), event.flags
        ),
        parent_span_id=SpanId(event.parent_span_id) if event.parent_span_id else None,
        parent_is_remote=event.parent_span_id != 0,
        kind=SpanKind.SERVER,
        start_ns=clock.unix_ns(event.start),
        end_ns=clock.unix_ns(event.head_at),
        origin=Origin.AUTOMATIC,
        attributes=attributes,
        status=status,
        server_span_id=SpanId(event.span_id),
    )


def decode_connection_opaque(data: bytes, clock: Clock, span_kinds: Mapping[int, int]) -> Decoded:  # noqa: ARG001
    """EVENT_CONNECTION_OPAQUE -> what is said of it."""
    event = ConnectionOpaqueEvent._make(CONNECTION_OPAQUE_EVENT.unpack(data))
    peer = address_text(event.addresses_family, event.addresses_peer)
    if peer and event.role == ConnectionRole.CLIENT:
        # A server is known by its port, a client's says nothing.
        peer = authority(peer, event.addresses_peer_port)
    return ConnectionOpaque(
        reason=_OPAQUE_TEXT[OpaqueReason(event.reason)],
        peer=peer or "a Unix socket",
    )


def decode_carried(data: bytes, clock: Clock, span_kinds: Mapping[int, int]) -> Decoded:  # noqa: ARG001
    """EVENT_CARRIED -> the texts as far as they were sent."""
    event = Carried._make(CARRIED.unpack(data.ljust(CARRIED.size, b"\0")))
    # Without the baggage's bytes, its length is that of what was not asked for.
    baggage = event.baggage[: event.baggage_length] if len(data) > CARRIED.size - len(event.baggage) else b""
    return RequestCarried(
        server_span_id=SpanId(event.span_id),
        trace_state=event.tracestate[: event.tracestate_length].decode("ascii", "replace"),
        baggage=baggage.decode("ascii", "replace"),
    )


def _add_target(attributes: dict[str, AttributeValue], target: str) -> None:
    """The request target in origin, absolute or asterisk form. RFC 9112, section 3.2"""
    if "://" in target.partition("?")[0]:
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, question, query = target.partition("?")
    attributes["url.path"] = path
    if question:
        attributes["url.query"] = redacted(query)


def _add_addresses(attributes: dict[str, AttributeValue], event: ServerSpanEvent) -> None:
    family = event.addresses_family
    if family == socket.AF_UNIX:
        attributes["network.transport"] = "unix"
        return
    peer = address_text(family, event.addresses_peer)
    attributes["client.address"] = peer
    attributes["network.peer.address"] = peer
    attributes["network.peer.port"] = event.addresses_peer_port
    attributes["network.local.address"] = address_text(family, event.addresses_local)
    attributes["network.local.port"] = event.addresses_local_port
    if "server.address" not in attributes:
        attributes["server.address"] = attributes["network.local.address"]
        attributes["server.port"] = event.addresses_local_port


INSTRUMENTATION = Instrumentation(
    name="http_server",
    probes=(
        Probe("http_closing", Place.TRACEPOINT, system_calls=("close", "shutdown", "dup2", "dup3")),
        Probe("http_sys_exit", Place.TRACEPOINT),
        Probe("http_thread_exit", Place.TRACEPOINT),
    ),
    decoders={
        EventKind.SERVER_SPAN: decode_server_span,
        EventKind.CONNECTION_OPAQUE: decode_connection_opaque,
        EventKind.CARRIED: decode_carried,
    },
)
