"""Where tokio's tasks get their ids and are woken: places in the code of an image.

A task is spawned in many ways (``spawn``, ``spawn_local``, ``spawn_blocking``, …), each of them generic
and inlined as the compiler likes. But each takes the new task's id from one counter, and the code for
that is always the same: ``lock xadd`` on it, a comparison with 0, and a branch back, since an id is
never 0. On that branch the id is in a register. A probe there costs no single step, and says the id
without any layout. Before tokio 1.40 there is no comparison: the probe is on the instruction after
``lock xadd``. Where nothing is optimised, the counter is only used in ``Id::next``, which returns it.

A task's waker is its address with one static ``RawWakerVTable``, whose functions are therefore never inlined.
Without symbols it is told by its first one, which adds one reference (0x40) to the task and returns
that very vtable.

Source: tokio ``src/runtime/task/{id,waker,state}.rs``, 1.22 to 1.54.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import iced_x86 as x86

from spanweld.image.code import constants_of, decode, find_returns, first_instruction
from spanweld.image.elf import MAX_SECTION, Image
from spanweld.image.pointers import Pointers
from spanweld.image.stripped import find_task_vtables
from spanweld.image.symbols import (
    FoundBy,
    Function,
    find_functions,
    find_objects,
    has_symbols,
)
from spanweld.image.unwind import FunctionTable
from spanweld.model import FileOffset, VirtAddr

_NEXT = "tokio::runtime::task::*Id::next"
_COUNTER = "tokio::runtime::task::*Id::next::NEXT_ID"
_NAME = "tokio::runtime::task::id::Id::next"
_WAKERS = ("tokio::runtime::task::waker::wake_by_val", "tokio::runtime::task::waker::wake_by_ref")

# lock xadd [rip + …], r64: the counter itself; mov r64, [rip + …]: its address from the loader's table, or
# lea r64, [rip + …], which the linker makes of that where the address is fixed, as in static executables.
_OF_COUNTER = re.compile(rb"\xf0[\x48\x4c]\x0f\xc1[\x05\x0d\x15\x1d\x25\x2d\x35\x3d](....)", re.DOTALL)
_LOADS = re.compile(rb"(?=[\x48\x4c][\x8b\x8d][\x05\x0d\x15\x1d\x25\x2d\x35\x3d](....))", re.DOTALL)
_LEA = 0x8D
_LOAD_SIZE = 7
_LONGEST = 9
# From the load of the counter's address to the lock xadd, and all after that: bytes and instructions.
_MAX_DISTANCE = 64
_MAX_INSTRUCTIONS = 12
# lock xadd [reg], r64
_XADD = re.compile(rb"\xf0[\x48-\x4f]\x0f\xc1")
_ONE_REFERENCE = 0x40
_MAX_CLONE = 256
_MAX_WAKERS = 1 << 12

REGISTERS = ("ax", "bx", "cx", "dx", "si", "di", "bp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15")
"""The registers that a new id may be in; the BPF programs are given the index (tokio_tasks.h)."""
_REGISTERS: dict[int, int] = {
    register: REGISTERS.index(name)
    for name, register in (
        ("ax", x86.Register.RAX),
        ("bx", x86.Register.RBX),
        ("cx", x86.Register.RCX),
        ("dx", x86.Register.RDX),
        ("si", x86.Register.RSI),
        ("di", x86.Register.RDI),
        ("bp", x86.Register.RBP),
        ("r8", x86.Register.R8),
        ("r9", x86.Register.R9),
        ("r10", x86.Register.R10),
        ("r11", x86.Register.R11),
        ("r12", x86.Register.R12),
        ("r13", x86.Register.R13),
        ("r14", x86.Register.R14),
        ("r15", x86.Register.R15),
    )
}


@dataclass(frozen=True, slots=True)
class IdPlace:
    """An instruction before which the id of a task that is being spawned is in a register.

    ``function`` is what takes the id there, inlined or not. ``register`` is an index into ``REGISTERS``;
    ``instruction`` is what stands at ``offset``. ``taken`` is the address of the ``lock xadd`` that put the
    id there, if the place is behind one.
    """

    function: Function
    offset: FileOffset
    register: int
    instruction: str
    taken: VirtAddr | None = None


@dataclass(frozen=True, slots=True)
class _Taken:
    """A number that the ``lock xadd`` at ``by`` takes from a counter, in ``register`` at ``address``.

    ``never_zero``: there is the branch by which another one is taken where it is 0.
    """

    address: int
    register: int
    text: str
    by: int
    never_zero: bool


def find_new_task_ids(image: Image, *, may_be_zero: bool = False) -> tuple[IdPlace, ...] | str:
    """Every place where a new task gets its id, by address, or a sentence that says why there is none.

    ``may_be_zero``: of tokio before 1.40, where the running task's id has a tag (``TaskIdOffset``). Else,
    without symbols, only a counter that leaves out 0 is taken for that of the tasks.
    """
    if has_symbols(image):
        counters = [(address, FoundBy.SYMBOL) for address in find_objects(image, _COUNTER)]
        if not counters:
            return "no counter of tokio's task ids is in the image"
        takers = _takers(image)
    else:
        takers = _takers(image)
        guessed = _guess_counter(image, takers, may_be_zero=may_be_zero)
        if len(guessed) != 1:
            return "it has no symbols, and no code shows where tokio counts its tasks"
        counters = [(VirtAddr(guessed[0]), FoundBy.CODE)]
    places = [
        place for address, found_by in counters for place in _places(image, takers.get(address, ()), found_by)
    ]
    if not places:
        places = [
            IdPlace(function, offset, REGISTERS.index("ax"), "ret")
            for function in find_functions(image, _NEXT)
            for offset in find_returns(image, function)
        ]
    places.sort(key=lambda place: place.offset)
    return tuple(places) or "no code was found that takes a new task's id"


def find_wakers(image: Image) -> tuple[Function, Function] | str:
    """The functions that wake a task, by value and by reference, whose first argument is its header."""
    if has_symbols(image):
        by_val, by_ref = (find_functions(image, name) for name in _WAKERS)
        if len(by_val) == len(by_ref) == 1:
            return by_val[0], by_ref[0]
        return f"it has {len(by_val)} functions {_WAKERS[0]}"
    table = FunctionTable(image)
    pointers = Pointers(image)
    found = []
    looked_at = 0
    for segment in image.loads:
        if not segment.executable or segment.file_size > MAX_SECTION:
            continue
        for offset, _, _ in image.search(_XADD, segment.offset, segment.file_size, 4):
            start = table.containing(offset - segment.offset + segment.address)
            if start is None or not 0 < table.size(start) <= _MAX_CLONE:
                continue
            looked_at += 1
            if looked_at > _MAX_WAKERS:
                break
            vtable = _cloned_vtable(image, table, pointers, start)
            if vtable is not None and vtable not in found:
                found.append(vtable)
    if len(found) != 1:
        return f"it has no symbols, and {len(found) or 'no'} tables of functions look like a task's waker"
    words = pointers.words(found[0], 4) or ()
    functions = [_function(image, table, word, name) for word, name in zip(words[1:3], _WAKERS, strict=True)]
    by_value, by_reference = functions
    if by_value is None or by_reference is None:
        return "it has no symbols, and the functions of a task's waker have no size"
    return by_value, by_reference


def _takers(image: Image) -> dict[int, list[int]]:
    """Address of a counter → where its next number is taken, or its address to do so."""
    pointers = Pointers(image)
    result: dict[int, list[int]] = defaultdict(list)
    left = MAX_SECTION
    for segment in image.loads:
        if not segment.executable or segment.file_size > left:
            continue
        left -= segment.file_size
        overlap = _MAX_DISTANCE + _LOAD_SIZE
        for offset, piece in image.chunks(segment.offset, segment.file_size, overlap):
            base = offset - segment.offset + segment.address
            for taken in _XADD.finditer(piece):
                at = taken.start()
                if of_counter := _OF_COUNTER.match(piece, at):
                    _note(result, _target(of_counter, base), base + at)
                # Few take a number, and many load an address: these are looked for only before those.
                begin = max(0, taken.end() - _MAX_DISTANCE - _LOAD_SIZE)
                for load in _LOADS.finditer(piece, begin, at):
                    address = _target(load, base)
                    is_itself = piece[load.start() + 1] == _LEA
                    _note(result, address if is_itself else pointers.word(address), base + load.start())
    return result


def _target(match: re.Match[bytes], base: int) -> int:
    """The address that the operand of an instruction means, which ends with the distance to it."""
    [distance] = struct.unpack("<i", match.group(1))
    return base + match.end(1) + int(distance)


def _note(result: dict[int, list[int]], counter: int | None, address: int) -> None:
    if counter and address not in result[counter]:
        result[counter].append(address)


def _places(image: Image, starts: list[int] | tuple[()], found_by: FoundBy) -> Iterator[IdPlace]:
    for start in starts:
        place = _after_increment(image, start)
        if place is None:
            continue
        offset = image.file_offset(place.address)
        if offset is None:
            continue
        function = Function(_NAME, VirtAddr(start), 0, offset, found_by)
        yield IdPlace(function, offset, place.register, place.text, VirtAddr(place.by))


def _after_increment(image: Image, start: int) -> _Taken | None:
    """What is taken by the code from ``start`` on: ``lock xadd``, then, mostly, ``test`` and a branch.

    None for other code.
    """
    code = image.read_memory(start, _MAX_DISTANCE + 2 * _LONGEST)
    if code is None:
        return None
    number: int | None = None
    taken = 0
    tested = False
    counter = x86.Register.NONE
    for count, instruction in enumerate(x86.Decoder(64, code, ip=start)):
        if count > _MAX_INSTRUCTIONS or instruction.is_invalid:
            return None
        if number is None:
            if instruction.mnemonic == x86.Mnemonic.XADD and instruction.has_lock_prefix:
                by_address = instruction.is_ip_rel_memory_operand and count == 0
                by_register = counter != x86.Register.NONE and instruction.memory_base == counter
                no_more = instruction.memory_displacement == 0 and instruction.memory_index == 0
                if by_address or (by_register and no_more):
                    number, taken = instruction.op1_register, instruction.ip
                else:
                    return None
            elif count == 0 and instruction.mnemonic in (x86.Mnemonic.MOV, x86.Mnemonic.LEA):
                counter = instruction.op0_register
            elif counter == x86.Register.NONE or instruction.flow_control != x86.FlowControl.NEXT:
                return None
        elif not tested:
            operands = (instruction.op0_register, instruction.op1_register)
            if instruction.mnemonic != x86.Mnemonic.TEST or operands != (number, number):
                return _without_test(image, instruction, number, taken)
            tested = True
        else:
            if instruction.mnemonic not in (x86.Mnemonic.JE, x86.Mnemonic.JNE) or number not in _REGISTERS:
                return None
            text = x86.Formatter(x86.FormatterSyntax.INTEL).format(instruction)
            is_back = instruction.mnemonic == x86.Mnemonic.JNE or instruction.near_branch_target <= taken
            return _Taken(instruction.ip, _REGISTERS[number], text, taken, is_back)
    return None


def _without_test(image: Image, after: x86.Instruction, number: int, taken: int) -> _Taken | None:
    """The instruction after ``lock xadd``, if a probe may be put there."""
    offset = image.file_offset(after.ip)
    if offset is None or number not in _REGISTERS:
        return None
    first = first_instruction(image, Function("", VirtAddr(after.ip), after.len, offset))
    if first is None or first.touches_memory or first.wide_nop:
        return None
    return _Taken(after.ip, _REGISTERS[number], first.text, taken, never_zero=False)


def _guess_counter(image: Image, takers: Mapping[int, list[int]], *, may_be_zero: bool) -> list[int]:
    """Without symbols: the counter that the code uses which makes tasks, as their vtables show."""
    table = FunctionTable(image)
    vtables = set(find_task_vtables(image))
    found: dict[int, int] = defaultdict(int)
    for counter, starts in takers.items():
        for start in starts:
            begin = table.containing(start)
            if begin is None:
                continue
            place = _after_increment(image, start)
            if place is None or not (place.never_zero or may_be_zero):
                continue
            function = _function(image, table, begin, "")
            if function is not None and _refers_to(image, function, vtables):
                found[counter] += 1
    most = max(found.values(), default=0)
    return [counter for counter, number in found.items() if number == most]


def _refers_to(image: Image, function: Function, addresses: set[int]) -> bool:
    # At a fixed address, they may be numbers in an instruction.
    return any(not addresses.isdisjoint(constants_of(instruction)) for instruction in decode(image, function))


def _cloned_vtable(image: Image, table: FunctionTable, pointers: Pointers, start: int) -> int | None:
    """The vtable that a small function returns, if it is that one's first, and counts a reference."""
    function = _function(image, table, start, "")
    counts = False
    for instruction in decode(image, function) if function is not None else ():
        numbers = constants_of(instruction)
        # Pushed, and popped into a register, where size counts.
        counts |= _ONE_REFERENCE in numbers and instruction.mnemonic in (x86.Mnemonic.MOV, x86.Mnemonic.PUSH)
        if not counts:
            continue
        if instruction.mnemonic == x86.Mnemonic.MOV and instruction.is_ip_rel_memory_operand:
            word = pointers.word(instruction.ip_rel_memory_address)
            numbers = [] if word is None else [word]
        for vtable in numbers:
            words = pointers.words(vtable, 4)
            if words is not None and words[0] == start and all(map(table.is_start, words)):
                return vtable
    return None


def _function(image: Image, table: FunctionTable, start: int, name: str) -> Function | None:
    offset, size = image.file_offset(start), table.size(start)
    if offset is None or not size or not image.is_executable(start):
        return None
    return Function(name, VirtAddr(start), size, offset, FoundBy.CODE)
