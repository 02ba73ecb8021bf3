"""Who is whose parent, where it is not decided in the target: pure, without I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import unquote

from spanweld.model import Link, Span, SpanContext, SpanId


class RootLinks:
    """Manual roots that were left as they are, kept until the server span they began under ends.

    At most ``limit`` server spans are waited for; the oldest is forgotten, and counted in ``lost``.
    """

    def __init__(self, limit: int = 65536) -> None:
        self._limit = limit
        self._roots: OrderedDict[SpanId, list[SpanContext]] = OrderedDict()
        self.lost = 0

    def add(self, server_span_id: SpanId, root: SpanContext) -> None:
        """A root began while the server span was active."""
        self._roots.setdefault(server_span_id, []).append(root)
        if len(self._roots) > self._limit:
            _, roots = self._roots.popitem(last=False)
            self.lost += len(roots)

    def link(self, span: Span) -> Span:
        """The span with links to the roots that began under it, in the order in which they did."""
        roots = self._roots.pop(span.context.span_id, None)
        if not roots:
            return span
        return replace(span, links=(*span.links, *(Link(root) for root in roots)))


class CarriedContexts:
    """What requests brought besides their parents, for the automatic spans that are made of them.

    ``wanted`` are the keys of baggage that become attributes, or ``*``. Of the requests under way at most
    ``limit`` are kept, of those that have ended the last ``ended_limit``: client spans may outlast theirs.
    """

    def __init__(self, wanted: frozenset[str], limit: int = 16384, ended_limit: int = 1024) -> None:
        self._wanted = wanted
        self._limit = limit
        self._ended_limit = ended_limit
        self._open: OrderedDict[SpanId, tuple[str, Mapping[str, str]]] = OrderedDict()
        self._ended: OrderedDict[SpanId, tuple[str, Mapping[str, str]]] = OrderedDict()

    def add(self, server_span_id: SpanId, trace_state: str, baggage: str) -> None:
        """A server span began."""
        self._open[server_span_id] = trace_state, baggage_attributes(baggage, self._wanted)
        if len(self._open) > self._limit:
            self._open.popitem(last=False)

    def apply(self, span: Span) -> Span:
        """The span with the trace state and the attributes of the request that it belongs to.

        Its own attributes go before those of the baggage. With the server span itself, the request ends.
        """
        server_span_id = span.server_span_id
        if server_span_id is None:
            return span
        context = self._open.get(server_span_id) or self._ended.get(server_span_id)
        if context is None:
            return span
        if span.context.span_id == server_span_id:
            self._open.pop(server_span_id, None)
            self._ended[server_span_id] = context
            if len(self._ended) > self._ended_limit:
                self._ended.popitem(last=False)
        trace_state, attributes = context
        return replace(span, trace_state=trace_state, attributes={**attributes, **span.attributes})


def baggage_attributes(baggage: str, wanted: frozenset[str]) -> dict[str, str]:
    """Members of a well-formed W3C baggage text by key, percent-decoded and without properties.

    Of members of one key the last counts. https://www.w3.org/TR/baggage/
    """
    result: dict[str, str] = {}
    for member in baggage.split(",") if wanted else ():
        key, equals, value = member.partition(";")[0].partition("=")
        if equals and (key in wanted or "*" in wanted):
            result[key] = unquote(value)
    return result
