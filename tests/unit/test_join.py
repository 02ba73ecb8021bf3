"""Links from server spans to manual roots that were left as they are; what requests brought."""

from __future__ import annotations

from dataclasses import replace

from spanweld.join import CarriedContexts, RootLinks, baggage_attributes
from spanweld.model import Link, Origin, Span, SpanContext, SpanId, SpanKind, TraceId


def server_span(span_id: int) -> Span:
    return Span(
        name="GET",
        context=SpanContext(TraceId(1), SpanId(span_id)),
        parent_span_id=None,
        parent_is_remote=False,
        kind=SpanKind.SERVER,
        start_ns=1,
        end_ns=2,
        origin=Origin.AUTOMATIC,
        server_span_id=SpanId(span_id),
    )


def client_span(span_id: int, server_span_id: int) -> Span:
    return replace(server_span(span_id), kind=SpanKind.CLIENT, server_span_id=SpanId(server_span_id))


def root(number: int) -> SpanContext:
    return SpanContext(TraceId(number), SpanId(number))


def test_links_are_those_of_the_span_in_order() -> None:
    links = RootLinks()
    links.add(SpanId(7), root(1))
    links.add(SpanId(8), root(2))
    links.add(SpanId(7), root(3))
    assert links.link(server_span(7)).links == (Link(root(1)), Link(root(3)))
    assert links.link(server_span(8)).links == (Link(root(2)),)


def test_a_span_without_roots_stays_the_same() -> None:
    span = server_span(7)
    assert RootLinks().link(span) is span


def test_links_are_given_once() -> None:
    links = RootLinks()
    links.add(SpanId(7), root(1))
    links.link(server_span(7))
    assert links.link(server_span(7)).links == ()


def test_the_oldest_is_forgotten_and_counted() -> None:
    links = RootLinks(limit=2)
    for number in (1, 2, 3):
        links.add(SpanId(number), root(number))
    assert links.lost == 1
    assert links.link(server_span(1)).links == ()
    assert links.link(server_span(3)).links == (Link(root(3)),)


def test_what_a_request_brought_is_for_its_server_span_and_those_after_it() -> None:
    carried = CarriedContexts(frozenset({"k"}))
    carried.add(SpanId(7), "a=1", "k=v,other=2")
    client = replace(client_span(8, 7), attributes={"k": "own", "url.full": "x"})
    for span in (client, server_span(7), client):
        applied = carried.apply(span)
        assert applied.trace_state == "a=1"
        assert applied.attributes == {"k": "v", **span.attributes}
    for span in (server_span(9), client_span(8, 9), replace(client_span(8, 9), server_span_id=None)):
        assert carried.apply(span) == span


def test_of_what_was_brought_the_newest_is_kept() -> None:
    carried = CarriedContexts(frozenset(), limit=2, ended_limit=1)
    for number in (1, 2, 3):
        carried.add(SpanId(number), "a=1", "")
    states = [carried.apply(server_span(number)).trace_state for number in (1, 2, 3)]
    assert states == ["", "a=1", "a=1"]
    states = [carried.apply(client_span(9, number)).trace_state for number in (1, 2, 3)]
    assert states == ["", "", "a=1"]


def test_members_of_baggage_by_key() -> None:
    text = "a=1;p=2,b=%C3%A4%20,c=,a=x=y;q,bad%=1"
    assert baggage_attributes(text, frozenset("*")) == {"a": "x=y", "b": "ä ", "c": "", "bad%": "1"}
    assert baggage_attributes(text, frozenset({"b", "z"})) == {"b": "ä "}
    assert baggage_attributes(text, frozenset()) == {}
    assert baggage_attributes("", frozenset("*")) == {}
    # What is no UTF-8 is replaced, as the specification asks for.
    assert baggage_attributes("a=%ff", frozenset("*")) == {"a": "\ufffd"}
