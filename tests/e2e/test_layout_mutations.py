"""Layouts that are wrong in one offset, or are another SDK's: nothing is written to a wrong place.

The service is one process, which every wrong layout is tried on in turn. What its own exporter sends
must be what it sends without the agent, except for trace id and parent of roots that were adopted rightly.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from spanweld.bpf.events import Counter as BpfCounter
from spanweld.layouts import SdkLayout
from tests.support.client import Connection
from tests.support.mutations import MutantAgent, Told, neighbours, offsets, shifted
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.support.services import Service, binary
from tests.support.traced import SOON
from tests.support.traces import IS_REMOTE, innermost_open, manual_spans
from tests.support.unknown import of_unknown_version

pytestmark = [pytest.mark.root, pytest.mark.slow]

REMOTE_TRACE = "0af7651916cd43dd8448eb211c80319c"
REMOTE_SPAN = "b7ad6b7169203331"
REMOTE = "remote"
SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request: whose child each of its spans is without the agent; '' for a root."""

    path: str
    parents: Mapping[str, str]
    traceparent: bool = False


# Roots alone come first: they say nothing of where a parent is kept.
KINDS = (
    Kind("kinds", dict.fromkeys(("client", "server", "producer", "consumer", "internal"), "")),
    Kind("status", {"root": ""}),
    Kind("start-time", {"root": ""}),
    Kind("remote-parent", {"server": REMOTE, "child": "server"}, traceparent=True),
    Kind("end-at", {"root": ""}),
    Kind("drop", {"root": ""}),
    Kind("end-twice", dict.fromkeys("abc", "")),
    Kind("open-roots", dict.fromkeys("abc", "")),
    Kind("unsampled", {"kept": ""}),
    Kind("nested", {"root": "", "child": "root", "grandchild": "child"}),
    Kind("ended-elsewhere", dict.fromkeys(("root", "after"), "")),
    Kind("in-span", {"root": "", "child": "root", "grandchild": "child"}),
    Kind("local-parent", {"root": "", "child": "root"}),
    Kind("remote-parent", {"server": "", "child": "server"}),
)
ROUNDS = 2
ASTRAY_CERTAIN = 4
"""So many ends show that a span's context lies elsewhere (otel_sdk.bpf.c)."""


class Bench:
    """The lab, the receiver of its spans, and what they are without the agent."""

    def __init__(self, service: Service, receiver: OtlpReceiver) -> None:
        self.service = service
        self._receiver = receiver
        self._numbers = count(1)
        self._usual: dict[tuple[str, str], Any] = {}

    def send(self) -> dict[int, Kind]:
        """Every kind of request, one after the other, over one connection."""
        sent = {}
        with Connection(self.service.address) as connection:
            for kind in KINDS:
                number = next(self._numbers)
                headers = {"traceparent": f"00-{REMOTE_TRACE}-{REMOTE_SPAN}-01"} if kind.traceparent else {}
                response = connection.request("GET", f"/{kind.path}/{number}", headers)
                assert response.status == 200, (kind, response)
                sent[number] = kind
        return sent

    def exported(self, sent: Mapping[int, Kind]) -> dict[int, dict[str, ReceivedSpan]]:
        """What the service exported of these requests, by number and name, once all came."""

        def of_these(spans: list[ReceivedSpan]) -> dict[int, dict[str, ReceivedSpan]]:
            result: dict[int, dict[str, ReceivedSpan]] = {number: {} for number in sent}
            for span in manual_spans(spans):
                number = span.attributes.get("request.number")
                if number in result:
                    assert span.name not in result[number], f"twice: {span}"
                    result[number][span.name] = span
            return result

        spans = self._receiver.wait_for(
            lambda spans: all(
                len(found) >= len(sent[number].parents) for number, found in of_these(spans).items()
            )
        )
        result = of_these(spans)
        for number, kind in sent.items():
            assert set(result[number]) == set(kind.parents), (kind, result[number])
        return result

    @property
    def background(self) -> list[ReceivedSpan]:
        """What belongs to no request."""
        return [span for span in self._receiver.spans if span.attributes.get("scenario") == "background"]

    def learn(self) -> None:
        """Without the agent: what each span is."""
        sent = self.send()
        for number, spans in self.exported(sent).items():
            kind = sent[number]
            for name, span in spans.items():
                self._usual[f"{kind}", name] = _rest(span, 0)
                assert _relation(span, kind, spans, None) in ("native", "child")

    def check(self, sent: Mapping[int, Kind], told: Told) -> Counter[str]:
        """AssertionError unless each span is right; how many there are of each relation.

        Native ones with a remote parent are counted apart from native roots.
        """
        relations: Counter[str] = Counter()
        for number, spans in self.exported(sent).items():
            kind = sent[number]
            server = told.servers[f"/{kind.path}/{number}"]
            for name, span in spans.items():
                relation = _relation(span, kind, spans, server)
                remote = kind.parents[name] == REMOTE
                flags = IS_REMOTE if remote and relation == "adopted" else 0
                assert _rest(span, flags) == self._usual[f"{kind}", name], span
                relations["native remote" if remote and relation == "native" else relation] += 1
        traces = {trace for trace, _ in told.servers.values()}
        for span in self.background:
            assert (span.parent_span_id, span.kind, span.status_code) == ("", 1, 0), span
            assert span.trace_id not in traces, span
        assert self.service.process.poll() is None
        return relations


def _rest(span: ReceivedSpan, flags: int) -> Any:
    """All of a span besides its ids and its request's number; times by the second, from now."""
    attributes = {key: value for key, value in span.attributes.items() if key != "request.number"}
    events = [(event.name, sorted(event.attributes)) for event in span.events]
    now = time.time_ns()
    assert all(0 < now - event.time_ns < 60 * SECOND for event in span.events), span
    kept_back = -3600 if attributes.get("scenario") == "start-time" else 0
    assert -SECOND < now + kept_back * SECOND - span.start_ns < 60 * SECOND, span
    assert 0 <= span.end_ns - span.start_ns - (-kept_back * SECOND) < 5 * SECOND, span
    return (
        span.name,
        span.kind,
        attributes,
        (span.status_code, span.status_message),
        span.flags | flags,
        span.trace_state,
        events,
        span.links,
        span.dropped,
    )


def _relation(
    span: ReceivedSpan, kind: Kind, spans: Mapping[str, ReceivedSpan], server: tuple[str, str] | None
) -> str:
    """How a span stands: child, native (as without the agent), adopted or halfway.

    Halfway: it has its request's trace id, and no parent. ``server``: the server span's trace id and span id.
    """
    native = kind.parents[span.name]
    if native not in ("", REMOTE):
        parent = spans[native]
        assert (span.trace_id, span.parent_span_id) == (parent.trace_id, parent.span_id), span
        return "child"
    usual = (REMOTE_SPAN if native == REMOTE else "", native == REMOTE)
    if server is None:
        assert (span.parent_span_id, span.trace_id == REMOTE_TRACE) == usual, span
        return "native"
    trace, server_span = server
    if native == REMOTE:
        assert span.trace_id == trace == REMOTE_TRACE
    if span.parent_span_id == usual[0] and (native == REMOTE or span.trace_id != trace):
        return "native"
    assert span.trace_id == trace, span
    if not span.parent_span_id:
        return "halfway"
    open_one = innermost_open(span, list(spans.values()))
    assert span.parent_span_id == (open_one.span_id if open_one else server_span), (span, server, spans)
    return "adopted"


@contextlib.contextmanager
def _bench(executable: Path) -> Iterator[Bench]:
    with OtlpReceiver() as receiver:
        environ = {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint}
        with Service(executable, (), environ) as service:
            bench = Bench(service, receiver)
            bench.learn()
            yield bench
            assert service.stop() == 0


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with _bench(binary("lab", "release")) as bench:
        yield bench


@pytest.fixture(scope="module")
def agent(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MutantAgent]:
    export = tmp_path_factory.mktemp("mutations") / "spans.jsonl"
    with MutantAgent(bench.service.pid, bench.service.executable, export) as agent:
        yield agent


def _trace(bench: Bench, agent: MutantAgent, layout: SdkLayout) -> tuple[Told, list[Counter[str]]]:
    rounds: list[dict[int, Kind]] = []

    def work() -> Sequence[str]:
        for _ in range(ROUNDS):
            rounds.append(bench.send())
        return [f"/{kind.path}/{number}" for sent in rounds for number, kind in sent.items()]

    told = agent.trace(layout, work)
    return told, [bench.check(sent, told) for sent in rounds]


# What may go unnoticed, and why that does no harm: these places are only read.
HARMLESS = {
    "context_is_remote": "a remote parent that seems local is left",
    "context_flags": "shown",
    "span_data": "told where a span seems to have ended early; where none ever does, a second end is shown",
    "span_name_pointer": "shown, or empty where it cannot be read",
    "span_name_length": "shown",
    "span_name_owned_pointer": "shown",
    "span_name_owned_length": "shown",
    "span_kind": "shown; told where it is none of the five",
    "span_status": "shown",
}
TOLD = (
    "context_trace_id",
    "context_span_id",
    "span_context",
    "span_parent_id",
    "span_parent_is_remote",
    "span_start_seconds",
    "span_start_nanos",
)


def _judge(
    told: Told, rounds: Sequence[Counter[str]], *, may_go_unnoticed: bool, may_leave_remote: bool = False
) -> None:
    """Adoption is off, or goes on as it should; roots from before that was clear are halfway, and counted.

    Of a layout that is not certain, roots get a parent once a child has shown where it is kept.
    ``may_leave_remote``: the flag of a remote context is read where anything may be, 0 in some requests.
    """
    first, last = rounds
    assert may_go_unnoticed or told.mismatch, told
    assert len([text for text in told.said if text == told.mismatch]) <= 1, told.said
    unwritten = told.counters.get(BpfCounter.PARENTS_UNWRITTEN, 0)
    if told.mismatch:
        assert set(last) == {"native", "native remote", "child"}, (told, rounds)
        # Roots whose ends showed that their context lies elsewhere were not counted: nobody knew them.
        assert first["halfway"] <= max(unwritten, ASTRAY_CERTAIN), (told, rounds)
    else:
        left = {"native remote"} if may_leave_remote else set()
        assert set(last) - left == {"adopted", "child"}, (told, rounds)
        assert not ({"native", "native remote"} - left) & set(first), (told, rounds)
        assert first["halfway"] == unwritten, (told, rounds)


def test_the_right_layout(bench: Bench, agent: MutantAgent) -> None:
    """Where this test would be blind, it shows here."""
    told, rounds = _trace(bench, agent, agent.layout)
    assert not told.mismatch
    assert all(set(relations) == {"adopted", "child"} for relations in rounds), (told, rounds)


def test_every_offset_is_tried(agent: MutantAgent) -> None:
    assert sorted(offsets(agent.layout)) == sorted((*TOLD, *HARMLESS))


@pytest.mark.parametrize("field", [*TOLD, *HARMLESS])
def test_an_offset_that_is_wrong(bench: Bench, agent: MutantAgent, field: str) -> None:
    for layout in shifted(agent.layout, field):
        told, rounds = _trace(bench, agent, layout)
        moved = layout.context_is_remote != agent.layout.context_is_remote
        _judge(told, rounds, may_go_unnoticed=field in HARMLESS, may_leave_remote=moved)


def test_the_layouts_of_other_sdks_and_compilers(bench: Bench, agent: MutantAgent) -> None:
    """One that differs in harmless fields alone, or does not know a field, goes unnoticed."""
    others = neighbours(agent.layout)
    assert len(others) > 20
    for layout in others:
        told, rounds = _trace(bench, agent, layout)
        same = all(getattr(layout, name) in (getattr(agent.layout, name), None) for name in TOLD)
        moved = layout.context_is_remote != agent.layout.context_is_remote
        _judge(told, rounds, may_go_unnoticed=same, may_leave_remote=moved)


def test_a_layout_from_code_that_is_wrong(tmp_path: Path) -> None:
    """It is not trusted more than another: of a version nobody has seen, right, then each offset wrong."""
    service = of_unknown_version(binary("lab", "release"), tmp_path / "lab")
    with _bench(service) as bench, MutantAgent(bench.service.pid, service, tmp_path / "spans") as agent:
        assert agent.layout.source == "code"
        told, rounds = _trace(bench, agent, agent.layout)
        assert not told.mismatch
        assert all(set(relations) == {"adopted", "child"} for relations in rounds), (told, rounds)
        for field in TOLD:
            for layout in shifted(agent.layout, field):
                told, rounds = _trace(bench, agent, layout)
                _judge(told, rounds, may_go_unnoticed=False)
