"""Links from server spans to manual roots that were left as they are."""

from __future__ import annotations

from spanweld.join import RootLinks
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
    )


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
