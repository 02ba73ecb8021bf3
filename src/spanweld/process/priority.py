"""How much of the processors the agent takes while it follows its targets."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

PATIENCE = 0.3
"""Seconds that a pass may wait for a processor, all in all."""
CATCHES_UP = 1.0
"""Seconds for which the agent is like any other process after it has waited longer."""


class SparePriority:
    """This process runs while no processor has anything else to do (SCHED_IDLE, sched(7)).

    So whoever wakes goes on at once, and the agent after it: at a niceness it would keep its time slice. But
    where all processors are taken for long, it would get nothing at all, and what targets need of it would
    wait: so from time to time it is like any other process, ``CATCHES_UP`` seconds after it has had to wait.

    Nothing of that unless it is ``wanted``. For the ``with`` block; ``pass_begins`` and ``pass_ends`` around
    each pass of its work. Threads that have a policy other than the default keep it. What the system does
    not allow is left.
    """

    def __init__(self, *, wanted: bool = True) -> None:
        self._wanted = wanted
        self._is_idle = False
        self._began = 0.0
        self._used = 0.0
        self._normal_until = 0.0

    def __enter__(self) -> SparePriority:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Letting a target go is to be quick.
        self._set(idle=False)

    def pass_begins(self, due: float) -> None:
        """``due``: when it should have begun, by ``time.monotonic``."""
        self._began = min(due, time.monotonic())
        self._used = time.process_time()

    def pass_ends(self, *, in_a_hurry: bool) -> None:
        """``in_a_hurry``: what comes next is to be acted on at once."""
        now = time.monotonic()
        waited = (now - self._began) - (time.process_time() - self._used)
        if waited > PATIENCE:
            self._normal_until = now + CATCHES_UP
        self._set(idle=self._wanted and not in_a_hurry and now >= self._normal_until)

    def _set(self, *, idle: bool) -> None:
        if idle == self._is_idle:
            return
        self._is_idle = idle
        # Threads that are started meanwhile have it from those that start them.
        for path in Path("/proc/self/task").iterdir():
            if idle:
                _change(int(path.name), os.SCHED_OTHER, os.SCHED_IDLE)
            else:
                _change(int(path.name), os.SCHED_IDLE, os.SCHED_OTHER)


def _change(tid: int, policy: int, to: int) -> None:
    try:
        if os.sched_getscheduler(tid) == policy:
            os.sched_setscheduler(tid, to, os.sched_param(0))
    except OSError:  # not allowed, or the thread has ended
        return
