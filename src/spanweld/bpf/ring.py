"""Reads a BPF ring buffer through its shared memory, many records at a time.

libbpf's own reader calls back into Python once a record; here one pass takes all of them.
Layout: kernel/bpf/ringbuf.c: a page with the consumer's position, a page with the producer's, and the
data, mapped twice in a row so that no record is ever broken in two.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from struct import Struct

_POSITION = Struct("<Q")
_HEADER = Struct("<II")
_BUSY = 1 << 31
_DISCARDED = 1 << 30


class RingReader:
    """The only consumer of a ring buffer map; ``size`` is the map's max_entries, in bytes."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self._mask = size - 1
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        self._producer = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._data_start = page

    def drain(self, limit: int | None = None) -> Iterator[bytes]:
        """Yields the records that wait now, or the first ``limit``, and frees their room when it ends."""
        position: int = _POSITION.unpack_from(self._consumer)[0]
        memory = self._producer
        # What comes meanwhile waits for the next pass: who writes may be faster than this.
        produced: int = _POSITION.unpack_from(memory)[0]
        taken = 0
        while position < produced and taken != limit:
            at = self._data_start + (position & self._mask)
            length: int = _HEADER.unpack_from(memory, at)[0]
            if length & _BUSY:
                break  # reserved and not yet filled: all behind it waits, too
            size = length & ~_DISCARDED
            if not length & _DISCARDED:
                yield memory[at + 8 : at + 8 + size]
            position += (size + 8 + 7) & ~7
            taken += 1
        # x86-64 keeps stores in order: the records have been copied before their room is free.
        _POSITION.pack_into(self._consumer, 0, position)

    def close(self) -> None:
        """Unmaps the buffer."""
        self._consumer.close()
        self._producer.close()
