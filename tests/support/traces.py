"""What must hold of the spans that a receiver got from the agent and from a service's own exporter."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from tests.support.otlp_receiver import ReceivedSpan

AGENT_SCOPE = "spanweld"
SERVER_KIND = 2
CLIENT_KIND = 3
ERROR = 2
HAS_IS_REMOTE = 0x100
IS_REMOTE = 0x200


def is_automatic(span: ReceivedSpan) -> bool:
    """Whether the agent exported it, not the service."""
    return span.scope_name == AGENT_SCOPE


def server_spans(spans: Iterable[ReceivedSpan], path: str | None = None) -> list[ReceivedSpan]:
    """The agent's server spans, of one path if it is said."""
    return [
        span
        for span in spans
        if is_automatic(span)
        and span.kind == SERVER_KIND
        and (path is None or span.attributes.get("url.path") == path)
    ]


def client_spans(spans: Iterable[ReceivedSpan], path: str | None = None) -> list[ReceivedSpan]:
    """The agent's client spans, of one path if it is said."""
    return [
        span
        for span in spans
        if is_automatic(span)
        and span.kind == CLIENT_KIND
        and (path is None or urlsplit(str(span.attributes.get("url.full"))).path == path)
    ]


def manual_spans(spans: Iterable[ReceivedSpan], number: int | None = None) -> list[ReceivedSpan]:
    """What the service's own exporter sent, of one request if its number is said."""
    return [
        span
        for span in spans
        if not is_automatic(span) and (number is None or span.attributes.get("request.number") == number)
    ]


def assert_child(child: ReceivedSpan, parent: ReceivedSpan) -> None:
    """One trace, and the one span's parent is the other."""
    assert (child.trace_id, child.parent_span_id) == (parent.trace_id, parent.span_id), (
        f"{child.name} is not a child of {parent.name}:\n{child}\n{parent}"
    )


def assert_left_alone(root: ReceivedSpan, spans: Iterable[ReceivedSpan]) -> None:
    """No parent, and a trace that holds no automatic span."""
    assert root.parent_span_id == "", f"{root.name} has a parent: {root}"
    strangers = [span for span in spans if is_automatic(span) and span.trace_id == root.trace_id]
    assert not strangers, f"{root.name} is in the trace of {strangers}"


def innermost_open(span: ReceivedSpan, others: Sequence[ReceivedSpan]) -> ReceivedSpan | None:
    """Of spans of one task: the one that was open and had started last when ``span`` started."""
    earlier = [
        other
        for other in others
        if other.span_id != span.span_id and other.start_ns <= span.start_ns < other.end_ns
    ]
    return max(earlier, key=lambda other: other.start_ns, default=None)


def wrong(spans: Iterable[ReceivedSpan]) -> list[str]:
    """What is wrong with a manual span by any measure, whatever was sent.

    A manual span is in the trace of its own request, or in none of any request. Its parent is a
    span of the same request, or it has none (a remote parent may come from elsewhere). What belongs
    to no request has neither. Requests and spans are matched by the number that ends the path and
    is the attribute ``request.number``.
    """
    spans = list(spans)
    problems = [f"span id {key} came {count} times" for key, count in _twice(spans)]
    servers: dict[str, dict[int, ReceivedSpan]] = defaultdict(dict)  # trace id -> number -> span
    of_any_request: set[str] = set()
    by_id = {span.span_id: span for span in spans}
    for span in server_spans(spans):
        of_any_request.add(span.trace_id)
        last = str(span.attributes.get("url.path", "")).rpartition("/")[2]
        if last.isdecimal():
            servers[span.trace_id][int(last)] = span
    for span in manual_spans(spans):
        number = span.attributes.get("request.number")
        what = f"{span.attributes.get('scenario', '')}/{span.name} of request {number}"
        if span.trace_id in of_any_request and number not in servers[span.trace_id]:
            problems.append(f"{what} is in the trace of {servers[span.trace_id]}")
        parent = by_id.get(span.parent_span_id)
        if parent is not None and span.trace_id != parent.trace_id:
            problems.append(f"{what} has a parent in another trace: {parent.name}")
        if parent is not None and parent.kind == CLIENT_KIND and is_automatic(parent):
            # Of the request on whose stack both are.
            if number not in servers[parent.trace_id]:
                problems.append(f"{what} has the parent {parent.attributes.get('url.full')}")
        elif parent is not None and is_automatic(parent):
            if servers[parent.trace_id].get(-1 if number is None else number) != parent:
                problems.append(f"{what} has the parent {parent.attributes.get('url.path')}")
        elif parent is not None and parent.attributes.get("request.number") != number:
            problems.append(f"{what} has the parent {parent.name} of another request")
        if number is None and span.parent_span_id:
            problems.append(f"{what} has a parent")
    return problems


def _twice(spans: Iterable[ReceivedSpan]) -> list[tuple[str, int]]:
    counts = Counter(span.span_id for span in spans)
    return [(key, count) for key, count in counts.items() if count > 1]
