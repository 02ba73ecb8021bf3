"""A bounded queue and the thread that empties it, for exporters whose output may be slow or away."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from spanweld.exporters import ExportCounts, Say
from spanweld.model import Origin, Resource, Span
from spanweld.settings import BatchSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch: ``delivered`` of its items arrived and the others are lost.

    With ``retry`` nothing is decided yet and the batch stays; ``retry_after`` is then the least
    time in seconds that the receiver asked for, or None.
    """

    delivered: int = 0
    error: str = ""
    retry: bool = False
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between sends of one batch, in seconds: doubling, half of each at random."""

    first: float = 1.0
    most: float = 30.0
    most_asked_for: float = 300.0

    def delay(self, failures: int, asked_for: float | None) -> float:
        """How long to wait after the ``failures``-th failure in a row (from 1)."""
        own = min(self.most, self.first * 2.0 ** min(failures - 1, 30)) * (0.5 + random.random() / 2)
        return own if asked_for is None else max(own, min(asked_for, self.most_asked_for))


def exportable(resource: Resource, spans: Iterable[Span]) -> list[tuple[Resource, Span]]:
    """The spans that leave the host by the agent: automatic and sampled, with their resource.

    Manual spans are exported by the service itself; a span that is not sampled by nobody
    (OpenTelemetry's rule for batching span processors).
    """
    return [(resource, span) for span in spans if span.origin is Origin.AUTOMATIC and span.context.flags & 1]


class BatchWorker(Generic[T]):
    """Hands queued items in batches to ``handle`` in a thread, by the rules of OTEL_BSP_*.

    ``handle`` gets a batch and how many seconds it may take at most (``inf`` before ``close``). A
    batch leaves the queue only when its outcome is final, so ``max_queue_size`` bounds all that is
    held. When the queue is full the newest items are dropped and counted. The thread starts with
    the first item, so that an agent without spans can fork.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[Sequence[T], float], Outcome],
        settings: BatchSettings,
        say: Say,
        backoff: Backoff | None = None,
    ) -> None:
        self._name = name
        self._handle = handle
        self._say = say
        self._settings = settings
        self._backoff = backoff or Backoff()
        self._queue: deque[T] = deque()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._deadline: float | None = None
        self._closed = False
        self._fault_said = False
        self._exported = 0
        self._dropped = 0
        self._retried = 0
        self._last_error = ""

    def put(self, items: Sequence[T]) -> int:
        """Queues as many items as there is room for and returns how many; the rest count as dropped."""
        if not items:
            return 0
        with self._changed:
            room = 0 if self._deadline is not None else self._settings.max_queue_size - len(self._queue)
            taken = items if room >= len(items) else items[: max(room, 0)]
            self._dropped += len(items) - len(taken)
            if not taken:
                return 0
            if not self._thread.ident and not self._start():
                self._dropped += len(taken)
                return 0
            self._queue.extend(taken)
            self._changed.notify_all()
            return len(taken)

    def close(self, timeout: float) -> list[T]:
        """Flushes for at most ``timeout`` seconds; returns what was left then, counted as dropped."""
        with self._changed:
            if self._deadline is None:
                self._deadline = time.monotonic() + timeout
            self._changed.notify_all()
        if self._thread.ident:
            self._thread.join(max(0.0, timeout))
        with self._changed:
            # A handle that is still under way must not change the counters any more.
            self._closed = True
            left = list(self._queue)
            self._queue.clear()
            self._dropped += len(left)
        return left

    @property
    def idle(self) -> bool:
        """Whether no ``handle`` is under way or ever will be, once ``close`` has returned."""
        return not self._thread.is_alive()

    def counts(self) -> ExportCounts:
        """The counters now; items count where the exporter's items are spans."""
        with self._changed:
            return ExportCounts(self._exported, self._dropped, self._retried, self._last_error)

    def _start(self) -> bool:
        try:
            self._thread.start()
        except RuntimeError as error:  # a limit on threads, or an interpreter that is ending
            self._last_error = str(error)
            return False
        return True

    def _run(self) -> None:
        failures = 0
        while batch := self._next_batch(at_once=failures > 0):
            if failures:
                self._retried += 1
            try:
                outcome = self._handle(batch, self._time_left())
            except Exception as error:
                # One batch that cannot be handled must not end the export of all others.
                outcome = Outcome(error=f"{type(error).__name__}: {error}")
                self._say_fault(len(batch), outcome.error)
            with self._changed:
                if self._closed:
                    return
                if outcome.error:
                    self._last_error = outcome.error
                if not outcome.retry:
                    failures = 0
                    self._finish(len(batch), outcome.delivered)
                    continue
                failures += 1
                if not self._wait_to_retry(self._backoff.delay(failures, outcome.retry_after)):
                    return

    def _say_fault(self, size: int, error: str) -> None:
        if not self._fault_said:
            self._fault_said = True
            self._say(f"{self._name}: {size} spans are dropped by a fault of the exporter: {error}")

    def _next_batch(self, at_once: bool) -> list[T]:
        """Waits for a full batch, or for ``schedule_delay`` after the first item; empty at the end.

        ``at_once``: the batch is due already.
        """
        size = self._settings.max_export_batch_size
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._deadline is not None)
            if not at_once:
                self._changed.wait_for(
                    lambda: len(self._queue) >= size or self._deadline is not None,
                    self._settings.schedule_delay,
                )
            if self._closed or self._time_left() <= 0:
                return []
            return list(islice(self._queue, size))

    def _finish(self, size: int, delivered: int) -> None:
        for _ in range(size):
            self._queue.popleft()
        self._exported += delivered
        self._dropped += size - delivered

    def _wait_to_retry(self, delay: float) -> bool:
        """Waits, and returns whether there is time for one more; a ``close`` meanwhile ends the wait."""
        if self._deadline is None:
            self._changed.wait_for(lambda: self._deadline is not None, delay)
            return True
        if delay >= self._time_left():
            return False
        self._changed.wait_for(lambda: self._closed, delay)
        return not self._closed

    def _time_left(self) -> float:
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()
