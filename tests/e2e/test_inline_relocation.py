"""Functions of real images: each can be patched or is refused; what is displaced stays the same."""

from __future__ import annotations

import random
import re
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from spanweld.image import Entry, Image, find_entry, find_increment
from spanweld.image.entry import JUMP_SIZE, jump, relocate
from spanweld.image.symbols import Function
from spanweld.model import VirtAddr
from spanweld.plan import make_plan
from spanweld.probes import tokio_tasks
from spanweld.writers.inline.writer import serves
from tests.matrix.cells import REPRESENTATIVE, build
from tests.support.services import binary

FUNCTIONS = 1500
SERVICES = ("lab", "users", "store", "minimal", "sockets", "front", "middle", "back", "relay")
CELLS = {str(cell): cell for cell in REPRESENTATIVE}
BIAS = 0x5555_5555_0000
MOVED = BIAS - (64 << 20)
ADDRESS_SIZE = 8
_LINE = re.compile(r"^\s*([0-9a-f]+):\t(.*)$", re.MULTILINE)


def functions_of(image: Image) -> list[Function]:
    with image.path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        found = {
            symbol["st_value"]: (symbol.name, symbol["st_size"])
            for symbol in table.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_size"]
        }
    result = []
    for address, (name, size) in found.items():
        offset = image.file_offset(address)
        if offset is not None:
            result.append(Function(name, VirtAddr(address), size, offset))
    return result


def disassemble(code: bytes, address: int, folder: Path) -> list[str]:
    """By binutils, which had no part in the relocation; addresses as such, without the forms of a branch."""
    (folder / "code").write_bytes(code)
    command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", "--no-show-raw-insn", "-M", "intel"]
    output = subprocess.run(
        [*command, f"--adjust-vma={address:#x}", str(folder / "code")],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    lines = []
    for _, text in _LINE.findall(output):
        # `[rip+0x10]        # 0x1234` means the latter.
        meant = re.sub(r"\[rip[+-]0x[0-9a-f]+\](.*?)\s*# (0x[0-9a-f]+)", r"[\2]\1", text)
        lines.append(" ".join(meant.split()))
    # A nop may have prefixes that make it longer; the encoder leaves out what says nothing.
    return [line.replace("data16 ", "") if "nop" in line else line for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "profile"), [("lab", "release"), ("users", "release"), ("lab", "debug")])
def test_displaced_instructions_are_the_same_elsewhere(name: str, profile: str, tmp_path: Path) -> None:
    with Image.open(binary(name, profile)) as image:
        functions = random.Random(1).sample(functions_of(image), FUNCTIONS)
        moved = calls = 0
        for function in functions:
            entry = find_entry(image, function)
            if isinstance(entry, str):
                assert function.name in entry
                continue
            moved += 1
            calls += entry.ends_in_call
            # Each by its last bytes; to disassemble all takes a minute.
            assert_same_elsewhere(entry, tmp_path if moved % 10 == 0 or entry.ends_in_call else None)
    assert moved > FUNCTIONS // 2
    assert calls


def assert_same_elsewhere(entry: Entry, folder: Path | None) -> None:
    """What is displaced does elsewhere what it did, and goes on behind it. Disassembled in a folder."""
    code = relocate(entry, BIAS, MOVED)
    behind = BIAS + entry.address + len(entry.code)
    if entry.ends_in_call:
        assert code[-ADDRESS_SIZE:] == behind.to_bytes(ADDRESS_SIZE, "little")
        code = code[:-ADDRESS_SIZE]
    else:
        assert disassemble_jump(code[-JUMP_SIZE:], MOVED + len(code) - JUMP_SIZE) == behind
    if folder is None:
        return
    before_text = disassemble(entry.code, BIAS + entry.address, folder)
    after_text = disassemble(code, MOVED, folder)
    if entry.ends_in_call:
        called = before_text.pop().removeprefix("call ")
        pushed = f"push QWORD PTR [{MOVED + len(code):#x}]"
        assert after_text[-2:] == [pushed, f"jmp {called}"], entry.function.name
        after_text.pop()
    assert before_text == after_text[:-1], entry.function.name


@pytest.mark.parametrize("which", [*SERVICES, *map(str, CELLS)])
def test_the_probe_set_of_a_release_executable(which: str, tmp_path: Path) -> None:
    """All of it is patched, rightly, or there is a reason for each function that is not."""
    path = binary(which, "release") if which in SERVICES else build(CELLS[which])
    plan = make_plan(path)
    patched, refused = 0, []
    with Image.open(path) as image:
        for point in plan.points:
            if serves(point.probe.program):
                entry = find_entry(image, point.function)
                if isinstance(entry, str):
                    refused.append(entry)
                else:
                    patched += 1
                    assert_same_elsewhere(entry, tmp_path)
        for point in plan.points_of(tokio_tasks.WAKES):
            entry = find_entry(image, point.function)
            assert isinstance(entry, Entry), entry
            patched += 1
            assert_same_elsewhere(entry, tmp_path)
        for point in plan.points_of(tokio_tasks.INSTRUMENTATION):
            assert point.taken is not None
            taken = find_increment(image, point.function, point.taken)
            assert isinstance(taken, Entry), taken
            patched += 1
            assert_same_elsewhere(taken, tmp_path)
    assert all(refused)
    assert patched or plan.why_not(tokio_tasks.INSTRUMENTATION)


def disassemble_jump(code: bytes, at: int) -> int:
    assert len(code) == JUMP_SIZE
    assert code[0] == 0xE9
    return at + JUMP_SIZE + int.from_bytes(code[1:], "little", signed=True)


@pytest.mark.parametrize(("name", "profile"), [("lab", "release"), ("users", "release"), ("lab", "debug")])
def test_every_probed_function_can_be_patched(name: str, profile: str) -> None:
    path = binary(name, profile)
    with Image.open(path) as image:
        points = [point for point in make_plan(path).points if serves(point.probe.program)]
        assert {point.probe.program for point in points} == {
            "otel_new_trace_id",
            "otel_build_recording_span",
            "otel_ensure_ended_and_exported",
        }
        for point in points:
            assert isinstance(find_entry(image, point.function), Entry)


@pytest.mark.parametrize("name", ["lab", "users", "front"])
def test_every_instruction_that_takes_a_task_id_can_be_displaced(name: str, tmp_path: Path) -> None:
    path = binary(name, "release")
    behind = MOVED + 0x4000
    with Image.open(path) as image:
        points = make_plan(path).points_of(tokio_tasks.INSTRUMENTATION)
        assert points
        for point in points:
            assert point.taken is not None
            entry = find_increment(image, point.function, point.taken)
            assert isinstance(entry, Entry)
            assert len(entry.code) >= JUMP_SIZE
            code = relocate(entry, BIAS, MOVED, behind)
            assert disassemble_jump(code[-JUMP_SIZE:], MOVED + len(code) - JUMP_SIZE) == behind
            before_text = disassemble(entry.code, BIAS + entry.address, tmp_path)
            assert len(before_text) == 1
            assert "lock xadd" in before_text[0]
            assert before_text == disassemble(code[:-JUMP_SIZE], MOVED, tmp_path)


def test_only_an_increment_is_displaced_within_a_function() -> None:
    path = binary("lab", "release")
    with Image.open(path) as image:
        point = make_plan(path).points_of(tokio_tasks.INSTRUMENTATION)[0]
        assert point.taken is not None
        said = find_increment(image, point.function, VirtAddr(point.taken + 1))
        assert isinstance(said, str)
        assert "no lock xadd" in said


def test_a_jump_that_does_not_reach_is_an_error() -> None:
    assert jump(0x1000, 0x2000) == b"\xe9\xfb\x0f\x00\x00"
    with pytest.raises(ValueError, match="too far"):
        jump(0x1000, 0x1000 + (1 << 32))
