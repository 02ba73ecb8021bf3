"""The memory that agent and target share: who holds the lock, what was patched, counts and events."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator, Sequence
from struct import Struct

from spanweld.bpf.events import (
    INLINE_HEAD,
    INLINE_PATCH,
    INLINE_RECORD,
    INLINE_RING,
    Counter,
    InlineHead,
    InlinePatch,
    InlinePlace,
    InlineSize,
)
from spanweld.errors import HostError

NAME = "spanweld"
"""Of the memfd: so a later agent finds it among the target's mappings."""
SIZE = InlinePlace.SPANS - InlinePlace.AREA
MAGIC = int.from_bytes(b"spanweld", "little")
VERSION = 2
_PTHREAD_MUTEX_ROBUST = 1
_PTHREAD_PROCESS_SHARED = 1
_READY = 1
_CALLERS = Struct(f"<{int(InlineSize.CALLERS)}Q")


class Area:
    """The agent's side of the area of one target.

    ``hold`` and ``let_go`` by one thread: the probes do something only while that thread lives.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
        os.ftruncate(self.fd, SIZE)
        self._memory = mmap.mmap(self.fd, SIZE)
        self._libc = ctypes.CDLL(None)
        self._held = False

    def hold(self) -> None:
        """Takes the lock. When this process ends, however it does, the kernel marks it as a dead owner's."""
        attributes = ctypes.create_string_buffer(64)
        libc = self._libc
        libc.pthread_mutexattr_init(attributes)
        failed = (
            libc.pthread_mutexattr_setrobust(attributes, _PTHREAD_MUTEX_ROBUST)
            or libc.pthread_mutexattr_setpshared(attributes, _PTHREAD_PROCESS_SHARED)
            or libc.pthread_mutex_init(self._owner(), attributes)
            or libc.pthread_mutex_lock(self._owner())
        )
        if failed:
            raise HostError(f"no robust lock can be had: {os.strerror(failed)}", "use --probes uprobe")
        self._held = True

    def let_go(self) -> None:
        """Gives the lock back: from here on, the probes do nothing but go on to their functions."""
        if self._held:
            self._held = False
            self._libc.pthread_mutex_unlock(self._owner())

    def _owner(self) -> ctypes.Array[ctypes.c_char]:
        return (ctypes.c_char * 40).from_buffer(self._memory)

    def describe(
        self,
        *,
        base: int,
        size: int,
        pid: int,
        own_pid: int,
        patches: Sequence[bytes],
        callers: Sequence[Sequence[int]],
        target: bytes,
    ) -> None:
        """Writes all but the lock: what the code in the target reads, and what a later agent cleans up by.

        ``target`` is a struct target, as the BPF programs get it; each patch a struct inline_patch.
        ``callers``, by the number of its stub: where those calls of a generator return that are meant; none:
        all are.
        """
        head = InlineHead(bytes(40), MAGIC, base, size, VERSION, len(patches), pid, own_pid, 0, 0)
        behind_owner = len(head.owner)
        self._memory[behind_owner : INLINE_HEAD.size] = INLINE_HEAD.pack(*head)[behind_owner:]
        at = int(InlinePlace.PATCHES)
        for patch in patches:
            self._memory[at : at + INLINE_PATCH.size] = patch
            at += INLINE_PATCH.size
        for number, addresses in enumerate(callers):
            _CALLERS.pack_into(
                self._memory,
                InlinePlace.CALLERS + number * _CALLERS.size,
                *addresses,
                *[0] * (InlineSize.CALLERS - len(addresses)),
            )
        self._memory[InlinePlace.TARGET : InlinePlace.TARGET + len(target)] = target

    def counters(self) -> dict[Counter, int]:
        """What the probes have counted."""
        row = 8 * InlineSize.COUNTERS
        rows = range(InlinePlace.COUNTERS, InlinePlace.COUNTERS + row * InlineSize.CELLS, row)
        return {
            counter: value
            for counter in Counter
            if counter is not Counter.MAX
            and (value := sum(_number(self._memory, at + 8 * counter, signed=True) for at in rows))
        }

    def drain(self, limit: int | None = None) -> Iterator[bytes]:
        """Yields the events that wait now, or the first ``limit``, and frees their room as they are taken."""
        ring = InlinePlace.RING
        consumed_at = ring + INLINE_RING.size // 2
        consumed = _number(self._memory, consumed_at)
        waiting = _number(self._memory, ring) - consumed
        for _ in range(waiting if limit is None else min(waiting, limit)):
            at = InlinePlace.RECORDS + consumed % InlineSize.RECORDS * INLINE_RECORD.size
            ready, size, data = INLINE_RECORD.unpack_from(self._memory, at)
            if ready != _READY:
                break  # reserved and not yet filled: all behind it waits for the next pass
            self._memory[at : at + 4] = bytes(4)
            consumed += 1
            # x86-64 keeps stores in order: the record has been copied before its room is free.
            self._memory[consumed_at : consumed_at + 8] = consumed.to_bytes(8, "little")
            yield data[:size]

    def close(self) -> None:
        """Unmaps it here; the target's mapping is its own."""
        self.let_go()
        self._memory.close()
        os.close(self.fd)


def _number(memory: mmap.mmap, at: int, *, signed: bool = False) -> int:
    return int.from_bytes(memory[at : at + 8], "little", signed=signed)


def read_patches(head: bytes, patches: bytes) -> tuple[InlineHead, list[InlinePatch]] | None:
    """What an agent that is no more has left in a target; None if that is something else.

    ``head`` and ``patches`` are what lies in the area at 0 and at ``InlinePlace.PATCHES``.
    """
    found = InlineHead._make(INLINE_HEAD.unpack(head))
    if found.magic != MAGIC or found.version != VERSION or found.nr_patches > InlineSize.PATCHES:
        return None
    return found, [
        InlinePatch._make(INLINE_PATCH.unpack_from(patches, index * INLINE_PATCH.size))
        for index in range(found.nr_patches)
    ]
