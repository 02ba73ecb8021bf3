"""Returns, first instructions, and what the emulator makes of small functions."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from spanweld.image import Function, Image, find_functions, find_returns, first_instruction
from spanweld.image.emulator import ARENA, EmulationError, Machine
from spanweld.model import FileOffset, VirtAddr
from tests.unit.image.samples import PLAIN, RustBuilder
from tests.unit.image.test_symbols import AREA


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Functions of known instructions."""
    folder = tmp_path_factory.mktemp("assembled")
    bodies = {
        "push": "push %rbp; pop %rbp; ret",
        "frame": "sub $0x738, %rsp; add $0x738, %rsp; ret",
        "load": "mov (%rdi), %rax; ret",
        "rip_load": "mov data(%rip), %rax; ret",
        "from_stack": "mov 8(%rsp), %rax; ret",
        "thread_local": "mov %fs:0, %rax; ret",
        "address": "lea 8(%rdi), %rax; ret",
        "saves": "mov %rdi, %rbx; ret",
        "jumps": "jmp push",
        "jumps_by_slot": "jmp *slot(%rip)",
        "jumps_by_register": "jmp *%rax",
        "calls": "call push; ret",
        "two": "test %rdi, %rdi; je 1f; ret; 1: xor %eax, %eax; ret",
        "stores": "mov %rdi, %fs:-8; ret",
        "swaps": "mov (%rdi), %rax; xchg %rax, %fs:-16; ret",
        "branches": "cmp $5, %rsi; jb 1f; mov %rdi, %fs:-8; ret; 1: mov %rdi, %fs:-16; ret",
        "wide": "movups (%rdi), %xmm0; movups %xmm0, %fs:-24; ret",
        "narrow": "mov %edi, %fs:-8; ret",
        "loops": "1: jmp 1b",
        "privileged": "hlt",
        "thunk": "lea data(%rip), %rdi; jmp two",
        "thunk_to_nowhere": "jmp *%rax",
        "thunk_to_computed": "jmp computed",
        "computed": "jmp *%rdi",
        "wild": "mov %rdi, (%rdi); ret",
    }
    text = "".join(
        f".globl {name}\n.type {name}, @function\n{name}: {body}\n.size {name}, .-{name}\n"
        for name, body in bodies.items()
    )
    (folder / "main.s").write_text(
        ".data\ndata: .quad 1\n.balign 8\nslot: .quad two\n.text\n.globl main\nmain: ret\n"
        f"{text}.section .note.GNU-stack\n"
    )
    subprocess.run(["cc", "-o", "main", "main.s"], cwd=folder, check=True)
    return folder / "main"


def _function(path: Path, name: str) -> Function:
    output = subprocess.run(["nm", "-S", str(path)], capture_output=True, text=True, check=True).stdout
    match = re.search(rf"^([0-9a-f]+) ([0-9a-f]+) T {name}$", output, re.MULTILINE)
    assert match is not None
    address = int(match[1], 16)
    with Image.open(path) as image:
        offset = image.file_offset(address)
    assert offset is not None
    return Function(name, VirtAddr(address), int(match[2], 16), FileOffset(offset))


@pytest.mark.parametrize(
    ("name", "touches_memory", "early_return"),
    [
        ("push", False, True),
        ("frame", False, True),
        ("load", True, True),
        ("rip_load", True, True),
        ("from_stack", False, True),
        ("thread_local", True, True),
        ("address", False, True),
        ("saves", False, False),
        ("jumps", False, False),
        ("calls", False, False),
    ],
)
def test_first_instruction(assembled: Path, name: str, touches_memory: bool, early_return: bool) -> None:
    with Image.open(assembled) as image:
        first = first_instruction(image, _function(assembled, name))
    assert first is not None
    assert (first.touches_memory, first.early_return) == (touches_memory, early_return)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("two", 2),
        ("push", 1),
        ("jumps", 1),
        ("thunk", 2),
        ("thunk_to_nowhere", 0),
        ("thunk_to_computed", 0),
        ("jumps_by_register", 0),
        ("loops", 0),
    ],
)
def test_returns(assembled: Path, name: str, count: int) -> None:
    content = assembled.read_bytes()
    with Image.open(assembled) as image:
        returns = find_returns(image, _function(assembled, name))
    assert len(returns) == count
    assert all(content[offset] == 0xC3 for offset in returns)


@pytest.mark.parametrize(("name", "other"), [("jumps", "push"), ("jumps_by_slot", "two")])
def test_returns_of_the_function_that_is_jumped_to(assembled: Path, name: str, other: str) -> None:
    with Image.open(assembled) as image:
        returns = find_returns(image, _function(assembled, name))
        assert returns == find_returns(image, _function(assembled, other))
    assert returns


@pytest.mark.parametrize("level", ["0", "3"])
def test_returns_agree_with_objdump(rust: RustBuilder, level: str) -> None:
    path = rust(PLAIN, f"-Copt-level={level}")
    with Image.open(path) as image:
        [function] = find_functions(image, AREA)
        returns = find_returns(image, function)
        base = function.address - function.file_offset
    end = function.address + function.size
    output = subprocess.run(
        ["objdump", "-d", f"--start-address={function.address}", f"--stop-address={end}", str(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = [int(line, 16) - base for line in re.findall(r"^\s*([0-9a-f]+):\s+c3\s", output, re.MULTILINE)]
    assert list(returns) == expected
    assert expected


MARKER = 0x1122334455667788


@pytest.mark.parametrize(
    ("name", "arguments", "places"),
    [
        ("stores", (MARKER,), [-8]),
        ("swaps", (ARENA,), [-16]),
        ("branches", (MARKER, 7), [-8]),
        ("branches", (MARKER, 3), [-16]),
        ("wide", (ARENA,), [-24]),
        ("narrow", (MARKER,), []),
        ("calls", (MARKER,), []),
    ],
)
def test_emulation(assembled: Path, name: str, arguments: tuple[int, ...], places: list[int]) -> None:
    with Image.open(assembled) as image:
        machine = Machine(image, 64, 1, MARKER)
        machine.write(ARENA, MARKER, 8)
        machine.call(_function(assembled, name).address, arguments, 100)
        assert machine.find_written(MARKER) == places


@pytest.mark.parametrize("name", ["loops", "privileged", "wild"])
def test_emulation_ends_where_it_can_not_go_on(assembled: Path, name: str) -> None:
    with Image.open(assembled) as image:
        machine = Machine(image, 64, 1, MARKER)
        with pytest.raises(EmulationError):
            machine.call(_function(assembled, name).address, (0x10,), 100)
