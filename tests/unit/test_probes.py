"""Declarations of probes, and what is made of their events."""

from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest

from spanweld.agent import encode_excluded, encode_own_exports, encode_propagation
from spanweld.bpf import events
from spanweld.bpf.clock import Clock
from spanweld.errors import UsageError
from spanweld.model import Origin, Span, SpanId, SpanKind, StatusCode
from spanweld.probes import REGISTRY
from spanweld.probes.declaration import ConnectionOpaque, ManualRoot, Place, RequestCarried, SpanSample
from spanweld.probes.http_client import decode_client_span, own_exports
from spanweld.probes.http_server import decode_carried, decode_connection_opaque, decode_server_span
from spanweld.probes.otel_sdk import (
    decode_adoption,
    decode_manual_root,
    decode_manual_span,
    decode_span_sample,
)
from spanweld.settings import Propagator, Settings

CLOCK = Clock()


def server_event(target: bytes = b"/a", **changes: int | bytes) -> bytes:
    values: dict[str, int | bytes] = dict.fromkeys(events.ServerSpanEvent._fields, 0)
    values.update(
        head_kind=events.EventKind.SERVER_SPAN,
        head_at=2_000,
        start=1_000,
        trace_id_low=2,
        trace_id_high=1,
        span_id=3,
        flags=1,
        method=events.HttpMethod.GET,
        version_minor=1,
        status=200,
        addresses_family=socket.AF_INET,
        addresses_peer_port=4000,
        addresses_local_port=80,
        addresses_peer=ip_address("10.0.0.1").packed,
        addresses_local=ip_address("10.0.0.2").packed,
        host=b"example.org:8080",
        host_length=16,
        user_agent=b"",
        method_name=b"",
        target=target,
        target_length=len(target),
    )
    values.update(changes)
    # As in the ring buffer: only up to the end of the request target.
    return events.SERVER_SPAN_EVENT.pack(*values.values())[: -256 + len(target)]


def server_span(target: bytes = b"/a", **changes: int | bytes) -> Span:
    span = decode_server_span(server_event(target, **changes), CLOCK, {})
    assert isinstance(span, Span)
    return span


def test_a_server_span_follows_the_conventions() -> None:
    span = server_span(b"/a/b?x=1")
    assert (span.name, span.kind, span.origin) == ("GET", SpanKind.SERVER, Origin.AUTOMATIC)
    assert span.context.trace_id == 1 << 64 | 2
    assert span.parent_span_id is None
    assert span.end_ns - span.start_ns == 1_000
    assert span.attributes == {
        "http.request.method": "GET",
        "url.path": "/a/b",
        "url.query": "x=1",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "example.org",
        "server.port": 8080,
        "client.address": "10.0.0.1",
        "network.peer.address": "10.0.0.1",
        "network.peer.port": 4000,
        "network.local.address": "10.0.0.2",
        "network.local.port": 80,
        "http.response.status_code": 200,
    }


def client_span(target: bytes = b"/a", **changes: int | bytes) -> Span:
    span = decode_client_span(
        server_event(target, **{"head_kind": events.EventKind.CLIENT_SPAN, **changes}), CLOCK, {}
    )
    assert isinstance(span, Span)
    return span


def test_a_client_span_follows_the_conventions() -> None:
    span = client_span(b"/a/b?x=1", parent_span_id=9)
    assert (span.name, span.kind, span.origin) == ("GET", SpanKind.CLIENT, Origin.AUTOMATIC)
    assert (span.parent_span_id, span.parent_is_remote) == (9, False)
    assert span.status is StatusCode.UNSET
    assert span.attributes == {
        "http.request.method": "GET",
        "url.full": "http://example.org:8080/a/b?x=1",
        "network.protocol.version": "1.1",
        "server.address": "example.org",
        "server.port": 8080,
        "network.peer.address": "10.0.0.1",
        "network.peer.port": 4000,
        "http.response.status_code": 200,
    }


@pytest.mark.parametrize(
    ("status", "ended_by", "error"),
    [
        (399, events.HttpEnd.RESPONSE, None),
        (404, events.HttpEnd.RESPONSE, "404"),
        (503, events.HttpEnd.RESPONSE, "503"),
        (101, events.HttpEnd.UPGRADED, None),
        (0, events.HttpEnd.UNFRAMED, None),
        (0, events.HttpEnd.CLOSED, "connection_closed"),
        (200, events.HttpEnd.CLOSED, "connection_closed"),
        (0, events.HttpEnd.RESET, "connection_reset"),
        (0, events.HttpEnd.TIMED_OUT, "timeout"),
    ],
)
def test_failures_of_a_client(status: int, ended_by: events.HttpEnd, error: str | None) -> None:
    span = client_span(status=status, ended_by=ended_by)
    assert span.attributes.get("error.type") == error
    assert span.status is (StatusCode.ERROR if error else StatusCode.UNSET)
    assert span.attributes.get("http.response.status_code", 0) == status


@pytest.mark.parametrize(
    ("target", "host", "url", "address", "port"),
    [
        (b"/a", b"h", "http://h/a", "h", 80),
        (b"/a", b"[::1]:9", "http://[::1]:9/a", "::1", 9),
        (b"/a", b"", "http://10.0.0.1:4000/a", "10.0.0.1", 4000),
        (b"/a?u=http://x/&sig=s", b"h", "http://h/a?u=http://x/&sig=REDACTED", "h", 80),
        (b"http://o:81/p?q", b"proxy", "http://o:81/p?q", "o", 81),
        (b"http://me:secret@o?q", b"o", "http://REDACTED:REDACTED@o?q", "o", 80),
        (b"*", b"h:81", "http://h:81", "h", 81),
    ],
)
def test_the_url_of_a_request_out(target: bytes, host: bytes, url: str, address: str, port: int) -> None:
    attributes = client_span(target, host=host, host_length=len(host)).attributes
    assert attributes["url.full"] == url
    assert (attributes["server.address"], attributes["server.port"]) == (address, port)


def test_a_request_to_a_proxy_for_a_tunnel() -> None:
    attributes = client_span(
        b"h:443", method=events.HttpMethod.CONNECT, host=b"other", host_length=5
    ).attributes
    assert attributes["url.full"] == "http://h:443"
    assert (attributes["server.address"], attributes["server.port"]) == ("h", 443)


def test_a_request_by_a_unix_socket() -> None:
    attributes = client_span(addresses_family=socket.AF_UNIX, host=b"localhost", host_length=9).attributes
    assert attributes["url.full"] == "http://localhost/a"
    assert attributes["network.transport"] == "unix"
    assert not {"server.port", "network.peer.address", "network.peer.port"} & attributes.keys()


def test_where_a_service_exports_to() -> None:
    assert own_exports({}) == {}
    assert own_exports({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4318"}) == {}
    assert own_exports({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:port"}) == {}
    assert own_exports(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/otlp/",
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://other/in",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://collector:4318",
        }
    ) == {4318: ["/otlp/v1/traces", "/otlp/v1/logs", "/otlp/v1/metrics", "/"], 80: ["/in"]}


def test_paths_of_own_exports_are_meant_exactly() -> None:
    data = encode_own_exports(["/in", "/in", "/" + "x" * 100])
    assert len(data) == 16 * 128
    pairs = [(data[at : at + 64], data[at + 64 : at + 128]) for at in range(0, len(data), 128)]
    assert pairs[0] == (b"/in".ljust(64, b"\0"), (b"\xff" * 4).ljust(64, b"\0"))
    assert pairs[1] == (b"/in?".ljust(64, b"\0"), (b"\xff" * 4).ljust(64, b"\0"))
    assert pairs[2] == (b"/" + b"x" * 63, b"\xff" * 64)
    assert pairs[3] == (bytes(64), bytes(64))


def test_the_remote_parent_is_the_parent() -> None:
    span = server_span(parent_span_id=9)
    assert span.parent_span_id == 9
    assert span.parent_is_remote


def test_a_server_error_is_an_error_and_a_client_error_is_not() -> None:
    assert server_span(status=404).status is StatusCode.UNSET
    failed = server_span(status=503)
    assert failed.status is StatusCode.ERROR
    assert failed.attributes["error.type"] == "503"


def test_a_closed_connection_is_an_error() -> None:
    span = server_span(status=0, ended_by=events.HttpEnd.CLOSED)
    assert span.attributes["error.type"] == "connection_closed"
    assert "http.response.status_code" not in span.attributes


def test_an_unknown_method_is_kept_beside() -> None:
    span = server_span(method=events.HttpMethod.OTHER, method_name=b"PROPFIND")
    assert span.name == "HTTP"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert span.attributes["http.request.method_original"] == "PROPFIND"


def test_credentials_in_the_query_are_redacted() -> None:
    span = server_span(b"/o?k=v&Signature=secret&sig=s&x")
    assert span.attributes["url.query"] == "k=v&Signature=REDACTED&sig=REDACTED&x"


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        (b"example.org", "example.org", None),
        (b"[::1]:8080", "::1", 8080),
        (b"[::1]", "::1", None),
        (b"", "10.0.0.2", 80),
        (b"10.1.1.1:1", "10.1.1.1", 1),
    ],
)
def test_host(host: bytes, address: str, port: int | None) -> None:
    span = server_span(host=host, host_length=len(host))
    assert span.attributes["server.address"] == address
    # Without a port it is the scheme's, which the conventions leave out.
    assert span.attributes.get("server.port") == port


def test_addresses_of_version_6() -> None:
    span = server_span(
        addresses_family=socket.AF_INET6,
        addresses_peer=ip_address("::ffff:10.0.0.9").packed,
        addresses_local=ip_address("::1").packed,
    )
    assert span.attributes["client.address"] == "10.0.0.9"
    assert span.attributes["network.local.address"] == "::1"


def test_absolute_form() -> None:
    assert server_span(b"http://h/p?q=http://x/").attributes["url.path"] == "/p"


def test_a_manual_span_keeps_its_own_times() -> None:
    values: dict[str, int | bytes] = dict.fromkeys(events.ManualSpanEvent._fields, 0)
    name = b"process"
    values.update(
        start_seconds=10,
        start_nanos=5,
        end_seconds=11,
        end_nanos=6,
        trace_id_low=2,
        span_id=3,
        parent_span_id=4,
        relation=events.ManualRelation.ADOPTED,
        status=events.ManualStatus.ERROR,
        kind=2,
        name=name,
        name_length=len(name),
    )
    data = events.MANUAL_SPAN_EVENT.pack(*values.values())[: -96 + len(name)]
    span = decode_manual_span(data, CLOCK, {2: SpanKind.PRODUCER})
    assert isinstance(span, Span)
    assert (span.name, span.origin, span.kind) == ("process", Origin.MANUAL, SpanKind.PRODUCER)
    assert (span.start_ns, span.end_ns) == (10_000_000_005, 11_000_000_006)
    assert (span.parent_span_id, span.status) == (4, StatusCode.ERROR)


@pytest.mark.parametrize(
    ("role", "address", "family", "peer"),
    [
        (events.ConnectionRole.SERVER, "10.0.0.1", socket.AF_INET, "10.0.0.1"),
        (events.ConnectionRole.CLIENT, "10.0.0.1", socket.AF_INET, "10.0.0.1:443"),
        (events.ConnectionRole.CLIENT, "::1", socket.AF_INET6, "[::1]:443"),
        (events.ConnectionRole.CLIENT, "::", socket.AF_UNIX, "a Unix socket"),
    ],
)
def test_the_peer_of_an_opaque_connection(
    role: events.ConnectionRole, address: str, family: int, peer: str
) -> None:
    packed = ip_address(address).packed.ljust(16, b"\0")
    data = events.CONNECTION_OPAQUE_EVENT.pack(
        *(2, 1, 0, events.OpaqueReason.TLS, role, family, 443, 50_000, 0, packed, bytes(16))
    )
    assert decode_connection_opaque(data, CLOCK, {}) == ConnectionOpaque("speaks TLS, which is opaque", peer)


def test_other_events() -> None:
    opaque = decode_connection_opaque(
        events.CONNECTION_OPAQUE_EVENT.pack(
            2,
            1,
            0,
            events.OpaqueReason.TLS,
            0,
            socket.AF_INET,
            1,
            2,
            0,
            bytes([1, 2, 3, 4] + 12 * [0]),
            bytes(16),
        ),
        CLOCK,
        {},
    )
    assert isinstance(opaque, ConnectionOpaque)
    assert "1.2.3.4" in opaque.peer
    assert "TLS" in opaque.reason
    manual_root = decode_manual_root(events.MANUAL_ROOT_EVENT.pack(4, 1, 0, 7, 2, 1, 3, 1), CLOCK, {})
    assert isinstance(manual_root, ManualRoot)
    assert (manual_root.server_span_id, manual_root.context.span_id) == (7, 3)
    for what in events.LayoutCheck:
        change = decode_adoption(
            events.ADOPTION_EVENT.pack(5, 1, 0, events.Adoption.MISMATCH, what, 1, 2), CLOCK, {}
        )
        assert "not where the layout says" in str(change)


def test_a_sample_has_only_the_ids_that_were_noted() -> None:
    memory = bytes(range(224)) * 2
    pack = events.SPAN_SAMPLE_EVENT.pack
    sample = decode_span_sample(pack(6, 1, 2_000, 2, 1, 3, 7, 1, 1, 1, 0, memory), CLOCK, {})
    assert sample == SpanSample(7, True, 1 << 64 | 2, 3, CLOCK.unix_ns(2_000), memory)
    sample = decode_span_sample(pack(6, 1, 2_000, 2, 1, 3, 7, 1, 0, 0, 0, memory), CLOCK, {})
    assert sample == SpanSample(7, True, None, None, CLOCK.unix_ns(2_000), memory)


def test_every_event_has_one_decoder_and_every_probe_of_a_function_its_symbol() -> None:
    kinds = [kind for instrumentation in REGISTRY for kind in instrumentation.decoders]
    assert sorted(kinds) == sorted(events.EventKind)
    for instrumentation in REGISTRY:
        for probe in instrumentation.probes:
            assert (probe.symbol is None) == (probe.place in (Place.TRACEPOINT, Place.SOCKETS))


def test_excluded_paths_are_patterns_under_masks() -> None:
    encoded = encode_excluded(["/healthz", "/internal/*"])
    assert len(encoded) == 16 * 128
    assert encoded[:10] == b"/healthz\0\0"
    assert encoded[64:74] == b"\xff" * 9 + b"\0"
    assert encoded[128:138] == b"/healthz?\0"
    assert encoded[256:267] == b"/internal/\0"
    assert encoded[320:331] == b"\xff" * 10 + b"\0"
    assert not any(encoded[384:])


@pytest.mark.parametrize("path", ["healthz", "/a*b", "/" + "x" * 63, ""])
def test_what_is_no_excluded_path_is_refused(path: str) -> None:
    with pytest.raises(UsageError):
        encode_excluded([path])


def test_too_many_excluded_paths_are_refused() -> None:
    with pytest.raises(UsageError):
        encode_excluded([f"/{number}" for number in range(9)])


@pytest.mark.parametrize("with_baggage", [False, True])
def test_what_a_request_brought(with_baggage: bool) -> None:
    """The baggage's length is said, whether or not the event reaches that far."""
    values: dict[str, int | bytes] = dict.fromkeys(events.Carried._fields, 0)
    values.update(
        head_kind=events.EventKind.CARRIED,
        span_id=7,
        tracestate_length=3,
        baggage_length=4,
        pad=b"",
        tracestate=b"a=1+",
        baggage=b"bc=2+",
    )
    data = events.CARRIED.pack(*values.values())
    data = data[: -8192 + 4] if with_baggage else data[: -8192 - 2048 + 3]
    assert decode_carried(data, CLOCK, {}) == RequestCarried(SpanId(7), "a=1", "bc=2" if with_baggage else "")


def test_propagators_as_the_programs_take_them() -> None:
    assert encode_propagation(Settings()) == bytes([1, 2, 0, 0, 0])
    chosen = (Propagator.B3_MULTI, Propagator.JAEGER, Propagator.TRACECONTEXT, Propagator.B3)
    settings = Settings(propagators=chosen, baggage_attributes=frozenset("*"))
    assert encode_propagation(settings) == bytes([3, 0, 4, 2, 1])
    assert encode_propagation(Settings(propagators=())) == bytes(5)
