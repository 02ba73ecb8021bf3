"""What requests bring, as a real receiver gets it: parents by each propagator, tracestate, baggage."""

from __future__ import annotations

import json
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from spanweld.bpf.pins import PINS
from tests.support.agent import COMMAND
from tests.support.client import Connection, head, load
from tests.support.peer import Peer
from tests.support.services import Service, binary
from tests.support.traced import Seen, Traced
from tests.support.traces import HAS_IS_REMOTE, IS_REMOTE, assert_child, client_spans

pytestmark = [pytest.mark.root]

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Traced]:
    with Traced("lab") as traced:
        yield traced


@pytest.fixture(scope="module")
def every() -> Iterator[Traced]:
    """All propagators, Jaeger's the last, and all of the baggage in attributes."""
    with Traced(
        "lab",
        options=("--write", "stop", "--baggage-attributes", "*"),
        agent_environ={"OTEL_PROPAGATORS": "baggage,tracecontext,b3,jaeger"},
    ) as traced:
        yield traced


def see(traced: Traced, headers: Mapping[str, str]) -> Seen:
    """A request with these headers; its manual spans must be below its server span."""
    seen = traced.see("/nested/{n}", "root", "child", "grandchild", headers=headers)
    assert_child(seen.manual["root"], seen.server)
    return seen


@pytest.mark.parametrize(
    ("headers", "trace_id", "parent"),
    [
        (TRACEPARENT, TRACE, PARENT),
        ({"b3": f"{TRACE}-{PARENT}-1"}, TRACE, PARENT),
        ({"B3": f"{TRACE}-{PARENT}-d-00000000000000aa"}, TRACE, PARENT),
        ({"b3": f"{TRACE[16:]}-{PARENT}"}, "0" * 16 + TRACE[16:], PARENT),
        ({"X-B3-TraceId": TRACE, "X-B3-SpanId": PARENT, "X-B3-Sampled": "1"}, TRACE, PARENT),
        (
            {"x-b3-traceid": TRACE[16:], "x-b3-spanid": PARENT, "x-b3-flags": "1"},
            "0" * 16 + TRACE[16:],
            PARENT,
        ),
        ({"uber-trace-id": f"{TRACE}:{PARENT}:0:1"}, TRACE, PARENT),
        ({"Uber-Trace-Id": "abc%3Adef%3A0%3A1"}, "abc".zfill(32), "def".zfill(16)),
        ({**TRACEPARENT, "uber-trace-id": "abc:def:0:1"}, "abc".zfill(32), "def".zfill(16)),
        ({**TRACEPARENT, "uber-trace-id": "bad", "b3": "bad"}, TRACE, PARENT),
    ],
)
def test_the_remote_parent(every: Traced, headers: dict[str, str], trace_id: str, parent: str) -> None:
    server = see(every, headers).server
    assert (server.trace_id, server.parent_span_id, server.flags) == (
        trace_id,
        parent,
        1 | HAS_IS_REMOTE | IS_REMOTE,
    )


@pytest.mark.parametrize("headers", [{"b3": "0"}, {"X-B3-Sampled": "0"}, {"b3": f"{TRACE}-{PARENT}-0"}])
def test_a_caller_that_does_not_sample(every: Traced, headers: dict[str, str]) -> None:
    number = every.next_number()
    with Connection(every.address) as connection:
        assert connection.request("GET", f"/none/{number}", headers).status == 200
    assert not every.expect_manual_only(number, f"/none/{number}")


def test_other_propagators_are_not_asked(lab: Traced) -> None:
    server = see(lab, {"b3": f"{TRACE}-{PARENT}-0", "uber-trace-id": f"{TRACE}:{PARENT}:0:0"}).server
    assert (server.parent_span_id, server.flags & 1) == ("", 1)
    assert server.trace_id != TRACE


def test_tracestate(lab: Traced) -> None:
    server = see(lab, {**TRACEPARENT, "TraceState": "rojo=1 ,, congo@vendor=t61 rc"}).server
    assert (server.trace_id, server.trace_state) == (TRACE, "rojo=1,congo@vendor=t61 rc")
    assert see(lab, {"tracestate": "rojo=1"}).server.trace_state == ""
    assert see(lab, {**TRACEPARENT, "tracestate": "Rojo=1,a=2"}).server.trace_state == ""
    assert see(lab, TRACEPARENT).server.trace_state == ""


def test_long_headers_in_many_lines_and_pieces(every: Traced) -> None:
    """32 members of a tracestate and 64 of baggage, in several headers, in pieces of every kind."""
    state = [f"vendor{number:02}={'s' * 40}" for number in range(32)]
    members = [f"key{number:02}={'b' * 118};p=q" for number in range(63)]
    headers = [
        *(f"{name}: {value}" for name, value in TRACEPARENT.items()),
        *("tracestate: " + ",".join(state[:20]), "baggage: " + ",".join(members[:50])),
        *("Tracestate: " + ", ".join(state[20:]), "BAGGAGE: " + " , ".join(members[50:])),
    ]
    for size in (100_000, 1000, 449):
        number = every.next_number()
        data = head("GET", f"/none/{number}", *headers)
        with Connection(every.address) as connection:
            connection.send_in_pieces(data[at : at + size] for at in range(0, len(data), size))
            assert connection.read_response().status == 200
        server, _ = every.expect(number, f"/none/{number}")
        assert server.trace_state == ",".join(state)
        for key, value in (member.partition(";")[0].split("=") for member in members):
            assert server.attributes[key] == value


def test_baggage_is_no_attribute_unless_asked_for(lab: Traced) -> None:
    assert "tenant" not in see(lab, {"baggage": "tenant=a"}).server.attributes


def test_baggage_that_was_asked_for() -> None:
    with Traced("lab", options=("--write", "stop", "--baggage-attributes", "tenant, user.id")) as lab:
        headers = {"baggage": "tenant=caf%C3%A9%20%2C1;prop=1, other=b,user.id = 7,a b=c,url.path=/no"}
        server = see(lab, headers).server
        assert server.attributes["tenant"] == "café ,1"
        assert server.attributes["user.id"] == "7"
        assert "other" not in server.attributes
        lab.finish()


def test_baggage_replaces_no_attribute(every: Traced) -> None:
    seen = see(every, {"baggage": "url.path=/no,http.request.method=NO,all=yes"})
    assert seen.server.attributes["url.path"] == f"/nested/{seen.number}"
    assert seen.server.attributes["http.request.method"] == "GET"
    assert seen.server.attributes["all"] == "yes"


def test_client_spans_have_what_their_request_brought(every: Traced) -> None:
    headers = {**TRACEPARENT, "tracestate": "rojo=1", "baggage": "tenant=a,url.full=no"}
    with Peer() as peer:
        seen = every.see(f"/ask/{{n}}?to={peer.address}", "before", "after", headers=headers)
        path = f"/a/{seen.number}"
        (client,) = client_spans(every.receiver.wait_for(lambda spans: client_spans(spans, path)), path)
        assert_child(client, seen.server)
        assert (client.trace_id, client.trace_state) == (TRACE, "rojo=1")
        assert client.attributes["tenant"] == "a"
        assert client.attributes["url.full"] == f"http://{peer.address}{path}"
        seen = every.see(f"/ask/{{n}}?to={peer.address}", "before", "after")
        path = f"/a/{seen.number}"
        (client,) = client_spans(every.receiver.wait_for(lambda spans: client_spans(spans, path)), path)
        assert client.trace_state == ""
        assert "tenant" not in client.attributes


def test_what_came_in_goes_out(every: Traced) -> None:
    """To each of three requests that one caused, two of them at once; nothing to those of another."""
    state = ",".join(f"vendor{number:02}={'s' * 30}" for number in range(32))
    for size in (1, 1000, 8000):
        brought = {"tracestate": state[: state.index(",", size % 1000)], "baggage": "k=v;p=q,f=" + "x" * size}
        with Peer() as peer:
            seen = every.see(
                f"/ask/{{n}}?to={peer.address}", "before", "after", headers={**TRACEPARENT, **brought}
            )
            every.see(f"/ask/{{n}}?to={peer.address}", "before", "after")
            heads = {head.split(" ")[1]: head.splitlines() for head in peer.heads()}
        assert len(heads) == 6
        for path, lines in heads.items():
            mine = path.endswith(f"/{seen.number}")
            (parent,) = (line for line in lines if line.startswith("traceparent: "))
            assert (TRACE in parent) == mine
            assert [f"{name}: {text}" in lines for name, text in brought.items()] == [mine, mine]


def test_carried_is_typed_private_and_empty_in_the_end(every: Traced) -> None:
    pin = PINS / str(every.pid) / "carried"
    assert stat.S_IMODE(pin.stat().st_mode) & 0o077 == 0
    numbers = [every.next_number() for _ in range(100)]
    assert not load(every.address, numbers, 8, lambda number: f"/none/{number}").failures
    for number in numbers:
        every.expect(number, f"/none/{number}")
    number = every.next_number()
    headers = (f"traceparent: {TRACEPARENT['traceparent']}", "tracestate: a=1,b=2", "baggage: c=3")
    with Connection(every.address) as connection:
        connection.send(head("GET", f"/slow/{number}?ms=60000", *headers))
        (entry,) = wait_for_entries(pin, 1)
    wait_for_entries(pin, 0)
    server, _ = every.expect(number, f"/slow/{number}", "root")
    assert entry["key"] == entry["value"]["span_id"] == int(server.span_id, 16)
    for text, expected in (("tracestate", "a=1,b=2"), ("baggage", "c=3")):
        assert "".join(entry["value"][text][: entry["value"][f"{text}_length"]]) == expected


def wait_for_entries(pin: Path, count: int) -> list[dict[str, Any]]:
    """The entries of a target's map, dumped by bpftool with their types, once there are so many."""
    deadline = time.monotonic() + 20
    while True:
        dump = subprocess.run(
            ["bpftool", "-j", "map", "dump", "pinned", str(pin)], check=True, capture_output=True
        )
        entries = [entry["formatted"] for entry in json.loads(dump.stdout)]
        if len(entries) == count:
            return entries
        assert time.monotonic() < deadline, entries
        time.sleep(0.02)


def test_many_at_once_do_not_get_mixed_up(every: Traced) -> None:
    """Each has texts of its own, some of them long. Were any left behind, the agent would say so."""
    numbers = [every.next_number() for _ in range(1500)]

    def headers(number: int) -> dict[str, str]:
        filler = "x" * (number % 7 * 1000)
        parent = f"00-{TRACE}-{number:016x}-01"
        return {"traceparent": parent, "tracestate": f"n={number}", "baggage": f"n={number},f={filler}"}

    def work(mine: Sequence[int]) -> None:
        with Connection(every.address) as connection:
            for number in mine:
                assert connection.request("GET", f"/none/{number}", headers(number)).status == 200

    with ThreadPoolExecutor(32) as pool:
        for done in [pool.submit(work, numbers[at::32]) for at in range(32)]:
            done.result()
    for number in numbers:
        server, _ = every.expect(number, f"/none/{number}")
        assert (server.parent_span_id, server.trace_state) == (f"{number:016x}", f"n={number}")
        assert (server.attributes["n"], len(str(server.attributes["f"]))) == (str(number), number % 7 * 1000)


def test_an_unknown_propagator_is_said() -> None:
    with Service(binary("minimal", "release")) as service:
        done = subprocess.run(
            [*COMMAND, "attach", "--pid", str(service.pid)],
            env={"OTEL_PROPAGATORS": "tracecontext,xray"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 2
    assert "OTEL_PROPAGATORS: 'xray' is not known" in done.stderr
    assert "tracecontext, baggage, b3, b3multi, jaeger, or none" in done.stderr
