"""The BPF object on the kernel at hand: it loads, attaches, and its maps are what the agent expects.

Runs on the host, and by `tests/vm` on other kernels.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

import pytest

from spanweld.agent import BPF_OBJECT, load_programs
from spanweld.bpf import events
from spanweld.bpf.host import look_at_host
from spanweld.bpf.libbpf import BpfObject, detach_all
from spanweld.bpf.ring import RingReader
from spanweld.bpf.targets import TargetPlaces
from spanweld.errors import HostError, TargetError
from spanweld.model import Pid
from spanweld.probes import REGISTRY
from spanweld.probes.declaration import Place
from spanweld.settings import Settings, WriteMode

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def loaded() -> Iterator[BpfObject]:
    bpf, _ = load_programs(Settings(write=WriteMode.STOP), look_at_host(mount=True))
    with bpf:
        yield bpf


def test_every_program_belongs_to_a_declared_probe(loaded: BpfObject) -> None:
    declared = {probe.program for instrumentation in REGISTRY for probe in instrumentation.probes}
    assert set(loaded.programs()) == declared


def test_every_tracepoint_attaches_and_detaches(loaded: BpfObject) -> None:
    for instrumentation in REGISTRY:
        for probe in instrumentation.probes:
            if probe.place is Place.TRACEPOINT:
                detach_all(probe.attach_tracepoint(loaded))


def test_structures_have_the_sizes_of_the_maps(loaded: BpfObject) -> None:
    assert loaded.map("targets").value_size == events.TARGET.size
    assert loaded.map("connections").key_size == events.CONNECTION_KEY.size
    assert loaded.map("listening").key_size == events.LISTENING_KEY.size
    assert loaded.map("counters").max_entries == events.Counter.MAX


@pytest.mark.parametrize("name", ["spans_in_progress", "carried"])
def test_a_map_of_a_target_is_made_found_and_gone(loaded: BpfObject, name: str) -> None:
    spans = loaded.create_inner_map(name)
    outer = loaded.map(name)
    key = (7).to_bytes(4, "little")
    assert outer.get(key) is None
    outer.set(key, spans.fd.to_bytes(4, "little"))
    assert outer.get(key)
    outer.delete(key)
    assert outer.get(key) is None
    os.close(spans.fd)


def test_targets_have_places_of_their_own_until_they_are_freed(loaded: BpfObject) -> None:
    places = TargetPlaces(loaded)
    sets, entries = loaded.map("target_sets"), loaded.map("targets")
    each = sets.value_size // 4
    same = [Pid(11 + number * sets.max_entries) for number in range(each + 1)]
    key = (11).to_bytes(4, "little")

    def shown() -> list[int]:
        return list(struct.unpack(f"<{each}I", sets.get(key) or b""))

    def adopt_mode(place: int) -> int:
        entry = entries.get((11 * each + place).to_bytes(4, "little"))
        return events.Target._make(events.TARGET.unpack(entry or b"")).adopt_mode

    for number, pid in enumerate(same[:-1]):
        places.reserve(pid, None)
        assert pid not in shown()
        places.put(pid, _entry(adopt_mode=number))
    assert shown() == same[:-1]
    assert [adopt_mode(place) for place in range(each)] == list(range(each))
    with pytest.raises(TargetError) as refused:
        places.reserve(same[-1], None)
    assert f"modulo {sets.max_entries}" in refused.value.message
    # Hidden, it has its place still; only a freed one is given to another.
    places.hide(same[3])
    assert shown()[3] == 0
    with pytest.raises(TargetError):
        places.reserve(same[-1], None)
    places.free(same[3])
    places.reserve(same[-1], None)
    places.put(same[-1], _entry(adopt_mode=99))
    assert shown()[3] == same[-1]
    assert adopt_mode(3) == 99
    places.put(same[5], _entry(adopt_mode=77))
    assert shown()[5] == same[5]
    assert adopt_mode(5) == 77
    # Of one that never had a place, nothing is taken.
    places.hide(Pid(11 + 1000 * sets.max_entries))
    places.free(Pid(11 + 1000 * sets.max_entries))
    assert 0 not in shown()


def _entry(**values: int) -> bytes:
    return events.TARGET.pack(*(dict.fromkeys(events.Target._fields, 0) | values).values())


def test_an_empty_ring_yields_nothing(loaded: BpfObject) -> None:
    ring = loaded.map("events")
    reader = RingReader(ring.fd, ring.max_entries)
    assert list(reader.drain()) == []
    reader.close()


def test_the_kernel_writer_is_refused_with_a_reason_or_loads() -> None:
    host = look_at_host(mount=True)
    if host.lockdown in ("integrity", "confidentiality"):
        with pytest.raises(HostError) as caught:
            load_programs(Settings(write=WriteMode.KERNEL), host)
        assert host.lockdown in caught.value.message
    else:
        bpf, choice = load_programs(Settings(write=WriteMode.KERNEL), host)
        bpf.close()
        assert choice.mode is WriteMode.KERNEL


def test_a_refused_object_is_an_error_that_says_what_the_kernel_said() -> None:
    # With its largest map beyond every limit, no kernel takes the object.
    host = look_at_host(mount=True)
    host.require()
    bpf, _ = load_programs(Settings(write=WriteMode.OFF), host)
    library = bpf.library
    bpf.close()
    broken = BpfObject(library, BPF_OBJECT)
    pointer = library.bpf_object__find_map_by_name(broken._object, b"connections")
    library.bpf_map__set_max_entries(ctypes.c_void_p(pointer), ctypes.c_uint32(0xFFFFFFFF))
    with broken, pytest.raises(HostError) as caught:
        broken.load()
    assert "refused" in caught.value.message
    assert "connections" in caught.value.remedy
