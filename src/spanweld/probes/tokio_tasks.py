"""tokio's tasks, and threads: which one was started by which, and which wakes which.

A task, or a thread, starts with what is active in the one that spawned it. Who wakes a task says what
caused the requests of one that works for others, as the driver of a pooled connection does (task_edges.h).
"""

from __future__ import annotations

from collections.abc import Mapping

from spanweld.bpf.clock import Clock
from spanweld.bpf.events import EventKind
from spanweld.probes.declaration import Decoded, Instrumentation, Place, Probe, Release, WakesWanted


def decode_wakes_wanted(data: bytes, clock: Clock, span_kinds: Mapping[int, int]) -> Decoded:  # noqa: ARG001
    """EVENT_WAKES_WANTED -> that probes on wakes are to be attached."""
    return WakesWanted()


TASK_SPAWNED = Probe("tokio_task_spawned", Place.NEW_TASK, "tokio::runtime::task::id::Id::next")
OLDEST_WITH_WAKES = Release(1, 23)
"""Since then a task's vtable says where in it its id is."""

INSTRUMENTATION = Instrumentation(
    name="tokio_tasks",
    probes=(
        Probe("tokio_thread_started", Place.TRACEPOINT),
        TASK_SPAWNED,
    ),
    decoders={},
)

WAKES = Instrumentation(
    name="tokio_wakes",
    probes=tuple(
        Probe("tokio_wake", Place.ENTRY, f"tokio::runtime::task::waker::{function}", when_asked=True)
        for function in ("wake_by_val", "wake_by_ref")
    ),
    decoders={EventKind.WAKES_WANTED: decode_wakes_wanted},
)
"""Attached to a target once its requests out are to be attributed: a service wakes tasks all the time."""
