"""Where tasks get their ids and are woken: what code shows is what symbols say."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from spanweld.image import FoundBy, Image, find_new_task_ids, find_wakers
from spanweld.image.stripped import find_task_vtables
from spanweld.image.symbols import find_objects
from spanweld.image.tasks import REGISTERS
from spanweld.plan import make_plan
from spanweld.probes import tokio_tasks
from tests.unit.image.samples import ServiceBuilder
from tools.check_stripped import strip

MOV, LEA = 0x8B, 0x8D
C_REGISTERS = Path(tokio_tasks.__file__).with_suffix(".h")


def test_registers_are_numbered_as_the_programs_have_them() -> None:
    names = re.findall(r"ID_IN_(\w+)", C_REGISTERS.read_text())
    assert tuple(name.lower() for name in names) == REGISTERS


@pytest.mark.parametrize("name", ["lab", "users", "store", "minimal"])
def test_without_symbols_the_places_are_the_same(service: ServiceBuilder, name: str, tmp_path: Path) -> None:
    path = service(name, "release")
    with Image.open(path) as image, Image.open(strip(path, tmp_path / "stripped")) as bare:
        ids, bare_ids = find_new_task_ids(image), find_new_task_ids(bare)
        wakers, bare_wakers = find_wakers(image), find_wakers(bare)
    assert not isinstance(ids, str)
    assert not isinstance(bare_ids, str)
    assert [(place.offset, place.register) for place in ids] == [
        (place.offset, place.register) for place in bare_ids
    ]
    assert all(place.instruction.startswith("je ") for place in ids)
    assert {place.function.found_by for place in bare_ids} == {FoundBy.CODE}
    assert not isinstance(wakers, str)
    assert not isinstance(bare_wakers, str)
    assert [function.address for function in wakers] == [function.address for function in bare_wakers]


def test_where_the_counters_address_needs_no_table(service: ServiceBuilder, tmp_path: Path) -> None:
    """What a linker makes of ``mov r, [counter's address]`` in a static executable: ``lea r, [counter]``."""
    content = bytearray(service("lab", "release").read_bytes())
    with Image.open(service("lab", "release")) as image:
        (counter,) = find_objects(image, "tokio::runtime::task::*Id::next::NEXT_ID")
        places = find_new_task_ids(image)
        assert not isinstance(places, str)
        loads = 0
        for place in places:
            start = image.file_offset(place.function.address)
            assert start is not None
            if content[start + 1] != MOV:
                continue
            loads += 1
            content[start + 1] = LEA
            content[start + 3 : start + 7] = struct.pack("<i", counter - place.function.address - 7)
    assert loads
    relaxed = tmp_path / "relaxed"
    relaxed.write_bytes(content)
    with Image.open(relaxed) as image:
        assert find_new_task_ids(image) == places
    with Image.open(strip(relaxed, tmp_path / "stripped")) as image:
        bare = find_new_task_ids(image)
    assert not isinstance(bare, str)
    assert [(place.offset, place.register) for place in bare] == [
        (place.offset, place.register) for place in places
    ]


def test_at_a_fixed_address_tables_are_numbers_in_the_code(service: ServiceBuilder, tmp_path: Path) -> None:
    """What a compiler writes instead of ``lea r, [table]``: ``mov r, table``, of the same size."""
    content = bytearray(service("lab", "release").read_bytes())
    with Image.open(service("lab", "release")) as image:
        places, wakers = find_new_task_ids(image), find_wakers(image)
        tables = {
            *find_task_vtables(image),
            *find_objects(image, "tokio::runtime::task::waker::WAKER_VTABLE"),
        }
        changed = set()
        for segment in image.loads:
            if not segment.executable:
                continue
            code = bytes(content[segment.offset : segment.offset + segment.file_size])
            for match in re.finditer(
                rb"(?=([\x48\x4c]\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d])(....))", code, re.DOTALL
            ):
                rex, _, register = match.group(1)
                [distance] = struct.unpack("<i", match.group(2))
                table = segment.address + match.start() + 7 + distance
                if table in tables:
                    changed.add(table)
                    number = struct.pack("<BBBi", 0x48 | rex >> 2 & 1, 0xC7, 0xC0 | register >> 3, table)
                    at = segment.offset + match.start()
                    content[at : at + 7] = number
    assert not isinstance(places, str)
    assert len(changed) > len(tables) / 2
    fixed = tmp_path / "fixed"
    fixed.write_bytes(content)
    with Image.open(strip(fixed, tmp_path / "stripped")) as image:
        bare, bare_wakers = find_new_task_ids(image), find_wakers(image)
    assert not isinstance(bare, str)
    assert [place.offset for place in bare] == [place.offset for place in places]
    assert not isinstance(wakers, str)
    assert not isinstance(bare_wakers, str)
    assert [function.address for function in bare_wakers] == [function.address for function in wakers]


def test_a_counter_that_does_not_leave_out_0_is_none_of_tasks(
    service: ServiceBuilder, tmp_path: Path
) -> None:
    """Without symbols: any crate may count something where it spawns. Before tokio 1.40, tasks are so too."""
    content = bytearray(service("minimal", "release").read_bytes())
    with Image.open(service("minimal", "release")) as image:
        places = find_new_task_ids(image)
    assert not isinstance(places, str)
    for place in places:
        content[place.offset - 3 : place.offset] = b"\x90" * 3  # `test` of the number with itself
    other = tmp_path / "other"
    other.write_bytes(content)
    with Image.open(strip(other, tmp_path / "stripped")) as image:
        assert isinstance(find_new_task_ids(image), str)
        older = find_new_task_ids(image, may_be_zero=True)
    assert not isinstance(older, str)
    assert [place.taken for place in older] == [place.taken for place in places]


def test_where_nothing_is_optimised_the_id_is_returned(service: ServiceBuilder) -> None:
    with Image.open(service("lab", "debug")) as image:
        ids = find_new_task_ids(image)
        assert not isinstance(find_wakers(image), str)
    assert not isinstance(ids, str)
    assert [(place.instruction, place.register) for place in ids] == [("ret", REGISTERS.index("ax"))]


def test_a_service_without_tokio(service: ServiceBuilder) -> None:
    with Image.open(service("sockets", "release")) as image:
        assert isinstance(find_new_task_ids(image), str)
        assert isinstance(find_wakers(image), str)
    plan = make_plan(service("sockets", "release"))
    assert plan.why_not(tokio_tasks.INSTRUMENTATION)
    assert not plan.points_of(tokio_tasks.INSTRUMENTATION)


def test_who_sends_requests(service: ServiceBuilder) -> None:
    assert make_plan(service("users", "release")).has_http_client
    assert not make_plan(service("store", "release")).has_http_client
