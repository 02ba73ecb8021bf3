"""How much of the processors the agent takes while it follows its targets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def idle_priority() -> Iterator[None]:
    """This process's threads run only while no processor has anything else to do (SCHED_IDLE, sched(7)).

    So whoever wakes goes on at once, and the agent after it: at a niceness it would keep its time slice.
    Threads that have a policy other than the default keep it. With the block all of it ends, since
    letting a target go is to be quick. What the system does not allow is left.
    """
    changed = [tid for tid in _threads() if _change(tid, os.SCHED_OTHER, os.SCHED_IDLE)]
    try:
        yield
    finally:
        # Threads that were started meanwhile have it from those that started them.
        for tid in _threads() if changed else ():
            _change(tid, os.SCHED_IDLE, os.SCHED_OTHER)


def _threads() -> list[int]:
    return [int(path.name) for path in Path("/proc/self/task").iterdir()]


def _change(tid: int, policy: int, to: int) -> bool:
    try:
        if os.sched_getscheduler(tid) != policy:
            return False
        os.sched_setscheduler(tid, to, os.sched_param(0))
    except OSError:  # not allowed, or the thread has ended
        return False
    return True
