"""Agents come, go and die while requests are under way: the service must not notice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.agent import attach, run
from tests.support.client import get
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.remains import (
    PINS,
    KernelObjects,
    assert_untouched,
    probed,
    thread_ids,
    tracer_processes,
    tracers_of_threads,
    wait_until,
)
from tests.support.services import PATIENCE, Service, binary
from tests.support.steady import USERS, Request, SteadyLoad
from tests.support.traces import manual_spans, server_spans, wrong

pytestmark = pytest.mark.root

NESTED = Request("/nested/{n}")
SOCKETS = Request("/n/{n}")
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_BSP_MAX_QUEUE_SIZE": "200000"}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A service under load, with the receiver of its own spans."""

    service: Service
    load: SteadyLoad
    receiver: OtlpReceiver

    @property
    def executable(self) -> Path:
        return self.service.executable

    def assert_unharmed(self) -> None:
        """Every request was answered, and the service ends as it would have."""
        self.load.stop()
        assert self.load.failures == []
        assert self.service.stop() == 0, self.service.output.text


@contextlib.contextmanager
def loaded(
    name: str, request: Request, arguments: Sequence[str] = (), profile: str = "release"
) -> Iterator[Loaded]:
    """One of the services, busy."""
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(OtlpReceiver())
        if name == "users":
            arguments = ["--store", stack.enter_context(Service(binary("store", profile))).url]
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint, **SOON}
        service = stack.enter_context(Service(binary(name, profile), arguments, environ))
        load = stack.enter_context(SteadyLoad(service.address, request))
        yield Loaded(service, load, receiver)


def paths_in(export: Path) -> set[str]:
    """``url.path`` of all spans in a file of OTLP/JSON lines, of which the last may be half written."""
    lines = export.read_text().split("\n")[:-1] if export.exists() else []
    return {
        attribute["value"]["stringValue"]
        for line in lines
        for resource in json.loads(line)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
        for attribute in span["attributes"]
        if attribute["key"] == "url.path"
    }


@pytest.mark.slow
@pytest.mark.parametrize(("name", "request_"), [("users", USERS), ("lab", NESTED)])
def test_attach_and_detach_twenty_times(name: str, request_: Request, tmp_path: Path) -> None:
    with loaded(name, request_) as it:
        pid = it.service.pid
        every: set[tuple[str, int]] = set()
        for turn in range(20):
            export = tmp_path / f"{turn}.jsonl"
            with attach(pid, export=export) as agent:
                objects = KernelObjects.of(agent.process.pid)
                assert {kind for kind, _ in objects.ids} == {"prog", "map", "link"}
                assert (PINS / str(pid) / "spans_in_progress").exists()
                assert probed(pid, it.executable) > 0
                it.load.wait_for_more(50)
                assert agent.stop((signal.SIGTERM, signal.SIGINT)[turn % 2]) == 0
                assert "spanweld: detached" in agent.messages.join()
            assert paths_in(export)
            assert_untouched(pid, it.executable, objects)
            every |= objects.ids
        it.load.wait_for_more(50)
        it.assert_unharmed()
        assert KernelObjects(frozenset(every)).alive() == set()
        # Each turn adopted: otherwise all of this would be easy.
        assert len([span for span in manual_spans(it.receiver.spans) if span.parent_span_id]) > 200


def test_agents_one_after_the_other_join_alike() -> None:
    """From the ready line to the signal every request is traced and every root adopted."""
    with loaded("users", USERS) as it:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": it.receiver.http_endpoint, **SOON}
        due: set[int] = set()
        said: list[str] = []
        for _ in range(2):
            with attach(it.service.pid, "--export", "otlp", environ=environ) as agent:
                first = it.load.next_number
                it.load.wait_for_more(100)
                due |= {number for number in it.load.answered if number >= first}
                assert agent.stop() == 0
                said.append(agent.messages.join())
        it.assert_unharmed()
        spans = it.receiver.spans
    assert not wrong(spans)
    servers = {(span.trace_id, span.span_id) for span in server_spans(spans)}
    roots = [span for span in manual_spans(spans) if span.name == "process_business_logic"]
    joined = {
        span.attributes["request.number"] for span in roots if (span.trace_id, span.parent_span_id) in servers
    }
    assert len(due) >= 150
    assert not due - joined, said


@pytest.mark.parametrize("write", ["stop", "off"])
@pytest.mark.parametrize(("name", "request_"), [("users", USERS), ("sockets", SOCKETS)])
def test_agent_killed(name: str, request_: Request, write: str, tmp_path: Path) -> None:
    with loaded(name, request_) as it:
        pid = it.service.pid
        # Before `interruptions`, whose own connection has a thread that ends with it.
        it.load.wait_for_more(50)
        threads = thread_ids(pid)
        interrupted = interruptions(it.service)
        objects: list[KernelObjects] = []
        for turn in range(3):
            with attach(pid, "--write", write, export=tmp_path / f"{turn}.jsonl") as agent:
                objects.append(KernelObjects.of(agent.process.pid))
                it.load.wait_for_more(50)
                assert bool(tracer_processes(pid)) == (write == "stop")
                agent.process.kill()
                agent.process.wait()
            wait_until(lambda: not tracer_processes(pid), "the tracer has followed the agent", 5)
            assert tracers_of_threads(pid) == set()
            it.load.wait_for_more(200)
            wait_until(lambda: probed(pid, it.executable) == 0, "the probes are gone")
            wait_until(lambda: not (PINS / str(pid)).exists(), "the keeper has taken the maps away")
        # Threads that serve a connection, or that tokio keeps, live as long as it does.
        assert threads <= thread_ids(pid)
        assert interruptions(it.service) == interrupted
        with attach(pid, "--write", write, export=tmp_path / "last.jsonl") as agent:
            it.load.wait_for_more(50)
            last = KernelObjects.of(agent.process.pid)
            assert agent.stop() == 0
        assert paths_in(tmp_path / "last.jsonl")
        for each in (*objects, last):
            assert_untouched(pid, it.executable, each)
        it.assert_unharmed()


@pytest.mark.parametrize(
    ("name", "request_", "arguments"),
    [("users", USERS, ()), ("sockets", SOCKETS, ()), ("sockets", SOCKETS, ("--mode", "epoll"))],
)
def test_tracer_killed(name: str, request_: Request, arguments: Sequence[str], tmp_path: Path) -> None:
    export = tmp_path / "spans.jsonl"
    with loaded(name, request_, arguments) as it:
        pid = it.service.pid
        interrupted = interruptions(it.service)
        for turn in range(3):
            with attach(pid, "--write", "stop", export=export) as agent:
                objects = KernelObjects.of(agent.process.pid)
                it.load.wait_for_more(50)
                (tracer,) = tracer_processes(pid)
                os.kill(tracer, signal.SIGKILL)
                said = agent.messages.wait_for("the tracer has ended")
                assert f"pid {pid}: " in said
                assert "automatic spans go on" in said
                it.load.wait_for_more(100)
                wait_until(lambda: probed(pid, it.executable) == 0, "the probes are gone")
                after = f"/healthz?turn={turn}" if name == "users" else f"/n/{10**9 + turn}"
                assert get(it.service.address, after).status == 200
                path = after.partition("?")[0]
                wait_until(lambda path=path: path in paths_in(export), "automatic spans go on")  # type: ignore[misc]
                assert agent.stop() == 0
            export.unlink()
            assert_untouched(pid, it.executable, objects)
        assert interruptions(it.service) == interrupted
        it.assert_unharmed()


def test_tracer_killed_in_run(tmp_path: Path) -> None:
    """The service is the agent's child, and its exit code must still come through."""
    export = tmp_path / "spans.jsonl"
    with run([str(binary("sockets", "release"))], "--write", "stop", export=export) as agent:
        with SteadyLoad(agent.service_address, SOCKETS) as load:
            load.wait_for_more(50)
            (tracer,) = tracer_processes(agent.service_pid)
            os.kill(tracer, signal.SIGKILL)
            agent.messages.wait_for("the tracer has ended")
            load.wait_for_more(100)
            load.stop()
            assert load.failures == []
        assert agent.stop() == 0


@pytest.mark.parametrize("write", ["stop", "off"])
def test_agent_killed_in_run(write: str) -> None:
    """The service has lost its parent, and goes on."""
    with run([str(binary("sockets", "release"))], "--write", write, "--export", "json:/dev/null") as agent:
        pid, address = agent.service_pid, agent.service_address
        pidfd = os.pidfd_open(pid)
        try:
            with SteadyLoad(address, SOCKETS) as load:
                load.wait_for_more(50)
                agent.process.kill()
                agent.process.wait()
                load.wait_for_more(200)
                wait_until(lambda: not tracer_processes(pid), "the tracer has followed the agent", 5)
                load.stop()
                assert load.failures == []
            with attach(pid, "--write", write, "--export", "json:/dev/null") as second:
                assert second.stop() == 0
            assert not (PINS / str(pid)).exists()
        finally:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            os.close(pidfd)


def test_attach_and_detach_interrupt_no_system_call(tmp_path: Path) -> None:
    for mode in ("thread", "epoll"):
        with loaded("sockets", SOCKETS, ("--mode", mode)) as it:
            before = interruptions(it.service)
            for turn in range(5):
                with attach(it.service.pid, export=tmp_path / f"{turn}.jsonl") as agent:
                    it.load.wait_for_more(50)
                    assert agent.stop() == 0
            assert interruptions(it.service) == before
            it.assert_unharmed()


def interruptions(service: Service) -> int:
    """How many system calls of ``sockets`` failed with EINTR until now; 0 for other services."""
    if service.executable.name != "sockets":
        return 0
    return int(get(service.address, "/interrupted").body)


def test_service_that_ends_while_it_is_traced(tmp_path: Path) -> None:
    with loaded("users", USERS) as it, attach(it.service.pid, export=tmp_path / "spans.jsonl") as agent:
        objects = KernelObjects.of(agent.process.pid)
        it.load.wait_for_more(50)
        it.assert_unharmed()
        assert agent.process.wait(10) == 0
        assert "spanweld: the service has ended" in agent.messages.join()
        wait_until(lambda: not objects.alive(), "the agent's BPF objects are gone")
        assert not (PINS / str(it.service.pid)).exists()


def test_service_that_is_killed_while_it_is_traced(tmp_path: Path) -> None:
    with Service(binary("lab", "release")) as service:
        with attach(service.pid, export=tmp_path / "spans.jsonl") as agent:
            assert get(service.address, "/nested/1").status == 200
            service.process.kill()
            assert agent.process.wait(10) == 0
            assert "spanweld: the service has ended" in agent.messages.join()
        assert "/nested/1" in paths_in(tmp_path / "spans.jsonl")
        assert not (PINS / str(service.pid)).exists()
        assert not tracer_processes(service.pid)


def test_several_services_at_once(tmp_path: Path) -> None:
    """One agent for both; the first one's end is not the other's."""
    export = tmp_path / "spans.jsonl"
    with Service(binary("minimal", "release")) as first, Service(binary("lab", "release")) as second:
        with attach(first.pid, "--pid", str(second.pid), export=export) as agent:
            agent.messages.wait_for(f"ready (pid {second.pid}")
            assert get(first.address, "/first").status == 200
            assert first.stop() == 0
            wait_until(lambda: not (PINS / str(first.pid)).exists(), "the first one is let go")
            assert get(second.address, "/nested/2").status == 200
            assert agent.stop() == 0
        assert paths_in(export) >= {"/first", "/nested/2"}
        assert not (PINS / str(second.pid)).exists()


@pytest.mark.parametrize(
    ("options", "policy"), [((), os.SCHED_IDLE), (("--priority", "normal"), os.SCHED_OTHER)]
)
def test_the_agent_alone_gives_way(options: Sequence[str], policy: int) -> None:
    """Not the service that it has started, and not those that stop threads or let go of probes for it."""
    command = [str(binary("lab", "release"))]
    with run(command, *options, "--write", "stop", "--export", "json:/dev/null") as agent:
        pid = agent.process.pid
        assert get(agent.service_address, "/nested/1").status == 200
        wait_until(lambda: os.sched_getscheduler(pid) == policy, "it follows its target", 5)
        assert os.sched_getscheduler(agent.service_pid) == os.SCHED_OTHER
        children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        assert len(children) == 3  # the service, the tracer, the keeper
        assert os.SCHED_IDLE not in [os.sched_getscheduler(child) for child in children]
        assert agent.stop() == 0


def test_an_agent_that_gets_no_time_ends_soon() -> None:
    """All processors are taken, by more than one each, and it has more to do than it could with one."""
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(Service(binary("lab", "release")))
        agent = stack.enter_context(attach(service.pid, "--export", "json:/dev/null"))
        assert get(service.address, "/many/1?spans=1").status == 200
        for _ in range(2 * (os.cpu_count() or 1)):
            spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(spinning.wait)
            stack.callback(spinning.kill)
        subprocess.run(
            ["wrk", "-t1", "-c32", "-d3", f"{service.url}/many/1?spans=1"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        began = time.monotonic()
        assert agent.stop() == 0
        assert time.monotonic() - began < 10 * PATIENCE


def test_agents_that_come_and_go_at_the_same_time() -> None:
    """Each tidies up what others left: never what another one is just making."""
    with contextlib.ExitStack() as stack:
        services = [stack.enter_context(Service(binary("minimal", "release"))) for _ in range(4)]
        pool = stack.enter_context(ThreadPoolExecutor(len(services)))

        def turn(service: Service) -> str:
            with attach(service.pid, "--export", "json:/dev/null") as agent:
                there = (PINS / str(service.pid) / "spans_in_progress").exists()
                assert get(service.address, "/").status == 200
                code = agent.stop()
            return "" if there and code == 0 else agent.messages.join()

        for _ in range(3):
            assert list(pool.map(turn, services)) == [""] * len(services)
        assert not [service.pid for service in services if (PINS / str(service.pid)).exists()]
