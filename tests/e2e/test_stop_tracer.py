"""The stop writer's tracer: to the target all must be as if nobody traced it, but for what was asked."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spanweld.errors import TargetError
from spanweld.model import Pid
from spanweld.process.threads import threads
from spanweld.writers.stop import StopTracer, TracerEvent
from tests.e2e import stop_harness
from tests.e2e.stop_harness import (
    ASK_BAD_ADDRESS,
    ASK_RETURN,
    ASK_WITHOUT_SIGNAL,
    ASK_WRITES,
    FUNCTIONS,
    Built,
    Probe,
    Target,
    Traced,
    running,
    tgkill,
    traced,
    tracer_pid,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="loading BPF programs needs root"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return stop_harness.build(tmp_path_factory.mktemp("stop"))


def wait_until(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def serving_tids(target: Target) -> list[int]:
    return [int(t.tid) for t in threads(target.pid) if int(t.tid) != int(target.pid)]


def end(traced: Traced) -> tuple[dict[str, int], dict[str, int]]:
    """Detach as the agent does; check that every count agrees; return the target's and the tracer's."""
    traced.probe.detach()
    counts = traced.tracer.stop()
    assert counts is not None
    assert tracer_pid(traced.target.pid) == 0
    asked = traced.probe.counts()["asked"]
    report = dict(traced.target.quit())
    assert (report["wrong"], report["half"], report["harmed"]) == (0, 0, 0)
    assert traced.probe.pending() == 0
    assert counts.requests == asked
    assert counts.requests == counts.served + counts.stale + counts.failed + counts.refused
    return report, {name: getattr(counts, name) for name in counts.__slots__}


def wait_served(target: Target, more: int = 2000) -> None:
    """Until that many requests more were carried out."""
    goal = target.report()["served"] + more
    target.wait_for(lambda c: c["served"] >= goal)


# What is asked


@pytest.mark.parametrize("flags", [ASK_RETURN, ASK_WRITES, ASK_RETURN | ASK_WRITES])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_first_instruction(built: Built, function: str, flags: int) -> None:
    options = [f"--function={FUNCTIONS.index(function)}", f"--flags={flags}", "--threads=2"]
    with traced(built, *options, functions=[function]) as t:
        wait_served(t.target)
        report, counts = end(t)
    assert counts["served"] == counts["requests"] == report["served"]
    assert counts["stale"] == counts["failed"] == counts["refused"] == counts["signals"] == 0


def test_eight_threads(built: Built) -> None:
    with traced(built, "--threads=8") as t:
        wait_served(t.target, 20000)
        report, counts = end(t)
    assert counts["served"] == counts["requests"] == report["served"]
    assert counts["threads"] == 9


def test_address_that_cannot_be_written(built: Built) -> None:
    with traced(built, f"--flags={ASK_RETURN | ASK_WRITES | ASK_BAD_ADDRESS}", "--threads=2") as t:
        wait_until(lambda: t.probe.counts()["asked"] > 100)
        notes = [m for m in t.tracer.poll() if m.event is TracerEvent.NOTE]
        report, counts = end(t)
    assert report["served"] == 0
    assert counts["failed"] == counts["requests"]
    assert len(notes) == 1
    assert "could not be carried out" in notes[0].text


def test_thread_that_moved_on_is_left_alone(built: Built) -> None:
    """A request whose signal was forgotten is found at another signal's stop, wherever that is."""
    flags = ASK_RETURN | ASK_WRITES | ASK_WITHOUT_SIGNAL
    with traced(
        built, f"--flags={flags}", "--interval=100", "--handle-urg", "--handle-rt", "--threads=1"
    ) as t:
        (tid,) = serving_tids(t.target)
        for number in range(1, 101):
            wait_until(lambda: t.probe.pending() == 1)
            tgkill(t.target.pid, tid, signal.Signals(signal.SIGRTMIN))
            t.target.wait_for(lambda c, n=number: c["rt"] == n)  # type: ignore[misc]
        t.probe.detach()
        counts = t.tracer.stop()
        report = t.target.quit()
    assert counts is not None
    assert counts.stale == counts.requests > 0
    assert counts.served == 0
    assert (report["served"], report["half"], report["wrong"], report["urg"]) == (0, 0, 0, 0)


def test_thread_that_blocks_sigurg_is_not_asked(built: Built) -> None:
    with traced(built, "--blocking-thread") as t:
        wait_until(lambda: t.probe.counts()["blocked"] > 1000)
        for thread in threads(t.target.pid):
            status = Path(f"/proc/{t.target.pid}/task/{thread.tid}/status").read_text()
            assert "SigPnd:\t0000000000000000" in status
        report, counts = end(t)
    assert (report["served"], counts["requests"]) == (0, 0)


# Signals: none lost, none invented


def test_genuine_sigurg_is_counted_exactly(built: Built) -> None:
    with traced(built, "--handle-urg", "--threads=4") as t:
        for number in range(1, 2001):
            os.kill(t.target.pid, signal.SIGURG)
            t.target.wait_for(lambda c, n=number: c["urg"] >= n)  # type: ignore[misc]
        report, counts = end(t)
    assert report["urg"] == counts["signals"] == 2000
    assert counts["served"] > 2000


def test_sigurg_sent_to_a_thread_that_is_asked(built: Built) -> None:
    """The kernel makes one of it and of ours, if ours is pending: it must be delivered still."""
    with traced(built, "--handle-urg", "--threads=4") as t:
        tids = serving_tids(t.target)
        for number in range(1, 2001):
            tgkill(t.target.pid, tids[number % 4], signal.SIGURG)
            t.target.wait_for(lambda c, n=number: c["urg"] >= n)  # type: ignore[misc]
        report, counts = end(t)
    assert report["urg"] == counts["signals"] == 2000
    assert counts["coalesced"] > 0


def test_no_sigurg_without_a_genuine_one(built: Built) -> None:
    with traced(built, "--handle-urg", "--threads=4") as t:
        wait_served(t.target, 20000)
        report, _ = end(t)
    assert report["urg"] == 0


@pytest.mark.parametrize("blocked", [0, 1], ids=["sigurg-open", "sigurg-blocked-by-handler"])
def test_sigterm_at_the_same_time(built: Built, blocked: int) -> None:
    """It has the lower number, so its stop comes first; its handler calls probed functions itself."""
    with traced(built, "--handle-urg", f"--handle-term={blocked}", "--threads=4") as t:
        tids = serving_tids(t.target)
        for number in range(1, 3001):
            tgkill(t.target.pid, tids[number % 4], signal.SIGTERM)
            t.target.wait_for(lambda c, n=number: c["term"] >= n)  # type: ignore[misc]
        report, counts = end(t)
    assert report["term"] == counts["signals"] == 3000
    assert report["urg"] == 0
    assert report["served"] == counts["served"]
    assert counts["stale"] == 0
    assert counts["early"] > 0


def test_flood_of_queued_signals(built: Built) -> None:
    with traced(built, "--handle-rt", "--handle-urg", "--threads=4") as t:
        expected = flood(t.target, 20000)
        report, counts = end(t)
    assert (report["rt"], report["rt_sum"]) == expected
    assert counts["signals"] == 20000
    assert report["urg"] == 0


def flood(target: Target, number: int) -> tuple[int, int]:
    """Queue that many; wait until all have come. Returns their number and the sum of their values."""
    for value in range(number):
        while not stop_harness.sigqueue(target.pid, signal.SIGRTMIN, value):
            time.sleep(0.001)
    target.wait_for(lambda c: c["rt"] >= number)
    return number, number * (number - 1) // 2


@pytest.mark.parametrize("stop", [signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN])
def test_group_stop(built: Built, stop: signal.Signals) -> None:
    """SIGTSTP is what Ctrl-Z sends. The real parent must see stop and continuation as ever."""
    with traced(built, "--handle-cont", "--threads=4") as t:
        for number in range(1, 51):
            os.kill(t.target.pid, stop)
            info = os.waitid(os.P_PID, t.target.pid, os.WSTOPPED)
            assert info is not None
            assert (info.si_code, info.si_status) == (os.CLD_STOPPED, stop)
            before = cpu_ticks(t.target.pid)
            if number % 10 == 0:
                time.sleep(0.05)  # more than the ticks that a running thread would use
                assert cpu_ticks(t.target.pid) - before <= 1
            os.kill(t.target.pid, signal.SIGCONT)
            info = os.waitid(os.P_PID, t.target.pid, os.WCONTINUED)
            assert info is not None
            t.target.wait_for(lambda c, n=number: c["continued"] == n)  # type: ignore[misc]
        wait_served(t.target)
        report, _ = end(t)
    assert report["continued"] == 50


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_tracer_that_leaves_a_stopped_target_leaves_it_stopped(built: Built) -> None:
    with traced(built, "--threads=2") as t:
        os.kill(t.target.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, t.target.pid, os.WSTOPPED)
        t.probe.detach()
        t.tracer.stop()
        before = cpu_ticks(t.target.pid)
        time.sleep(0.05)
        assert cpu_ticks(t.target.pid) - before <= 1
        os.kill(t.target.pid, signal.SIGCONT)
        report = t.target.quit()
        assert (report["wrong"], report["half"]) == (0, 0)


# Threads and processes


def test_new_threads_are_followed(built: Built) -> None:
    with traced(built, "--churn", "--churn", "--churn") as t:
        t.target.wait_for(lambda c: c["created"] > 2000)
        report, counts = end(t)
    assert counts["threads"] > 2000
    assert counts["served"] == report["served"] > 10000


def test_threads_created_while_the_tracer_seizes(built: Built) -> None:
    """Afterwards every thread is traced: whoever is not would be counted by the program."""
    for _ in range(10):
        with traced(built, "--churn", "--churn", "--churn", "--churn", functions=FUNCTIONS[:3]) as t:
            created = t.target.report()["created"]
            t.target.wait_for(lambda c, n=created: c["created"] > n + 50)  # type: ignore[misc]
            assert t.probe.counts()["untraced"] == 0
            end(t)


def test_children_are_not_followed(built: Built) -> None:
    # Of a probe on a five-byte nop, Linux 6.18 makes a call into a page that children do not get: they
    # crash, traced or not.
    with traced(built, "--fork", "--threads=2", functions=[f for f in FUNCTIONS if f != "at_nop5"]) as t:
        t.target.wait_for(lambda c: c["children"] > 300)
        report, counts = end(t)
    assert report["bad_children"] == 0
    assert counts["threads"] == 4


def test_exec_ends_the_adoption(built: Built) -> None:
    with traced(built, "--threads=4") as t:
        wait_served(t.target)
        t.target.command("exec")
        t.target.wait_ready()
        assert events_until_end(t.tracer) == [TracerEvent.EXEC, TracerEvent.COUNTS, TracerEvent.ENDED]
        assert tracer_pid(t.target.pid) == 0
        assert t.target.quit()["calls"] == 0


def test_first_exec_of_a_child_that_waits_for_it(built: Built) -> None:
    with running(built) as target, probe_of(built) as probe:
        tracer = StopTracer.start(
            target.pid, probe.map_fd("stop_requests"), expect_exec=True, tracer=built.tracer
        )
        assert tracer.wait_ready() == 1
        target.command("exec")
        target.wait_ready()
        assert tracer_pid(target.pid) == tracer.pid
        assert tracer.poll() == []
        target.command("exec")
        target.wait_ready()
        assert events_until_end(tracer)[0] is TracerEvent.EXEC
        tracer.close()
        target.quit()


def test_main_thread_that_has_ended(built: Built) -> None:
    """It stays as a zombie, which cannot be seized, while the others run on."""
    with running(built, "--threads=3") as target, probe_of(built) as probe:
        target.command("leave")
        wait_until(lambda: "Z" in Path(f"/proc/{target.pid}/stat").read_text().rpartition(")")[2])
        tracer = StopTracer.start(target.pid, probe.map_fd("stop_requests"), tracer=built.tracer)
        assert tracer.wait_ready() == 3
        probe.attach(tracer.pid)
        wait_until(lambda: probe.counts()["asked"] > 1000)
        target.close()
        assert TracerEvent.GONE in events_until_end(tracer)
        tracer.close()


@contextmanager
def probe_of(built: Built) -> Iterator[Probe]:
    probe = Probe(built)
    try:
        yield probe
    finally:
        probe.close()


def events_until_end(tracer: StopTracer) -> list[TracerEvent]:
    events: list[TracerEvent] = []
    while TracerEvent.ENDED not in events:
        assert select.select([tracer], [], [], 10)[0], "the tracer is silent"
        events += [message.event for message in tracer.poll()]
    return events


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_end_by_a_signal_reaches_the_real_parent(built: Built, number: signal.Signals) -> None:
    with traced(built, "--threads=4") as t:
        wait_served(t.target)
        os.kill(t.target.pid, number)
        assert t.target.wait() == -number
        assert events_until_end(t.tracer)[0] is TracerEvent.GONE
        assert t.probe.pending() == 0


# Ignored signals wake a traced thread


IGNORED = [signal.SIGCHLD, signal.SIGWINCH, signal.SIGURG, signal.SIGCONT]


def test_ignored_signals_interrupt_nothing(built: Built) -> None:
    """Without a tracer these do not even wake the thread; epoll_wait in the main thread gets them."""
    with traced(built) as t:
        for number in range(4000):
            os.kill(t.target.pid, IGNORED[number % 4])
            time.sleep(0.0002)  # for the thread to sleep again
        report, counts = end(t)
    assert report["eintr"] == 0
    assert counts["restarted"] > 500  # the test is one


def test_ignored_signals_interrupt_nothing_while_others_are_served(built: Built) -> None:
    """The signal that has woken the main thread is often taken by one that has just stopped."""
    with traced(built, "--interval=50", "--threads=4") as t:
        for number in range(4000):
            os.kill(t.target.pid, IGNORED[number % 4])
            time.sleep(0.0002)
        report, counts = end(t)
    assert report["eintr"] == 0
    assert counts["restarted"] > 500


@pytest.mark.parametrize("call", ["epoll_pwait", "recv", "sigwaitinfo", "nanosleep"])
def test_ignored_signals_in_other_calls(built: Built, call: str) -> None:
    with traced(built, "--sleepers") as t:
        wait_until(lambda: call in t.target.threads or t.target.report() is None)
        for number in range(1000):
            tgkill(t.target.pid, t.target.threads[call], IGNORED[number % 4])
            time.sleep(0.0002)
        report, counts = end(t)
    assert report["sleepers_eintr"] == 0
    assert counts["signals"] > 100


def test_handled_signal_still_interrupts(built: Built) -> None:
    """What waits for a handler to end its epoll_wait must not sleep on, whatever comes with it."""
    with traced(built, "--handle-urg") as t:
        for number in range(1, 1001):
            os.kill(t.target.pid, signal.SIGCHLD)
            os.kill(t.target.pid, signal.SIGURG)
            t.target.wait_for(lambda c, n=number: c["urg"] == n)  # type: ignore[misc]
        report, _ = end(t)
    assert report["eintr"] > 0


def test_attach_and_detach_interrupt_nothing(built: Built) -> None:
    with running(built, "--sleepers", "--threads=2") as target, probe_of(built) as probe:
        for _ in range(20):
            tracer = StopTracer.start(target.pid, probe.map_fd("stop_requests"), tracer=built.tracer)
            tracer.wait_ready()
            probe.attach(tracer.pid, FUNCTIONS[:3])
            served = target.report()["served"]
            target.wait_for(lambda c, n=served: c["served"] > n + 100)  # type: ignore[misc]
            probe.detach()
            assert tracer.stop() is not None
            tracer.close()
        report = target.quit()
    assert (report["eintr"], report["sleepers_eintr"], report["wrong"], report["harmed"]) == (0, 0, 0, 0)
    assert report["half"] == 0


# Other tracers, and sudden deaths


def test_other_tracer_is_given_way(built: Built) -> None:
    """It has one thread only, and not the first: the rest must not stay seized either."""
    with running(built, "--threads=3") as target, probe_of(built) as probe:
        tid = serving_tids(target)[-1]
        with subprocess.Popen([built.holder, str(tid)], stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            tracer = StopTracer.start(target.pid, probe.map_fd("stop_requests"), tracer=built.tracer)
            with pytest.raises(TargetError, match=rf"traced by process {holder.pid} \(holder\)") as raised:
                tracer.wait_ready()
            assert raised.value.remedy
            tracer.close()
            assert tracer_pid(target.pid) == 0
            holder.kill()
        report = target.quit()
        assert (report["wrong"], report["half"]) == (0, 0)


def test_target_that_is_gone(built: Built) -> None:
    with probe_of(built) as probe:
        tracer = StopTracer.start(Pid(2**22 + 1), probe.map_fd("stop_requests"), tracer=built.tracer)
        with pytest.raises(TargetError, match="ended before"):
            tracer.wait_ready()
        tracer.close()


def test_map_of_another_kind_is_refused(built: Built) -> None:
    with running(built) as target, probe_of(built) as probe:
        tracer = StopTracer.start(target.pid, probe.map_fd("tracer"), tracer=built.tracer)
        with pytest.raises(TargetError, match="is no map of requests"):
            tracer.wait_ready()
        tracer.close()


def test_tracer_killed_under_load(built: Built) -> None:
    """No signal of the target's may be lost with it, and the next tracer finds all as it was.

    What it was about to do is done up to some point: half of one request each time, never a part of
    writes that are adjacent.
    """
    with running(built, "--handle-rt", "--threads=4") as target, probe_of(built) as probe:
        for _ in range(20):
            tracer = StopTracer.start(target.pid, probe.map_fd("stop_requests"), tracer=built.tracer)
            tracer.wait_ready()
            probe.attach(tracer.pid, FUNCTIONS[:3])
            served, rt = (target.report()[name] for name in ("served", "rt"))
            for value in range(200):
                assert stop_harness.sigqueue(target.pid, signal.SIGRTMIN, value)
            target.wait_for(lambda c, n=served: c["served"] > n + 100)  # type: ignore[misc]
            tracer.kill()
            assert tracer_pid(target.pid) == 0
            probe.detach()
            target.wait_for(lambda c, n=rt: c["rt"] == n + 200)  # type: ignore[misc]
            assert events_until_end(tracer)[-1:] == [TracerEvent.ENDED]
            assert tracer.counts is None
            tracer.close()
        report = target.quit()
    assert (report["wrong"], report["harmed"]) == (0, 0)
    assert report["half"] <= 20
    assert report["rt_sum"] == 20 * 199 * 100


def test_signals_while_the_tracer_is_killed(built: Built) -> None:
    """Killed between its look at a stop and its answer: the kernel must still have the signal."""
    with running(built, "--handle-rt", "--threads=4") as target, probe_of(built) as probe:
        for _ in range(50):
            tracer = StopTracer.start(target.pid, probe.map_fd("stop_requests"), tracer=built.tracer)
            tracer.wait_ready()
            rt = target.report()["rt"]
            for value in range(300):
                assert stop_harness.sigqueue(target.pid, signal.SIGRTMIN, value)
                if value == 150:
                    tracer.kill()
            target.wait_for(lambda c, n=rt: c["rt"] == n + 300)  # type: ignore[misc]
            tracer.close()
        assert target.quit()["rt_sum"] == 50 * 299 * 150


AGENT = """
import sys, time
from pathlib import Path
from spanweld.model import Pid
from spanweld.writers.stop import StopTracer
from tests.e2e.stop_harness import Built, Probe
paths = [Path(p) for p in sys.argv[2:]]
built = Built(*paths)
probe = Probe(built)
tracer = StopTracer.start(Pid(int(sys.argv[1])), probe.map_fd("stop_requests"), tracer=built.tracer)
tracer.wait_ready()
probe.attach(tracer.pid)
print(tracer.pid, flush=True)
time.sleep(3600)
"""


def test_agent_killed_under_load(built: Built) -> None:
    paths = [str(p) for p in (built.tracer, built.target, built.probe, built.holder)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, f"{root}/src"])}
    with running(built, "--sleepers", "--threads=4") as target:
        for _ in range(3):
            command = [sys.executable, "-c", AGENT, str(target.pid), *paths]
            with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as agent:
                assert agent.stdout is not None
                tracer = int(agent.stdout.readline())
                wait_served(target)
                agent.kill()
                agent.wait()
                wait_until(lambda: tracer_pid(target.pid) == 0, timeout=1.0)
                wait_until(lambda pid=tracer: not Path(f"/proc/{pid}").exists(), timeout=5.0)  # type: ignore[misc]
        report = target.quit()
    assert (report["wrong"], report["harmed"], report["eintr"], report["sleepers_eintr"]) == (0, 0, 0, 0)


def test_tracer_is_in_a_session_of_its_own_and_holds_two_descriptors(built: Built) -> None:
    with running(built) as target, probe_of(built) as probe:
        tracer = StopTracer.start(target.pid, probe.map_fd("stop_requests"), tracer=built.tracer)
        tracer.wait_ready()
        assert os.getsid(tracer.pid) == tracer.pid
        links = {p.name: str(p.readlink()) for p in Path(f"/proc/{tracer.pid}/fd").iterdir()}
        assert set(links) == {"0", "1", "2", str(probe.map_fd("stop_requests"))}
        tracer.close()


def test_tracer_ends_when_the_target_does(built: Built) -> None:
    with traced(built, "--threads=2") as t:
        wait_served(t.target)
        t.target.quit()
        assert events_until_end(t.tracer) == [TracerEvent.GONE, TracerEvent.COUNTS, TracerEvent.ENDED]
