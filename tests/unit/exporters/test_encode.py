"""The encoder's bytes, read back with the generated messages."""

from __future__ import annotations

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from spanweld import __version__
from spanweld.exporters.encode import Encoder
from spanweld.model import (
    AttributeValue,
    Link,
    Resource,
    Span,
    SpanContext,
    SpanId,
    SpanKind,
    StatusCode,
    TraceId,
)
from tests.support.otlp_receiver import ReceivedLink, ReceivedSpan, received_spans
from tests.unit.exporters.support import RESOURCE, SERVER_ATTRIBUTES, START_NS, TRACE_ID, server_span, span


def decoded(*items: tuple[Resource, Span], encoder: Encoder | None = None) -> list[ReceivedSpan]:
    request = ExportTraceServiceRequest.FromString((encoder or Encoder()).request(items))
    return list(received_spans(request, "none"))


def test_every_field_of_a_span_arrives() -> None:
    link = Link(
        SpanContext(TraceId(7), SpanId(8), flags=1, is_remote=True), {"spanweld.reason": "not adopted"}
    )
    given = span(
        0x00F067AA0BA902B7,
        "GET /users/{id}",
        parent=5,
        remote=True,
        kind=SpanKind.SERVER,
        ms=2.5,
        attributes=SERVER_ATTRIBUTES,
        status=StatusCode.ERROR,
        message="broken",
        links=(link,),
        trace_state="vendor=value",
    )
    assert decoded((RESOURCE, given)) == [
        ReceivedSpan(
            name="GET /users/{id}",
            trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
            span_id="00f067aa0ba902b7",
            parent_span_id="0000000000000005",
            kind=2,
            start_ns=START_NS,
            end_ns=START_NS + 2_500_000,
            attributes=dict(SERVER_ATTRIBUTES),
            resource={"service.name": "users", "process.pid": 42},
            scope_name="spanweld",
            scope_version=__version__,
            status_code=2,
            status_message="broken",
            flags=0x301,
            trace_state="vendor=value",
            links=(ReceivedLink("0" * 31 + "7", "0" * 15 + "8", 0x301, {"spanweld.reason": "not adopted"}),),
            events=(),
            protocol="none",
        )
    ]


@pytest.mark.parametrize(
    ("given", "flags", "parent"),
    [
        (server_span(1), 0x101, ""),
        (server_span(1, parent=2), 0x101, "0000000000000002"),
        (server_span(1, parent=2, remote=True), 0x301, "0000000000000002"),
        (server_span(1, flags=0), 0x100, ""),
        (server_span(1, flags=0xFF03), 0x103, ""),
    ],
)
def test_flags_say_whether_the_parent_is_remote(given: Span, flags: int, parent: str) -> None:
    received = decoded((RESOURCE, given))[0]
    assert (received.flags, received.parent_span_id) == (flags, parent)


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (True, True),
        (1, 1),
        (1.0, 1.0),
        (-(1 << 63), -(1 << 63)),
        ((1 << 63), str(1 << 63)),
        ("", ""),
        ("grüße", "grüße"),
        ("a\udc80b", "a?b"),
        (["a", "b"], ["a", "b"]),
        ((1, 2), [1, 2]),
    ],
)
def test_every_kind_of_value_arrives(value: AttributeValue, arrives: object) -> None:
    received = decoded((RESOURCE, span(1, attributes={"key": value})))[0].attributes["key"]
    assert received == arrives
    assert type(received) is type(arrives)


def test_values_that_are_equal_but_of_other_types_are_not_mixed_up() -> None:
    encoder = Encoder()
    values: list[AttributeValue] = [1, True, 1.0, 0, False, 0.0]
    spans = [(RESOURCE, span(number, attributes={"key": value})) for number, value in enumerate(values, 1)]
    for _ in range(2):
        received = [item.attributes["key"] for item in decoded(*spans, encoder=encoder)]
        assert [(type(item), item) for item in received] == [(type(value), value) for value in values]


def test_the_cache_is_bounded_and_forgetting_changes_nothing() -> None:
    encoder = Encoder()
    spans = [
        (
            RESOURCE,
            span(number, f"name {number}", attributes={"url.path": f"/{number}", "same": "same"}),
        )
        for number in range(1, 20_001)
    ]
    received = decoded(*spans, encoder=encoder)
    assert [item.attributes for item in received] == [dict(given.attributes) for _, given in spans]
    assert [item.name for item in received] == [given.name for _, given in spans]
    assert len(encoder._attributes) <= 4096
    assert len(encoder._heads) <= 4096


def test_long_values_are_not_kept() -> None:
    encoder = Encoder()
    long = "x" * 70_000
    assert decoded((RESOURCE, span(1, long, attributes={"key": long})), encoder=encoder)[0].name == long
    assert not encoder._attributes
    assert not encoder._heads


def test_spans_are_grouped_by_resource_in_their_order() -> None:
    other = Resource({"service.name": "store"})
    items = [(RESOURCE, span(1)), (other, span(2)), (RESOURCE, span(3))]
    request = ExportTraceServiceRequest.FromString(Encoder().request(items))
    assert [
        [bytes(item.span_id)[-1] for item in group.scope_spans[0].spans] for group in request.resource_spans
    ] == [[1, 3], [2]]


def test_no_spans_make_an_empty_request() -> None:
    assert Encoder().request([]) == b""


def test_ids_keep_all_their_bits() -> None:
    received = decoded((RESOURCE, span((1 << 64) - 1, trace_id=(1 << 128) - 2)))[0]
    assert (received.trace_id, received.span_id) == ("f" * 31 + "e", "f" * 16)
    assert TRACE_ID.bit_length() == 127
