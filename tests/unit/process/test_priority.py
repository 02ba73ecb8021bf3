"""What other processes leave of the processors, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from spanweld.process import priority
from spanweld.process.priority import SparePriority, StarvationWatch


def policy() -> int:
    return os.sched_getscheduler(0)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    assert policy() == os.SCHED_OTHER


def test_all_threads_give_way_and_no_more_at_the_end() -> None:
    seen: list[int] = []
    go_on, started = threading.Event(), threading.Event()

    def older() -> None:
        started.set()
        go_on.wait()
        seen.append(policy())

    thread = threading.Thread(target=older)
    thread.start()
    started.wait()
    with SparePriority() as spare:
        assert policy() == os.SCHED_OTHER
        spare.pass_ends(in_a_hurry=False)
        assert policy() == os.SCHED_IDLE
        assert os.sched_getscheduler(thread.native_id or 0) == os.SCHED_IDLE
        younger = threading.Thread(target=lambda: seen.append(policy()))
        younger.start()
        younger.join()
    assert policy() == os.SCHED_OTHER
    go_on.set()
    thread.join()
    assert seen == [os.SCHED_IDLE, os.SCHED_OTHER]


def test_nobody_gives_way_in_a_hurry_or_where_it_is_not_wanted() -> None:
    with SparePriority() as spare:
        spare.pass_ends(in_a_hurry=True)
        assert policy() == os.SCHED_OTHER
        spare.pass_ends(in_a_hurry=False)
        assert policy() == os.SCHED_IDLE
        spare.pass_ends(in_a_hurry=True)
        assert policy() == os.SCHED_OTHER
    with SparePriority(wanted=False) as spare:
        spare.pass_ends(in_a_hurry=False)
        assert policy() == os.SCHED_OTHER


def test_another_policy_is_kept() -> None:
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        with SparePriority() as spare:
            spare.pass_ends(in_a_hurry=False)
            assert policy() == os.SCHED_BATCH
        assert policy() == os.SCHED_BATCH
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def test_it_ends_with_an_error_too() -> None:
    def fail() -> None:
        with SparePriority() as spare:
            spare.pass_ends(in_a_hurry=False)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()


@pytest.fixture
def start() -> Iterator[Callable[[str, int], int]]:
    """Starts a program of Python with a policy, on the first processor; returns its process id."""
    started: list[subprocess.Popen[str]] = []
    processor = min(os.sched_getaffinity(0))

    def start(code: str, policy: int) -> int:
        text = f"import os, time; os.sched_setaffinity(0, [{processor}]); "
        text += f"os.sched_setscheduler(0, {policy}, os.sched_param(0)); print(flush=True); {code}"
        process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


def look_until_normal(pid: int, times: int) -> bool:
    watch = StarvationWatch(pid)
    for _ in range(times):
        time.sleep(priority.LOOKS_EACH)
        watch.look()
        if os.sched_getscheduler(pid) == os.SCHED_OTHER:
            return True
    return False


def test_who_gives_way_to_many_gets_its_turn_in_the_end(start: Callable[[str, int], int]) -> None:
    for _ in range(2):
        start("exec('while True: pass')", os.SCHED_OTHER)
    assert look_until_normal(start("exec('while True: pass')", os.SCHED_IDLE), 20)


def test_who_has_nothing_to_do_does_not_wait(start: Callable[[str, int], int]) -> None:
    start("exec('while True: pass')", os.SCHED_OTHER)
    assert not look_until_normal(start("time.sleep(60)", os.SCHED_IDLE), 5)


def test_who_has_ended_does_not_wait() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    watch = StarvationWatch(process.pid)
    watch.look()
    watch.look()
