"""Manual spans: what is adopted, by whom, and what is left as the service made it.

Each test looks at trace ids and parents in what one OTLP receiver got from both: the agent's server
spans, and the manual spans from the service's own exporter.
"""

from __future__ import annotations

import json
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from spanweld.bpf.events import SharedPlace
from tests.support.client import Connection, head, load
from tests.support.otlp_receiver import ReceivedSpan
from tests.support.services import binary
from tests.support.traced import ROOTS_UNSAMPLED, How, Traced
from tests.support.traces import (
    ERROR,
    HAS_IS_REMOTE,
    IS_REMOTE,
    SERVER_KIND,
    assert_child,
    assert_left_alone,
    innermost_open,
    manual_spans,
    server_spans,
)

pytestmark = [pytest.mark.root]

PINS = Path("/sys/fs/bpf/spanweld")
REMOTE_TRACE = "0af7651916cd43dd8448eb211c80319c"
REMOTE_SPAN = "b7ad6b7169203331"
SAMPLED = f"00-{REMOTE_TRACE}-{REMOTE_SPAN}-01"
NOT_SAMPLED = f"00-{REMOTE_TRACE}-{REMOTE_SPAN}-00"

SEEN_AT_THEIR_END = "stripped debug"
"""Of spans in this build only ids and ends are seen: which roots are open, or were dropped, is not told."""
MATRIX = [
    *((profile, how, "stop") for profile in ("release", "debug") for how in get_args(How)),
    ("stripped", "attach", "stop"),
    (SEEN_AT_THEIR_END, "run", "stop"),
    ("release", "run", "inline"),
    ("debug", "attach", "inline"),
    ("stripped", "attach", "inline"),
]


class Lab(Traced):
    """The lab, and what is known of its spans before they end."""

    seen_late = False

    def expect_dropped_roots(self, count: int) -> None:
        """Where ends are all that is seen, a root that was dropped looks like one that is still open."""
        super().expect_dropped_roots(0 if self.seen_late else count)

    def assert_below(self, root: ReceivedSpan, open_root: ReceivedSpan, server: ReceivedSpan) -> None:
        """A root that began while another was open is its child, or the server span's."""
        assert_child(root, server if self.seen_late else open_root)


@pytest.fixture(scope="module", params=MATRIX, ids="-".join)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab under ``--adopt active``; stripped is its release build."""
    profile, how, write = request.param
    executable = binary("lab", {"stripped": "release", SEEN_AT_THEIR_END: "debug"}.get(profile, profile))
    if profile.startswith("stripped"):
        bare = tmp_path_factory.mktemp("stripped") / "lab"
        subprocess.run(["strip", "-o", str(bare), str(executable)], check=True)
        executable = bare
    with Lab("lab", executable=executable, how=how, options=("--write", write)) as traced:
        traced.seen_late = profile == SEEN_AT_THEIR_END
        if traced.seen_late:
            traced.expect_said("what a request hands on to other tasks is not joined to it")
            traced.expect_said("requests out on connections that are used again have no parent")
        yield traced


@pytest.fixture(scope="module")
def flat() -> Iterator[Traced]:
    """The lab under ``--adopt server``."""
    says = [f"3 {ROOTS_UNSAMPLED}"]
    with Traced("lab", options=("--write", "stop", "--adopt", "server"), says=says) as traced:
        yield traced


def test_a_request_without_spans(lab: Lab) -> None:
    seen = lab.see("/none/{n}")
    assert seen.server.parent_span_id == ""
    assert not [span for span in manual_spans(lab.spans) if span.trace_id == seen.server.trace_id]


@pytest.mark.parametrize("path", ["nested", "in-span"])
def test_a_root_is_adopted_with_all_below_it(lab: Lab, path: str) -> None:
    seen = lab.see(f"/{path}/{{n}}", "root", "child", "grandchild")
    assert_child(seen.manual["root"], seen.server)
    assert_child(seen.manual["child"], seen.manual["root"])
    assert_child(seen.manual["grandchild"], seen.manual["child"])
    assert seen.manual["root"].attributes["scenario"] == path
    assert seen.manual["root"].kind == 1
    assert not seen.manual["root"].flags & IS_REMOTE


def test_roots_one_after_the_other(lab: Lab) -> None:
    seen = lab.see("/roots/{n}", "a", "b", "c")
    for root in seen.manual.values():
        assert_child(root, seen.server)


def test_roots_while_another_is_open(lab: Lab) -> None:
    seen = lab.see("/open-roots/{n}", "a", "b", "c")
    assert_child(seen.manual["a"], seen.server)
    lab.assert_below(seen.manual["b"], seen.manual["a"], seen.server)
    lab.assert_below(seen.manual["c"], seen.manual["a"], seen.server)


@pytest.mark.parametrize("path", ["open-roots", "join"])
def test_adopt_server_is_flat(flat: Traced, path: str) -> None:
    seen = flat.see(f"/{path}/{{n}}", "a", "b", "c")
    for root in seen.manual.values():
        assert_child(root, seen.server)


def test_ids_by_a_generator_of_the_services_own(flat: Traced) -> None:
    """Its trace ids give way as the SDK's random ones do; its span ids stay."""
    seen = flat.see("/own-ids/{n}", "root", "child")
    assert_child(seen.manual["root"], seen.server)
    assert_child(seen.manual["child"], seen.manual["root"])
    assert all(span.span_id.startswith("c0de") for span in seen.manual.values())


def test_ids_by_a_generator_of_the_services_own_in_each_build(lab: Lab) -> None:
    """Without symbols its functions are told by what calls them, where that is known."""
    # The layout is verified by the SDK's own.
    lab.see("/nested/{n}", "root", "child", "grandchild")
    seen = lab.see("/own-ids/{n}", "root", "child")
    assert_child(seen.manual["child"], seen.manual["root"])
    assert all(span.span_id.startswith("c0de") for span in seen.manual.values())
    if lab.seen_late:
        assert_left_alone(seen.manual["root"], lab.spans)
    else:
        assert_child(seen.manual["root"], seen.server)


def test_adopt_server_leaves_local_parents(flat: Traced) -> None:
    seen = flat.see("/nested/{n}", "root", "child", "grandchild")
    assert_child(seen.manual["root"], seen.server)
    assert_child(seen.manual["child"], seen.manual["root"])
    assert_child(seen.manual["grandchild"], seen.manual["child"])


def test_branches_of_join(lab: Lab) -> None:
    """The innermost span that is open: a branch ends while those that began under it go on."""
    for _ in range(10):
        seen = lab.see("/join/{n}", "a", "b", "c")
        spans = list(seen.manual.values())
        first = min(spans, key=lambda span: span.start_ns)
        assert_child(first, seen.server)
        for span in spans:
            lab.assert_below(span, innermost_open(span, spans) or seen.server, seen.server)


@pytest.mark.parametrize("path", ["drop", "end-at", "start-time", "outlives"])
def test_ways_to_end_and_to_start(lab: Lab, path: str) -> None:
    seen = lab.see(f"/{path}/{{n}}", "root")
    root = seen.manual["root"]
    assert_child(root, seen.server)
    if path == "end-at":
        assert root.end_ns > seen.server.end_ns + 500_000_000
    if path == "start-time":
        assert root.start_ns < seen.server.start_ns - 3_500 * 1_000_000_000
    if path == "outlives":
        assert root.end_ns > seen.server.end_ns + 200_000_000


def test_a_second_end_changes_nothing(lab: Lab) -> None:
    seen = lab.see("/end-twice/{n}", "a", "b", "c")
    assert_child(seen.manual["a"], seen.server)
    assert_child(seen.manual["b"], seen.server)
    lab.assert_below(seen.manual["c"], seen.manual["b"], seen.server)


def test_what_the_service_does_not_sample(lab: Lab) -> None:
    lab.expect_dropped_roots(1)
    seen = lab.see("/unsampled/{n}", "kept")
    assert_child(seen.manual["kept"], seen.server)


def test_a_provider_that_was_shut_down(lab: Lab) -> None:
    seen = lab.see("/shutdown/{n}", "kept")
    assert_child(seen.manual["kept"], seen.server)


def test_a_root_ended_in_another_task(lab: Lab) -> None:
    seen = lab.see("/ended-elsewhere/{n}", "root", "after")
    assert_child(seen.manual["root"], seen.server)
    assert_child(seen.manual["after"], seen.server)


def test_a_root_that_never_ends_goes_with_its_request(lab: Lab) -> None:
    """The next request of the same connection is handled by the same task."""
    with Connection(lab.address) as connection:
        lab.see("/never-ends/{n}", connection=connection)
        seen = lab.see("/roots/{n}", "a", "b", "c", connection=connection)
    for root in seen.manual.values():
        assert_child(root, seen.server)


def test_a_root_that_outlives_its_request_is_no_parent_for_the_next(lab: Lab) -> None:
    with Connection(lab.address) as connection:
        number = lab.next_number()
        assert connection.request("GET", f"/outlives/{number}").status == 200
        after = lab.see("/roots/{n}", "a", "b", "c", connection=connection)
    server, manual = lab.expect(number, f"/outlives/{number}", "root")
    assert manual["root"].end_ns > after.server.end_ns, "it was not open any more"
    assert_child(manual["root"], server)
    for root in after.manual.values():
        assert_child(root, after.server)


def test_a_local_parent_is_left(lab: Lab) -> None:
    seen = lab.see("/local-parent/{n}", "root", "child")
    assert_child(seen.manual["root"], seen.server)
    assert_child(seen.manual["child"], seen.manual["root"])


def test_a_remote_parent_that_is_the_server_spans_own(lab: Lab) -> None:
    seen = lab.see("/remote-parent/{n}", "server", "child", headers={"traceparent": SAMPLED})
    assert (seen.server.trace_id, seen.server.parent_span_id) == (REMOTE_TRACE, REMOTE_SPAN)
    manual = seen.manual["server"]
    assert_child(manual, seen.server)
    assert manual.kind == SERVER_KIND
    assert manual.flags & (HAS_IS_REMOTE | IS_REMOTE) == HAS_IS_REMOTE, hex(manual.flags)
    assert_child(seen.manual["child"], manual)


def test_a_root_where_a_remote_parent_could_have_been(lab: Lab) -> None:
    seen = lab.see("/remote-parent/{n}", "server", "child")
    assert_child(seen.manual["server"], seen.server)
    assert_child(seen.manual["child"], seen.manual["server"])


def test_a_root_in_a_request_with_a_remote_parent(lab: Lab) -> None:
    """The service does not look at the header, and gets the caller's trace all the same."""
    seen = lab.see("/nested/{n}", "root", "child", "grandchild", headers={"traceparent": SAMPLED})
    assert seen.server.trace_id == REMOTE_TRACE
    assert_child(seen.manual["root"], seen.server)
    assert_child(seen.manual["grandchild"], seen.manual["child"])


def test_a_status_and_an_event_are_kept(lab: Lab) -> None:
    seen = lab.see("/status/{n}", "root")
    root = seen.manual["root"]
    assert_child(root, seen.server)
    assert (root.status_code, root.status_message) == (ERROR, "on purpose")
    assert [event.attributes["request.number"] for event in root.events] == [seen.number]
    assert seen.server.status_code == 0


def test_a_panic_in_a_handler(lab: Lab) -> None:
    with Connection(lab.address) as connection:
        seen = lab.see("/panic/{n}", "root", status=500, connection=connection)
        assert_child(seen.manual["root"], seen.server)
        assert seen.server.attributes["error.type"] == "500"
        after = lab.see("/roots/{n}", "a", "b", "c", connection=connection)
    for root in after.manual.values():
        assert_child(root, after.server)


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("/panic-sampler/{n}", ["after"]),
        ("/panic-processor/{n}?on=start", ["root", "after"]),
        ("/panic-processor/{n}?on=end", ["root", "after"]),
    ],
)
def test_a_panic_inside_the_sdk(lab: Lab, target: str, names: list[str]) -> None:
    """It passes the frames of probed functions; the service goes on as without the agent."""
    with Connection(lab.address) as connection:
        for _ in range(3):
            lab.expect_dropped_roots(target == "/panic-sampler/{n}")
            seen = lab.see(target, *names, connection=connection)
            assert seen.response.body == b"caught"
            for root in seen.manual.values():
                assert_child(root, seen.server)
        after = lab.see("/nested/{n}", "root", "child", "grandchild", connection=connection)
    assert_child(after.manual["root"], after.server)


def test_what_belongs_to_no_request_is_left_alone(lab: Lab) -> None:
    """Roots begin every 50 ms, on the threads that handle requests."""

    def background(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
        return [span for span in spans if span.attributes.get("scenario") == "background"]

    before = len(background(lab.spans))
    load(lab.address, (lab.next_number() for _ in range(300)), 16, lambda n: f"/roots/{n}")
    spans = lab.receiver.wait_for(lambda spans: len(background(spans)) > before + 5)
    for root in background(spans):
        assert_left_alone(root, spans)


def test_many_requests_of_all_kinds_at_once(lab: Lab) -> None:
    """What is wrong would be found at the end (``Traced.finish``); here: nothing is missing."""
    paths = ["nested", "roots", "open-roots", "join", "drop", "end-twice", "in-span", "local-parent"]
    sizes = {"nested": 3, "roots": 3, "open-roots": 3, "join": 3, "drop": 1, "end-twice": 3, "in-span": 3}
    numbers = [lab.next_number() for _ in range(400)]
    path = {number: f"/{paths[number % len(paths)]}/{number}" for number in numbers}
    result = load(lab.address, numbers, 32, path.__getitem__)
    assert not result.failures
    wanted = sum(sizes.get(path[number].split("/")[1], 2) for number in numbers)
    sent = set(numbers)

    def of_these(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
        return [span for span in manual_spans(spans) if span.attributes.get("request.number") in sent]

    spans = lab.receiver.wait_for(
        lambda spans: (
            len(of_these(spans)) >= wanted
            and {span.attributes["url.path"] for span in server_spans(spans)} >= set(path.values())
        )
    )
    servers = {span.attributes["url.path"]: span for span in server_spans(spans)}
    for span in of_these(spans):
        assert span.trace_id == servers[path[span.attributes["request.number"]]].trace_id
        assert span.parent_span_id


def test_spans_in_progress_is_typed_private_and_empty_in_the_end(flat: Traced) -> None:
    folder = PINS / str(flat.pid)
    status = folder.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o700, 0)
    assert stat.S_IMODE((folder / "spans_in_progress").stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE(PINS.stat().st_mode) == 0o700

    numbers = [flat.next_number() for _ in range(200)]
    assert not load(flat.address, numbers, 16, lambda number: f"/roots/{number}").failures
    for number in numbers:
        flat.expect(number, f"/roots/{number}", "a", "b", "c")

    number = flat.next_number()
    with Connection(flat.address) as connection:
        connection.send(head("GET", f"/slow/{number}?ms=60000"))
        (slot,) = wait_for_slots(folder, lambda slots: len(slots) == 1 and slots[0]["depth"] == 2)
    # The client has gone, and with it the request, its task, and all of their spans.
    wait_for_slots(folder, lambda slots: not slots)
    server, manual = flat.expect(number, f"/slow/{number}", "root")
    assert_child(manual["root"], server)
    for frame, span, kind in ((slot["frames"][0], server, 1), (slot["frames"][1], manual["root"], 2)):
        assert frame["trace_id_high"] << 64 | frame["trace_id_low"] == int(span.trace_id, 16)
        assert (frame["span_id"], frame["flags"], frame["kind"]) == (int(span.span_id, 16), 1, kind)


def wait_for_slots(folder: Path, predicate: Any) -> list[dict[str, Any]]:
    """The claimed slots of a target, dumped by bpftool with their types, once the predicate holds."""
    deadline = time.monotonic() + 20
    while True:
        dump = subprocess.run(
            ["bpftool", "-j", "map", "dump", "pinned", str(folder / "spans_in_progress")],
            check=True,
            capture_output=True,
        )
        slots = [
            slot
            for bucket in json.loads(dump.stdout)
            if bucket["formatted"]["key"] < SharedPlace.STARTS  # behind the stacks is something else
            for slot in bucket["formatted"]["value"]["slots"]
            if slot["key"]
        ]
        if predicate(slots):
            return slots
        assert time.monotonic() < deadline, slots


# Sampling


def test_a_request_that_its_caller_did_not_sample_adopts_nothing(flat: Traced) -> None:
    number = flat.next_number()
    with Connection(flat.address) as connection:
        path = f"/roots/{number}"
        assert connection.request("GET", path, {"traceparent": NOT_SAMPLED}).status == 200
        roots = flat.expect_manual_only(number, path, "a", "b", "c")
        after = flat.see("/nested/{n}", "root", "child", "grandchild", connection=connection)
    for root in roots.values():
        assert_left_alone(root, flat.spans)
        assert root.trace_id != REMOTE_TRACE
    assert_child(after.manual["root"], after.server)


@pytest.mark.parametrize("sampler", ["always_off", "parentbased_always_off"])
def test_a_sampler_that_is_off(sampler: str) -> None:
    parent_based = sampler.startswith("parentbased")
    number_left = 1 if parent_based else 2
    says = [f"{number_left} {ROOTS_UNSAMPLED}"]
    # By attach: in run the variable would be for the service as well.
    with Traced("lab", how="attach", agent_environ={"OTEL_TRACES_SAMPLER": sampler}, says=says) as lab:
        number = lab.next_number()
        with Connection(lab.address) as connection:
            assert connection.request("GET", f"/drop/{number}").status == 200
            roots = lab.expect_manual_only(number, f"/drop/{number}", "root")
            assert_left_alone(roots["root"], lab.spans)
            if parent_based:
                seen = lab.see("/drop/{n}", "root", headers={"traceparent": SAMPLED}, connection=connection)
                assert_child(seen.manual["root"], seen.server)
                assert seen.server.trace_id == REMOTE_TRACE
                return
            number = lab.next_number()
            headers = {"traceparent": SAMPLED}
            assert connection.request("GET", f"/drop/{number}", headers).status == 200
            roots = lab.expect_manual_only(number, f"/drop/{number}", "root")
            assert_left_alone(roots["root"], lab.spans)


# --write off


@pytest.fixture(scope="module")
def unwritten() -> Iterator[Traced]:
    with Traced("lab", options=("--write", "off")) as traced:
        yield traced


@pytest.mark.parametrize(
    ("path", "names", "roots"),
    [
        ("none", [], []),
        ("nested", ["root", "child", "grandchild"], ["root"]),
        ("roots", ["a", "b", "c"], ["a", "b", "c"]),
        ("open-roots", ["a", "b", "c"], ["a", "b", "c"]),
        ("join", ["a", "b", "c"], ["a", "b", "c"]),
        ("drop", ["root"], ["root"]),
        ("unsampled", ["kept"], ["kept"]),
        ("shutdown", ["kept"], ["kept"]),
        ("outlives", ["root"], ["root"]),
        ("local-parent", ["root", "child"], ["root"]),
        ("panic-sampler", ["after"], ["after"]),
        ("sync-blocking", ["root"], ["root"]),
    ],
)
def test_write_off_links(unwritten: Traced, path: str, names: list[str], roots: list[str]) -> None:
    """The service's spans are as they would be alone; the server span links to just its own roots."""
    unwritten.expect_dropped_roots(path in ("unsampled", "panic-sampler"))
    seen = unwritten.see(f"/{path}/{{n}}", *names)
    for name in roots:
        assert_left_alone(seen.manual[name], unwritten.spans)
    linked = {(link.trace_id, link.span_id) for link in seen.server.links}
    assert linked == {(seen.manual[name].trace_id, seen.manual[name].span_id) for name in roots}
    assert len(seen.server.links) == len(roots)
    for span in manual_spans(unwritten.spans):
        assert not span.links


def test_write_off_leaves_a_remote_parent(unwritten: Traced) -> None:
    seen = unwritten.see("/remote-parent/{n}", "server", "child", headers={"traceparent": SAMPLED})
    manual = seen.manual["server"]
    assert (manual.trace_id, manual.parent_span_id) == (REMOTE_TRACE, REMOTE_SPAN)
    assert manual.flags & IS_REMOTE
    assert (seen.server.trace_id, seen.server.parent_span_id) == (REMOTE_TRACE, REMOTE_SPAN)
    assert seen.server.links == ()


# Other threads, other exporters


@pytest.mark.parametrize("arguments", [["--current-thread"], ["--simple"]], ids=" ".join)
def test_lab_in_other_shapes(arguments: list[str]) -> None:
    """--simple exports while the span ends; its requests out are not the service's requests."""
    with Traced("lab", *arguments) as lab:
        for path in ("nested", "in-span"):
            seen = lab.see(f"/{path}/{{n}}", "root", "child", "grandchild")
            assert_child(seen.manual["root"], seen.server)
            assert_child(seen.manual["child"], seen.manual["root"])
            assert_child(seen.manual["grandchild"], seen.manual["child"])
        seen = lab.see("/ended-elsewhere/{n}", "root", "after")
        for root in seen.manual.values():
            assert_child(root, seen.server)
        seen = lab.see("/sync-blocking/{n}", "root")
        assert_child(seen.manual["root"], seen.server)
        numbers = [lab.next_number() for _ in range(60)]
        assert not load(lab.address, numbers, 8, lambda number: f"/open-roots/{number}").failures
        for number in numbers:
            server, manual = lab.expect(number, f"/open-roots/{number}", "a", "b", "c")
            assert_child(manual["a"], server)
            assert_child(manual["b"], manual["a"])
            assert_child(manual["c"], manual["a"])
        lab.finish()
        paths = {span.attributes["url.path"].split("/")[1] for span in server_spans(lab.spans)}
        assert paths == {"nested", "in-span", "ended-elsewhere", "sync-blocking", "open-roots"}
