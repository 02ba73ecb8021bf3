"""The queue's rules, with a handle that the test holds in its hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest

from spanweld.exporters.batching import Backoff, BatchWorker, Outcome, exportable
from spanweld.model import Origin
from spanweld.settings import BatchSettings
from tests.unit.exporters.support import QUICK, RESOURCE, Messages, server_span, span, wait_until


class Handle:
    """Takes batches, answers as told, and can be held."""

    def __init__(self, *outcomes: Outcome) -> None:
        self.batches: list[list[int]] = []
        self.times_left: list[float] = []
        self.open = threading.Event()
        self.open.set()
        self._outcomes = list(outcomes)

    def __call__(self, batch: Sequence[int], time_left: float) -> Outcome:
        self.batches.append(list(batch))
        self.times_left.append(time_left)
        self.open.wait(20.0)
        return self._outcomes.pop(0) if self._outcomes else Outcome(delivered=len(batch))


def worker_of(handle: Handle, messages: Messages, **settings: float) -> BatchWorker[int]:
    whole = {"schedule_delay": 0.0, "max_queue_size": 100, "max_export_batch_size": 10, **settings}
    return BatchWorker(
        "spanweld-test",
        handle,
        BatchSettings(
            schedule_delay=whole["schedule_delay"],
            max_queue_size=int(whole["max_queue_size"]),
            max_export_batch_size=int(whole["max_export_batch_size"]),
        ),
        messages,
        QUICK,
    )


def test_a_full_batch_goes_at_once_and_the_rest_at_close(messages: Messages) -> None:
    handle = Handle()
    worker = worker_of(handle, messages, schedule_delay=3600.0)
    assert worker.put(list(range(25))) == 25
    wait_until(lambda: len(handle.batches) == 2)
    assert worker.close(5.0) == []
    assert handle.batches == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
    assert worker.counts().exported == 25


def test_a_part_of_a_batch_goes_after_the_delay(messages: Messages) -> None:
    handle = Handle()
    worker = worker_of(handle, messages, schedule_delay=0.05)
    start = time.monotonic()
    worker.put([1])
    wait_until(lambda: handle.batches == [[1]])
    assert time.monotonic() - start >= 0.05
    worker.close(5.0)


def test_what_has_no_room_is_dropped_and_counted(messages: Messages) -> None:
    handle = Handle()
    handle.open.clear()
    worker = worker_of(handle, messages, max_queue_size=12)
    assert worker.put(list(range(10))) == 10
    wait_until(lambda: len(handle.batches) == 1)
    # The batch under way still has its place in the queue.
    assert worker.put(list(range(10, 20))) == 2
    assert worker.counts().dropped == 8
    handle.open.set()
    worker.close(5.0)
    assert (worker.counts().exported, worker.counts().dropped) == (12, 8)


def test_a_batch_is_retried_until_it_is_delivered(messages: Messages) -> None:
    handle = Handle(Outcome(error="away", retry=True), Outcome(error="still away", retry=True))
    worker = worker_of(handle, messages)
    worker.put([1, 2])
    wait_until(lambda: worker.counts().exported == 2)
    worker.close(5.0)
    assert [batch[:2] for batch in handle.batches] == [[1, 2]] * 3
    counts = worker.counts()
    assert (counts.retried, counts.dropped, counts.last_error) == (2, 0, "still away")


def test_a_part_that_is_refused_is_counted_as_dropped(messages: Messages) -> None:
    handle = Handle(Outcome(delivered=3, error="two were bad"))
    worker = worker_of(handle, messages)
    worker.put([1, 2, 3, 4, 5])
    worker.close(5.0)
    counts = worker.counts()
    assert (counts.exported, counts.dropped, counts.last_error) == (3, 2, "two were bad")


def test_close_gives_up_in_time_and_counts_what_is_left(messages: Messages) -> None:
    handle = Handle(*[Outcome(error="away", retry=True)] * 1000)
    worker = worker_of(handle, messages)
    worker.put([1, 2, 3])
    start = time.monotonic()
    assert worker.close(0.2) == [1, 2, 3]
    assert time.monotonic() - start < 2.0
    assert worker.counts().dropped == 3


def test_close_does_not_wait_for_a_handle_that_hangs_nor_count_it_later(messages: Messages) -> None:
    handle = Handle()
    handle.open.clear()
    worker = worker_of(handle, messages)
    worker.put([1, 2, 3])
    wait_until(lambda: len(handle.batches) == 1)
    assert worker.close(0.05) == [1, 2, 3]
    assert not worker.idle
    handle.open.set()
    wait_until(lambda: worker.idle)
    assert (worker.counts().exported, worker.counts().dropped) == (0, 3)


def test_close_ends_a_long_wait_for_a_retry(messages: Messages) -> None:
    handle = Handle(Outcome(error="later", retry=True))
    slow = Backoff(first=3600.0, most=3600.0)
    worker = BatchWorker("spanweld-test", handle, BatchSettings(schedule_delay=0.0), messages, slow)
    worker.put([1])
    wait_until(lambda: worker.counts().last_error == "later")
    assert worker.close(10.0) == []
    assert worker.counts().exported == 1
    assert handle.times_left[0] == float("inf")
    assert 0 < handle.times_left[1] <= 10.0


def test_a_fault_of_the_handle_costs_its_batch_and_is_said_once(messages: Messages) -> None:
    class Faulty(Handle):
        def __call__(self, batch: Sequence[int], time_left: float) -> Outcome:
            super().__call__(batch, time_left)
            if 13 in batch or 1 in batch:
                raise KeyError("thirteen")
            return Outcome(delivered=len(batch))

    worker = worker_of(Faulty(), messages)
    worker.put(list(range(30)))
    worker.close(5.0)
    assert (worker.counts().exported, worker.counts().dropped) == (10, 20)
    assert len(messages.said) == 1
    assert "KeyError" in messages.said[0]


def test_without_items_there_is_no_thread(messages: Messages) -> None:
    worker = worker_of(Handle(), messages)
    assert worker.put([]) == 0
    assert worker.idle
    assert worker.close(0.0) == []
    assert worker.put([1]) == 0
    assert worker.counts().dropped == 1
    assert worker.idle


def test_close_may_be_called_twice(messages: Messages) -> None:
    worker = worker_of(Handle(), messages)
    worker.put([1])
    worker.close(5.0)
    worker.close(5.0)
    assert worker.counts().exported == 1


@pytest.mark.parametrize("failures", [1, 2, 5, 40, 10_000])
def test_backoff_doubles_up_to_its_most_with_jitter(failures: int) -> None:
    backoff = Backoff(first=1.0, most=30.0)
    whole = min(30.0, 2.0 ** (failures - 1)) if failures < 40 else 30.0
    delays = {backoff.delay(failures, None) for _ in range(50)}
    assert len(delays) > 1
    assert all(whole / 2 <= delay <= whole for delay in delays)


def test_backoff_honours_what_was_asked_for_up_to_its_bound() -> None:
    backoff = Backoff(first=1.0, most=30.0, most_asked_for=300.0)
    assert backoff.delay(1, 20.0) == 20.0
    assert backoff.delay(1, 86_400.0) == 300.0
    assert backoff.delay(1, 0.0) >= 0.5


def test_only_automatic_sampled_spans_leave_by_the_agent() -> None:
    given = [
        server_span(1),
        server_span(2, flags=0),
        span(3, origin=Origin.MANUAL),
        server_span(4, flags=3),
    ]
    assert [item.context.span_id for _, item in exportable(RESOURCE, given)] == [1, 4]
