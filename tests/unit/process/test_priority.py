"""What other processes leave of the processors, and how it ends."""

from __future__ import annotations

import os
import threading

from spanweld.process.priority import idle_priority


def policy() -> int:
    return os.sched_getscheduler(0)


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
    with idle_priority():
        assert policy() == os.SCHED_IDLE
        assert os.sched_getscheduler(thread.native_id or 0) == os.SCHED_IDLE
        younger = threading.Thread(target=lambda: seen.append(policy()))
        younger.start()
        younger.join()
    assert policy() == os.SCHED_OTHER
    go_on.set()
    thread.join()
    assert seen == [os.SCHED_IDLE, os.SCHED_OTHER]


def test_another_policy_is_kept() -> None:
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        with idle_priority():
            assert policy() == os.SCHED_BATCH
        assert policy() == os.SCHED_BATCH
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def test_it_ends_with_an_error_too() -> None:
    try:
        with idle_priority():
            raise RuntimeError
    except RuntimeError:
        pass
    assert policy() == os.SCHED_OTHER
