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
        self._form = struct.Struct(f"<{self._sets.value_size // 4}I")
        # Of each set, whose place is which; a place is taken from ``reserve`` until ``free``.
        self._taken: dict[int, list[Pid | None]] = {}

    def reserve(self, pid: Pid, spans: BpfMap | None) -> None:
        """Finds a place for a process, and puts its map of spans there; TargetError if there is no room.

        Programs see neither before ``put``.
        """
        number, places = self._set_of(pid)
        if None not in places:
            raise TargetError(
                f"process {pid} cannot be followed beside the others: {len(places)} of them have ids "
                f"that are the same modulo {self._sets.max_entries}",
                "attach to it by a spanweld of its own",
            )
        places[places.index(None)] = pid
        if spans:
            self._spans.set(self._key(number, places.index(pid)), spans.fd.to_bytes(4, "little"))

    def put(self, pid: Pid, entry: bytes) -> None:
        """Makes the process a target with this ``struct target``, or changes that of one.

        An entry is not changed at once: the new one can be acted upon only when all of it is there. What
        programs have changed in the old one is gone.
        """
        number, places = self._set_of(pid)
        key = self._key(number, places.index(pid))
        incomplete = events.Target._make(events.TARGET.unpack(entry))._replace(adoption=events.Adoption.NONE)
        self._entries.set(key, events.TARGET.pack(*incomplete))
        self._entries.set(key, entry)
        self._show(number, pid, places.index(pid))

    def hide(self, pid: Pid) -> None:
        """Programs that start from now on do not find the process, nor its spans."""
        number, places = self._set_of(pid)
        if pid in places:
            self._show(number, Pid(0), places.index(pid))

    def free(self, pid: Pid) -> None:
        """Lets the place of a hidden process go, when no program runs any more that found it."""
        number, places = self._set_of(pid)
        if pid in places:
            # The kernel returns from changing a map of maps when the programs that were running have ended.
            self._spans.delete(self._key(number, places.index(pid)))
            places[places.index(pid)] = None

    def _set_of(self, pid: Pid) -> tuple[int, list[Pid | None]]:
        number = pid % self._sets.max_entries
        return number, self._taken.setdefault(number, [None] * (self._form.size // 4))

    def _key(self, number: int, place: int) -> bytes:
        return (number * (self._form.size // 4) + place).to_bytes(4, "little")

    def _show(self, number: int, pid: Pid, place: int) -> None:
        key = number.to_bytes(4, "little")
        pids = list(self._form.unpack(self._sets.get(key) or bytes(self._form.size)))
        pids[place] = pid
        self._sets.set(key, self._form.pack(*pids))
