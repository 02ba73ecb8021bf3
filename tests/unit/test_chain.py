"""The judge of the chain check finds what is wrong: trees that are right, and each with one thing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.support.chain import Verdict, judge
from tests.support.otlp_receiver import ReceivedSpan
from tests.support.traces import AGENT_SCOPE

SERVER, CLIENT, INTERNAL = 2, 3, 1
TRACE, OTHER_TRACE = "1" * 32, "2" * 32


def span(span_id: str, parent: str, kind: int, scope: str, attributes: dict[str, object]) -> ReceivedSpan:
    return ReceivedSpan(
        name="span",
        trace_id=TRACE,
        span_id=span_id,
        parent_span_id=parent,
        kind=kind,
        start_ns=1,
        end_ns=2,
        attributes=attributes,
        resource={},
        scope_name=scope,
        scope_version="",
        status_code=0,
        status_message="",
        flags=1,
        trace_state="",
        links=(),
        events=(),
        protocol="http",
    )


def server(span_id: str, parent: str, path: str) -> ReceivedSpan:
    return span(span_id, parent, SERVER, AGENT_SCOPE, {"url.path": path})


def client(span_id: str, parent: str, path: str) -> ReceivedSpan:
    attributes: dict[str, object] = {
        "url.full": f"http://127.0.0.1:80{path}?seed=1&unread=0",
        "http.response.status_code": 200,
    }
    return span(span_id, parent, CLIENT, AGENT_SCOPE, attributes)


def manual(span_id: str, parent: str, key: str, expected: str, number: int = 7) -> ReceivedSpan:
    return span(
        span_id,
        parent,
        INTERNAL,
        "chain",
        {"request.number": number, "key": key, "expected.parent": expected},
    )


def right() -> dict[str, ReceivedSpan]:
    """Two services: the first has a root that calls the second, and a background job of its own."""
    call = "/f-1/f-0/wire/7"
    spans = [
        server("s1", "", "/f/none/wire/7"),
        manual("m1", "s1", "f-0", "f"),
        client("c1", "m1", call),
        server("s2", "c1", call),
        manual("m2", "s2", "f-1-0", "f-1"),
        manual("m3", "m2", "f-1-1", "f-1-0"),
        replace(manual("j1", "", "f-2", "none"), trace_id=OTHER_TRACE),
    ]
    return {span.span_id: span for span in spans}


def judged(spans: dict[str, ReceivedSpan], relay_is_bare: bool = False) -> Verdict:
    return judge(list(spans.values()), [7], relay_is_bare=relay_is_bare)


def test_the_record_itself_is_right() -> None:
    verdict = judged(right())
    assert verdict.ok
    assert verdict.most_unknown == 0
    assert verdict.spans == verdict.right == {"server": 2, "client": 1, "manual": 4}


def change(span_id: str, **fields: object) -> Callable[[dict[str, ReceivedSpan]], None]:
    def apply(spans: dict[str, ReceivedSpan]) -> None:
        spans[span_id] = replace(spans[span_id], **fields)  # type: ignore[arg-type]

    return apply


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("manual", change("m1", parent_span_id="c1")),
        ("manual", change("m1", parent_span_id="ffff")),
        ("manual", change("m1", trace_id=OTHER_TRACE)),
        ("manual", change("m2", parent_span_id="c1")),
        ("manual", change("m3", parent_span_id="s2")),
        ("manual", change("j1", parent_span_id="s1", trace_id=TRACE)),
        ("manual", change("j1", trace_id=TRACE)),
        ("client", change("c1", parent_span_id="s1")),
        ("client", change("c1", trace_id=OTHER_TRACE)),
        ("server", change("s2", parent_span_id="m1")),
        ("server", change("s2", trace_id=OTHER_TRACE)),
        ("server", change("s1", parent_span_id="j1")),
    ],
)
def test_a_wrong_parent_is_found(kind: str, wrong: Callable[[dict[str, ReceivedSpan]], None]) -> None:
    spans = right()
    wrong(spans)
    verdict = judged(spans)
    assert verdict.wrong[kind] == 1
    assert not verdict.ok
    assert not verdict.unknown


@pytest.mark.parametrize(("kind", "span_id"), [("manual", "m1"), ("client", "c1"), ("server", "s2")])
def test_no_parent_where_the_record_has_one_is_unknown(kind: str, span_id: str) -> None:
    spans = right()
    change(span_id, parent_span_id="", trace_id="3" * 32)(spans)
    verdict = judged(spans)
    assert verdict.unknown[kind] == 1
    assert verdict.most_unknown > 0


def test_a_call_on_behalf_of_nobody_has_no_parent() -> None:
    spans = right()
    call = "/f-3/none/wire/7"
    job_trace = "4" * 32
    spans["c2"] = replace(client("c2", "", call), trace_id=job_trace)
    spans["s3"] = replace(server("s3", "c2", call), trace_id=job_trace)
    assert judged(spans).ok
    change("c2", parent_span_id="m1")(spans)
    assert judged(spans).wrong["client"] == 1


def test_a_repeated_call_may_have_several_client_spans() -> None:
    spans = right()
    spans["c2"] = client("c2", "m1", "/f-1/f-0/wire/7")
    change("s2", parent_span_id="c2")(spans)
    assert judged(spans).ok


def test_a_header_of_the_services_own_beats_the_client_span() -> None:
    spans = right()
    call = "/f-1/f-0/own/7"
    spans["c1"] = client("c1", "m1", call)
    spans["s2"] = server("s2", "m1", call)
    assert judged(spans).ok
    change("s2", parent_span_id="c1")(spans)
    assert judged(spans).wrong == {"server": 1}


def test_a_trace_ends_at_a_relay_that_nobody_traces() -> None:
    spans = right()
    call = "/f-1-r/f-1/wire/7"
    spans["s2"] = server("s2", "", call)
    change("m2", attributes={"request.number": 7, "key": "f-1-0", "expected.parent": "f-1-r"})(spans)
    assert judged(spans, relay_is_bare=True).ok
    change("s2", parent_span_id="c1")(spans)
    assert judged(spans, relay_is_bare=True).wrong == {"server": 1}


@pytest.mark.parametrize("span_id", ["s1", "c1", "s2"])
def test_an_automatic_span_that_did_not_come_is_missing(span_id: str) -> None:
    spans = right()
    del spans[span_id]
    verdict = judged(spans)
    assert verdict.missing
    assert not verdict.ok


def test_spans_of_requests_that_were_never_sent_and_spans_that_come_twice_are_wrong() -> None:
    spans = right()
    spans["m9"] = manual("m9", "", "f-0", "none", number=8)
    assert judged(spans).wrong == {"span of no request": 1}
    assert judge([*right().values(), right()["m3"]], [7]).wrong == {"span that came twice": 1}


def test_nothing_at_all_is_not_right() -> None:
    assert not judge([], [7]).ok
    assert not judge([], []).ok
