"""How much of the processors the agent takes while it follows its targets."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

LOOKS_EACH = 0.2
"""Seconds between two looks of a ``StarvationWatch``."""
ENOUGH = 0.1
"""The part of that time for which one who wants a processor is to have had it."""
_TICKS = os.sysconf("SC_CLK_TCK")


class SparePriority:
    """This process runs while no processor has anything else to do (SCHED_IDLE, sched(7)).

    So whoever wakes goes on at once, and the agent after it: at a niceness it would keep its time slice. But
    where all processors are taken for long, it would get nothing at all, and what targets need of it would
    wait: another process is to have a ``StarvationWatch``, which lets it finish its pass like any other one.

    Nothing of that unless it is ``wanted``. For the ``with`` block; ``pass_ends`` after each pass of work.
    Threads that have a policy other than the default keep it. What the system does not allow is left.
    """

    def __init__(self, *, wanted: bool = True) -> None:
        self._wanted = wanted

    def __enter__(self) -> SparePriority:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Letting a target go is to be quick.
        self._set(idle=False)

    def pass_ends(self, *, in_a_hurry: bool) -> None:
        """``in_a_hurry``: what comes next is to be acted on at once."""
        self._set(idle=self._wanted and not in_a_hurry)

    def _set(self, *, idle: bool) -> None:
        if idle == (os.sched_getscheduler(0) == os.SCHED_IDLE):
            return
        # Threads that are started meanwhile have it from those that start them.
        for tid in _threads(os.getpid()):
            if idle:
                _change(tid, os.SCHED_OTHER, os.SCHED_IDLE)
            else:
                _change(tid, os.SCHED_IDLE, os.SCHED_OTHER)


class StarvationWatch:
    """Looks at a process that gives way (``SparePriority``), from another one that does not.

    Who gives way where all processors are taken for long runs some milliseconds in a second: it would not
    even see a signal that asks it to end. ``look`` is to be called each ``LOOKS_EACH`` seconds, and lets all
    its threads be like any others once one of them has waited for a processor since the last look.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._at = time.monotonic()
        self._ran: dict[int, float] = {}

    def look(self) -> None:
        """Never raises: a process that has ended has no threads."""
        now = time.monotonic()
        before, self._ran = self._ran, dict(_runnable(self._pid))
        enough = ENOUGH * (now - self._at)
        self._at = now
        if any(tid in before and ran - before[tid] < enough for tid, ran in self._ran.items()):
            for tid in _threads(self._pid):
                _change(tid, os.SCHED_IDLE, os.SCHED_OTHER)


def _threads(pid: int) -> list[int]:
    try:
        return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:  # it has ended
        return []


def _runnable(pid: int) -> Iterator[tuple[int, float]]:
    """Of each thread that runs or waits for a processor: seconds that it has run; proc_pid_stat(5)."""
    for tid in _threads(pid):
        try:
            fields = Path(f"/proc/{pid}/task/{tid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if fields[0] == "R":
            yield tid, (int(fields[11]) + int(fields[12])) / _TICKS


def _change(tid: int, policy: int, to: int) -> None:
    try:
        if os.sched_getscheduler(tid) == policy:
            os.sched_setscheduler(tid, to, os.sched_param(0))
    except OSError:  # not allowed, or the thread has ended
        return
