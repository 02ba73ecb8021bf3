"""The targets, as the BPF programs find them: their places in the maps of bpf/include/maps.bpf.h."""

from __future__ import annotations

import struct

from spanweld.bpf import events
from spanweld.bpf.libbpf import BpfMap, BpfObject
from spanweld.errors import TargetError
from spanweld.model import Pid


class TargetPlaces:
    """The places of all targets of one agent: ``reserve``, ``put``, then ``hide`` and ``free``."""

    def __init__(self, bpf: BpfObject) -> None:
        self._sets = bpf.map("target_sets")
        self._entries = bpf.map("targets")
        self._spans = bpf.map("spans_in_progress")
        self._each = self._sets.value_size // 4
        self._form = struct.Struct(f"<{self._each}I")
        # Whose place is which, from ``reserve`` until ``free``.
        self._taken: dict[Pid, int] = {}

    def reserve(self, pid: Pid, spans: BpfMap | None) -> None:
        """Finds a place for a process, and puts its map of spans there; TargetError if there is no room.

        Programs see neither before ``put``.
        """
        first = pid % self._sets.max_entries * self._each
        free = set(range(first, first + self._each)) - set(self._taken.values())
        if not free:
            raise TargetError(
                f"process {pid} cannot be followed beside the others: {self._each} of them have ids "
                f"that are the same modulo {self._sets.max_entries}",
                "attach to it by a spanweld of its own",
            )
        self._taken[pid] = min(free)
        if spans:
            self._spans.set(_key(self._taken[pid]), spans.fd.to_bytes(4, "little"))

    def put(self, pid: Pid, entry: bytes) -> None:
        """Makes the process a target with this ``struct target``, or changes that of one.

        An entry is not changed at once: the new one can be acted upon only when all of it is there. What
        programs have changed in the old one is gone.
        """
        place = self._taken[pid]
        incomplete = events.Target._make(events.TARGET.unpack(entry))._replace(adoption=events.Adoption.NONE)
        self._entries.set(_key(place), events.TARGET.pack(*incomplete))
        self._entries.set(_key(place), entry)
        self._show(place, pid)

    def hide(self, pid: Pid) -> None:
        """Programs that start from now on do not find the process, nor its spans."""
        if pid in self._taken:
            self._show(self._taken[pid], Pid(0))

    def free(self, pid: Pid) -> None:
        """Lets the place of a hidden process go, when no program runs any more that found it."""
        if pid in self._taken:
            # The kernel returns from changing a map of maps when the programs that were running have ended.
            self._spans.delete(_key(self._taken[pid]))
            del self._taken[pid]

    def _show(self, place: int, pid: Pid) -> None:
        number, at = divmod(place, self._each)
        pids = list(self._form.unpack(self._sets.get(_key(number)) or bytes(self._form.size)))
        pids[at] = pid
        self._sets.set(_key(number), self._form.pack(*pids))


def _key(number: int) -> bytes:
    return number.to_bytes(4, "little")
