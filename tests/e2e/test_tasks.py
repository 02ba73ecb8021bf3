"""Requests whose work is done by tasks and threads that they start: what is a child of what.

Each endpoint of the lab says in its source what it spawns under which span.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_manual_spans import wait_for_slots
from tests.support.client import Connection, load
from tests.support.otlp_receiver import ReceivedSpan
from tests.support.services import binary
from tests.support.traced import Traced
from tests.support.traces import assert_child, assert_left_alone, manual_spans, server_spans

pytestmark = [pytest.mark.root]

PINS = Path("/sys/fs/bpf/spanweld")

# What each endpoint makes: span → its parent; "server" is the request's own span.
SPANS = {
    "spawn": {
        "outer": "server",
        "first": "outer",
        "first-child": "first",
        "inner": "outer",
        "deep": "inner",
        "deep-child": "deep",
        "last": "outer",
        "after": "server",
    },
    "join-set": {
        "a": "server",
        "b": "server",
        "c": "server",
        "a-child": "a",
        "b-child": "b",
        "c-child": "c",
    },
    "spawn-local": {"local": "server", "local-child": "local", "after": "server"},
    "nested-runtime": {"inside": "server", "inside-child": "inside", "after": "server"},
    "block-in-place": {"outer": "server", "inside": "outer", "after": "server"},
    "thread": {"outer": "server", "inside": "outer", "deep": "inside", "last": "outer"},
    "sync-blocking": {"root": "server"},
    "select": {
        "loser": "server",
        "winner": "server",
        "winner-child": "winner",
        "cancelled": "server",
        "after": "server",
    },
    "worker": {"outer": "server", "job": ""},
    "never-ends-in-task": {},
}


@pytest.fixture(
    scope="module", params=["release-run", "release-attach", "debug-run", "stripped-run", "inline-run"]
)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    """The lab under ``--write stop``; stripped is its release build, and so is inline, with that writer."""
    profile, _, how = request.param.partition("-")
    executable = binary("lab", "debug" if profile == "debug" else "release")
    if profile == "stripped":
        bare = tmp_path_factory.mktemp("stripped") / "lab"
        subprocess.run(["strip", "-o", str(bare), str(executable)], check=True)
        executable = bare
    options = ("--write", "inline" if profile == "inline" else "stop")
    with Traced("lab", executable=executable, how=how, options=options) as traced:
        yield traced


def check(scenario: str, server: ReceivedSpan, by_name: dict[str, ReceivedSpan], traced: Traced) -> None:
    """Each span's parent is the one that the endpoint's source says."""
    for name, parent in SPANS[scenario].items():
        if parent:
            assert_child(by_name[name], server if parent == "server" else by_name[parent])
        else:
            assert_left_alone(by_name[name], traced.spans)


@pytest.mark.parametrize("scenario", SPANS)
def test_what_a_request_spawns(lab: Traced, scenario: str) -> None:
    with Connection(lab.address) as connection:
        for _ in range(2):
            seen = lab.see(f"/{scenario}/{{n}}", *SPANS[scenario], connection=connection)
            check(scenario, seen.server, dict(seen.manual), lab)


def test_a_task_that_outlives_its_request(lab: Traced) -> None:
    """What it begins afterwards is nobody's, also while another request of its connection is open."""
    names = ("early", "late", "early-child", "later")
    with Connection(lab.address) as connection:
        number = lab.next_number()
        assert connection.request("GET", f"/outlives-as-task/{number}").status == 200
        slow = lab.see("/slow/{n}?ms=600", "root", connection=connection)
    server, manual = lab.expect(number, f"/outlives-as-task/{number}", *names)
    assert_child(manual["early"], server)
    assert_child(manual["early-child"], manual["early"])
    for name in ("late", "later"):
        assert slow.server.start_ns < manual[name].start_ns < slow.server.end_ns
        assert_left_alone(manual[name], lab.spans)
    assert_child(slow.manual["root"], slow.server)


def test_everything_at_once(lab: Traced) -> None:
    scenarios = list(SPANS)
    numbers = [lab.next_number() for _ in range(400)]
    path = {number: f"/{scenarios[number % len(scenarios)]}/{number}" for number in numbers}
    result = load(lab.address, numbers, 32, path.__getitem__)
    assert not result.failures
    wanted = sum(len(SPANS[path[number].split("/")[1]]) for number in numbers)
    sent = set(numbers)

    def of_these(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
        return [span for span in manual_spans(spans) if span.attributes.get("request.number") in sent]

    spans = lab.receiver.wait_for(
        lambda spans: (
            len(of_these(spans)) >= wanted
            and {span.attributes["url.path"] for span in server_spans(spans)} >= set(path.values())
        ),
        60,
    )
    servers = {span.attributes["url.path"]: span for span in server_spans(spans)}
    made: dict[int, dict[str, ReceivedSpan]] = {number: {} for number in numbers}
    for span in of_these(spans):
        made[span.attributes["request.number"]][span.name] = span
    for number in numbers:
        check(path[number].split("/")[1], servers[path[number]], made[number], lab)
    wait_for_slots(PINS / str(lab.pid), lambda slots: not slots)


def test_one_thread_for_all_tasks() -> None:
    with Traced("lab", "--current-thread") as lab:
        for scenario in ("spawn", "join-set", "spawn-local", "thread", "select", "worker"):
            seen = lab.see(f"/{scenario}/{{n}}", *SPANS[scenario])
            check(scenario, seen.server, dict(seen.manual), lab)


def test_write_off_links_what_other_tasks_begin() -> None:
    with Traced("lab", options=("--write", "off")) as lab:
        seen = lab.see("/join-set/{n}", *SPANS["join-set"])
        linked = {link.span_id for link in seen.server.links}
        assert linked == {seen.manual[name].span_id for name in ("a", "b", "c")}
