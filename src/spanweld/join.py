"""Who is whose parent, where it is not decided in the target: pure, without I/O."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

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
