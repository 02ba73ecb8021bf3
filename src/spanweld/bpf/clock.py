"""From the kernel's clock to the time of day."""

from __future__ import annotations

import time


class Clock:
    """Turns CLOCK_MONOTONIC nanoseconds, which events carry, into nanoseconds since the Unix epoch.

    The offset is taken anew by ``refresh``, so that steps of the wall clock are followed.
    """

    def __init__(self) -> None:
        self._offset = 0
        self.refresh()

    def refresh(self) -> None:
        """Takes the offset between the two clocks now."""
        before = time.monotonic_ns()
        wall = time.time_ns()
        after = time.monotonic_ns()
        self._offset = wall - (before + after) // 2

    def unix_ns(self, monotonic_ns: int) -> int:
        """The time of day, ns since the epoch."""
        return monotonic_ns + self._offset
