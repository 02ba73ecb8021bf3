from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from spanweld.errors import TargetError
from spanweld.model import FileOffset, Pid, VirtAddr
from spanweld.process.memory import image_ranges, load_bias, memory_ranges, read_memory

OWN = Pid(os.getpid())


def test_ranges_are_in_order_and_hold_the_stack() -> None:
    ranges = memory_ranges(OWN)
    assert list(ranges) == sorted(ranges, key=lambda r: r.start)
    assert any(r.path == "[stack]" and not r.is_executable for r in ranges)


def test_image_is_where_its_header_is() -> None:
    first = image_ranges(OWN)[0]
    assert first.offset == 0
    assert read_memory(OWN, first.start, 4) == b"\x7fELF"
    assert {r.path for r in image_ranges(OWN)} == {str(Path("/proc/self/exe").readlink())}


def test_bias_brings_code_where_it_runs() -> None:
    with Path("/proc/self/exe").open("rb") as file:
        code = next(s for s in ELFFile(file).iter_segments() if s["p_type"] == "PT_LOAD" and s["p_flags"] & 1)
        offset, address = FileOffset(code["p_offset"] + 32), VirtAddr(code["p_vaddr"] + 32)
        expected = code.data()[32:96]
    bias = load_bias(OWN, offset=offset, address=address)
    assert bias % 4096 == 0
    assert read_memory(OWN, VirtAddr(address + bias), 64) == expected
    with pytest.raises(TargetError, match="no code mapped"):
        load_bias(OWN, offset=FileOffset(1 << 40), address=VirtAddr(0))


def test_image_with_an_odd_path_that_was_deleted(tmp_path: Path) -> None:
    program = tmp_path / "new\nline and space"
    program.write_bytes(Path("/bin/cat").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"x")
        process.stdin.flush()
        process.stdout.read(1)  # it runs
        program.unlink()
        assert len(image_ranges(Pid(process.pid))) >= 2


def test_memory_that_is_not_there_is_none() -> None:
    buffer = ctypes.create_string_buffer(b"what is here")
    address = VirtAddr(ctypes.addressof(buffer))
    assert read_memory(OWN, address, 12) == b"what is here"
    assert read_memory(OWN, VirtAddr(8), 8) is None
    assert read_memory(OWN, VirtAddr((1 << 64) - 8), 8) is None
    end = max(r.end for r in memory_ranges(OWN) if r.path == "[stack]")
    assert read_memory(OWN, VirtAddr(end - 8), 16) is None


def test_process_that_is_gone() -> None:
    for ask in (memory_ranges, image_ranges):
        with pytest.raises(TargetError, match="has ended"):
            ask(Pid(2**22 + 1))
    with pytest.raises(TargetError, match="has ended"):
        read_memory(Pid(2**22 + 1), VirtAddr(4096), 1)
