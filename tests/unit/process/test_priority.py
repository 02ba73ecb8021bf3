"""What other processes leave of the processors, and how it ends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from spanweld.process import priority
from spanweld.process.priority import SparePriority


def policy() -> int:
    return os.sched_getscheduler(0)


def make_pass(spare: SparePriority, *, waits: float = 0.0, late: float = 0.0, hurry: bool = False) -> None:
    spare.pass_begins(time.monotonic() - late)
    time.sleep(waits)
    spare.pass_ends(in_a_hurry=hurry)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(priority, "PATIENCE", 0.1)
    monkeypatch.setattr(priority, "CATCHES_UP", 0.2)
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
        make_pass(spare)
        assert policy() == os.SCHED_IDLE
        assert os.sched_getscheduler(thread.native_id or 0) == os.SCHED_IDLE
        younger = threading.Thread(target=lambda: seen.append(policy()))
        younger.start()
        younger.join()
    assert policy() == os.SCHED_OTHER
    go_on.set()
    thread.join()
    assert seen == [os.SCHED_IDLE, os.SCHED_OTHER]


@pytest.mark.parametrize(("waits", "late"), [(0.15, 0.0), (0.0, 0.15)])
def test_who_had_to_wait_catches_up(waits: float, late: float) -> None:
    with SparePriority() as spare:
        make_pass(spare)
        assert policy() == os.SCHED_IDLE
        make_pass(spare, waits=waits, late=late)
        assert policy() == os.SCHED_OTHER
        make_pass(spare)
        assert policy() == os.SCHED_OTHER
        time.sleep(0.2)
        make_pass(spare)
        assert policy() == os.SCHED_IDLE


def test_work_is_no_waiting() -> None:
    with SparePriority() as spare:
        spare.pass_begins(time.monotonic())
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
        spare.pass_ends(in_a_hurry=False)
        # What the machine took of it meanwhile is waiting, indeed.
        assert policy() == os.SCHED_IDLE


def test_nobody_gives_way_in_a_hurry_or_where_it_is_not_wanted() -> None:
    with SparePriority() as spare:
        make_pass(spare, hurry=True)
        assert policy() == os.SCHED_OTHER
        make_pass(spare)
        assert policy() == os.SCHED_IDLE
        make_pass(spare, hurry=True)
        assert policy() == os.SCHED_OTHER
    with SparePriority(wanted=False) as spare:
        make_pass(spare)
        assert policy() == os.SCHED_OTHER


def test_another_policy_is_kept() -> None:
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        with SparePriority() as spare:
            make_pass(spare)
            assert policy() == os.SCHED_BATCH
        assert policy() == os.SCHED_BATCH
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def test_it_ends_with_an_error_too() -> None:
    def fail() -> None:
        with SparePriority() as spare:
            make_pass(spare)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
