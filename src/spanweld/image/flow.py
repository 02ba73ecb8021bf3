"""What a function does with its arguments: which fields it reads, writes and copies, whom it calls.

A walk over the function's blocks, each once and after those that lead to it, with the origin of each
value where that is known: an argument plus a distance, the stack, what was loaded from a field. Where
ways through the code meet, only what all of them agree on is kept; what a loop brings back to its
begin is not asked, nor what comes right after a call, which may never return, if there is another way.
So the result is evidence of what the function is, and no proof of what it does. Code that only an
unwinding panic reaches is left out.

``follow_all`` asks the other question: what *may* come to a place. Where ways meet, all that any of them
brings is kept (``OneOf``), also what comes after a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import iced_x86 as x86

from spanweld.image.code import decode
from spanweld.image.elf import Image
from spanweld.image.symbols import Function

if TYPE_CHECKING:
    # At run time these are plain numbers; only the stubs have them as types.
    from iced_x86._iced_x86_py import OpKind, Register

_R = x86.Register
_M = x86.Mnemonic
_FULL = x86.RegisterExt.full_register
_ARGUMENTS = (_R.RDI, _R.RSI, _R.RDX, _R.RCX, _R.R8, _R.R9)
_CLOBBERED = (_R.RAX, *_ARGUMENTS, _R.R10, _R.R11)
_MASK = (1 << 64) - 1
_WORD, _WIDEST = 8, 64
_MAX_COPY = 1 << 12
# More than any function of the SDK has; a hostile file shall not take long.
_MAX_KNOWN = 1 << 10
_MAX_DEPTH = 6
# Of a struct that an argument points to; of what may be in one place.
_MAX_POINTED = 1 << 9
# Entries of states that are looked through for that, in one function.
_MAX_SCANNED = 1 << 19
_MAX_OPTIONS = 6

STACK = -1
"""The base of addresses on the function's own stack."""
_ALIGNED_STACK = -2

Base = int
"""An argument (0 for rdi, 1 for rsi, …) or ``STACK``."""


@dataclass(frozen=True, slots=True)
class Pointer:
    """``base`` plus ``offset`` bytes. For an argument, also the argument itself."""

    base: Base
    offset: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """``size`` bytes read at ``offset`` from ``base``, which in turn may have been loaded."""

    base: Pointer | Loaded
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Called:
    """What the call at the address ``call`` returned in rax (part 0) or rdx (part 1)."""

    call: int
    part: int


@dataclass(frozen=True, slots=True)
class Number:
    """A constant, without sign."""

    value: int


@dataclass(frozen=True, slots=True)
class Parts:
    """What a wide load from the stack holds: (distance, value, bytes) of what is known in it."""

    items: tuple[tuple[int, Value, int], ...]


@dataclass(frozen=True, slots=True)
class Bits:
    """Something of which single bits are set or cleared: ``x | ones``, ``x & ~zeros``."""

    ones: int
    zeros: int


@dataclass(frozen=True, slots=True)
class OneOf:
    """What may be in a place, by different ways; something unknown may be there, too."""

    options: frozenset[Value]


Value = Pointer | Loaded | Called | Number | Parts | Bits | OneOf


def options(value: Value | None) -> frozenset[Value]:
    """All that a value may be, as far as it is known."""
    if value is None:
        return frozenset()
    return value.options if isinstance(value, OneOf) else frozenset((value,))


@dataclass(frozen=True, slots=True)
class Access:
    """A field that is read or written. ``base`` is an argument (with offset 0) or what was loaded.

    ``value`` is what is written, where that is known.
    """

    base: Pointer | Loaded
    offset: int
    size: int
    value: Value | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call. ``target`` is a function's address, or ``slot`` the place that the target is loaded from.

    ``arguments`` are the six registers of arguments as they are then. ``pointed`` is what is known of the
    stack behind those of them that point there, as writes to the arguments; ``follow_all`` alone has it.
    """

    address: int
    target: int | None
    slot: Loaded | None
    arguments: tuple[Value | None, ...]
    pointed: tuple[Access, ...] = ()


@dataclass(slots=True)
class Flow:
    """All that the walk has seen, in the order of the walk.

    ``copies`` are what calls with the arguments of memcpy, or what is like it, write to fields of arguments,
    as far as the source is known; ``copied`` is what they read of fields of arguments, wherever it goes.
    ``jumps`` are those by which the function leaves for another one, as calls. ``compares`` are the values
    that are compared with constants. ``increments_shared``: something is counted up with a locked
    instruction, as ``Arc::clone`` does.
    """

    reads: list[Access] = field(default_factory=list)
    writes: list[Access] = field(default_factory=list)
    copies: list[Access] = field(default_factory=list)
    copied: list[Access] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    jumps: list[Call] = field(default_factory=list)
    compares: list[tuple[Value, int]] = field(default_factory=list)
    increments_shared: bool = False


_State = dict[tuple[int, int], tuple[Value, int]]
"""(register, 0) or (stack base, offset) → value and bytes. Registers are positive numbers, bases negative."""


def follow(image: Image, function: Function, resolve: Callable[[int], int | None]) -> Flow:
    """Walk over a function. ``resolve`` gives the address that the loader stores in a slot."""
    return _follow(image, function, _Walk(resolve, function, keeps_all=False))


def follow_all(image: Image, function: Function, resolve: Callable[[int], int | None]) -> Flow:
    """The same, with all that may be in each place."""
    return _follow(image, function, _Walk(resolve, function, keeps_all=True))


def _follow(image: Image, function: Function, walk: _Walk) -> Flow:
    meet = _either if walk.keeps_all else _common
    blocks = _split(decode(image, function))
    order = _order(blocks, function.address)
    arriving: dict[int, _State] = {function.address: walk.known}
    # What goes on after a call that ends a block: the call may be one that never returns.
    after_call: dict[int, _State] = {}
    # Where an indirect jump of a jump table goes is not read: the blocks that nothing else leads to.
    dispatched: _State | None = None
    for start in order:
        state = arriving.get(start, after_call.get(start))
        if walk.keeps_all and start in arriving and start in after_call:
            state = _either(arriving[start], after_call[start])
        if state is None:
            if dispatched is None:
                continue
            state = dispatched
        walk.known = dict(state)
        block = blocks[start]
        for instruction in block.instructions:
            walk.step(instruction)
        states = after_call if block.ends_in_call else arriving
        for successor in block.successors:
            before = states.get(successor)
            states[successor] = walk.known if before is None else meet(before, walk.known)
        if block.is_dispatch:
            dispatched = walk.known if dispatched is None else meet(dispatched, walk.known)
    return walk.flow


@dataclass(slots=True)
class _Block:
    instructions: list[x86.Instruction]
    successors: list[int]
    ends_in_call: bool
    is_dispatch: bool


def _split(instructions: list[x86.Instruction]) -> dict[int, _Block]:
    """Address → block, in the order of the code."""
    leaders = set()
    for instruction in instructions:
        if instruction.flow_control in _BRANCHES:
            leaders.add(instruction.near_branch_target)
    blocks: dict[int, _Block] = {}
    block: _Block | None = None
    for instruction in instructions:
        if block is None or instruction.ip in leaders:
            if block is not None:
                block.successors.append(instruction.ip)
            block = blocks[instruction.ip] = _Block([], [], ends_in_call=False, is_dispatch=False)
        block.instructions.append(instruction)
        flow = instruction.flow_control
        block.ends_in_call = flow in _CALLS
        if flow in _BRANCHES:
            block.successors.append(instruction.near_branch_target)
        if flow == x86.FlowControl.CONDITIONAL_BRANCH:
            block.successors.append(instruction.next_ip)
        if flow == x86.FlowControl.INDIRECT_BRANCH:
            block.is_dispatch = True
        if flow not in _GOING_ON:
            block = None
    for block in blocks.values():
        block.successors = [successor for successor in block.successors if successor in blocks]
    return blocks


def _order(blocks: dict[int, _Block], entry: int) -> list[int]:
    """Reverse postorder from the entry, then what it does not reach."""
    if entry not in blocks:
        return []
    done: list[int] = []
    seen = {entry}
    stack = [(entry, iter(blocks[entry].successors))]
    while stack:
        start, successors = stack[-1]
        successor = next((successor for successor in successors if successor not in seen), None)
        if successor is None:
            done.append(start)
            stack.pop()
        else:
            seen.add(successor)
            stack.append((successor, iter(blocks[successor].successors)))
    done.reverse()
    return done + [start for start in blocks if start not in seen]


class _Walk:
    def __init__(self, resolve: Callable[[int], int | None], function: Function, *, keeps_all: bool) -> None:
        self.flow = Flow()
        self.keeps_all = keeps_all
        self._may_scan = _MAX_SCANNED
        self._resolve = resolve
        self._inside = range(function.address, function.address + function.size)
        self._infos = x86.InstructionInfoFactory()
        self.known: _State = {
            (register, 0): (Pointer(number, 0), 8) for number, register in enumerate(_ARGUMENTS)
        }
        self._set(_R.RSP, Pointer(STACK, 0))

    def step(self, instruction: x86.Instruction) -> None:
        """Take one instruction into account."""
        flow = instruction.flow_control
        if flow == x86.FlowControl.NEXT:
            self._plain(instruction)
        elif flow in _CALLS:
            self._call(instruction)
        elif flow == x86.FlowControl.INDIRECT_BRANCH or (
            flow == x86.FlowControl.UNCONDITIONAL_BRANCH
            and instruction.near_branch_target not in self._inside
        ):
            self.flow.jumps.append(self._called(instruction))

    def _called(self, instruction: x86.Instruction) -> Call:
        """A call, or a jump in place of one."""
        target: int | None = None
        slot: Loaded | None = None
        if instruction.op0_kind == x86.OpKind.NEAR_BRANCH64:
            target = instruction.near_branch_target
        elif instruction.op_kind(0) == x86.OpKind.REGISTER:
            value = self._get(instruction.op0_register)
            slot = value if isinstance(value, Loaded) else None
            target = value.value if isinstance(value, Number) else None
        elif instruction.is_ip_rel_memory_operand:
            target = self._resolve(instruction.memory_displacement)
        else:
            place = self._place(instruction)
            if place is not None:
                slot = _load(place[0], place[1], 8)
        arguments = tuple(self._get(register) for register in _ARGUMENTS)
        pointed = tuple(self._pointed(arguments)) if self.keeps_all else ()
        return Call(instruction.ip, target, slot, arguments, pointed)

    def _call(self, instruction: x86.Instruction) -> None:
        call = self._called(instruction)
        self.flow.calls.append(call)
        self._copy(*call.arguments[:3])
        for register in _CLOBBERED:
            self.known.pop((register, 0), None)
        for key in [key for key in self.known if _R.ZMM0 <= key[0] <= _R.ZMM31]:
            del self.known[key]
        self._set(_R.RAX, Called(instruction.ip, 0))
        self._set(_R.RDX, Called(instruction.ip, 1))

    def _pointed(self, arguments: tuple[Value | None, ...]) -> Iterator[Access]:
        for number, argument in enumerate(arguments):
            for pointer in options(argument):
                if not isinstance(pointer, Pointer) or pointer.base >= 0:
                    continue
                self._may_scan -= len(self.known)
                if self._may_scan < 0:
                    return
                for (base, offset), (value, size) in self.known.items():
                    if base == pointer.base and 0 <= offset - pointer.offset < _MAX_POINTED:
                        yield Access(Pointer(number, 0), offset - pointer.offset, size, value)

    def _copy(self, to: Value | None, source: Value | None, size: Value | None) -> None:
        if not (isinstance(source, Pointer) and isinstance(size, Number)):
            return
        if source.base >= 0 and size.value <= _MAX_COPY:
            self.flow.copied.append(Access(Pointer(source.base, 0), source.offset, size.value))
        if not isinstance(to, Pointer):
            return
        if to.base < 0 or size.value > _MAX_COPY:
            return
        if source.base >= 0:
            whole = Loaded(Pointer(source.base, 0), source.offset, size.value)
            self.flow.copies.append(Access(Pointer(to.base, 0), to.offset, size.value, whole))
            return
        for (base, offset), (value, width) in self.known.items():
            if base == source.base and 0 <= offset - source.offset <= size.value - width:
                place = to.offset + offset - source.offset
                self.flow.copies.append(Access(Pointer(to.base, 0), place, width, value))

    def _plain(self, instruction: x86.Instruction) -> None:
        mnemonic = instruction.mnemonic
        if mnemonic == _M.PUSH:
            self._move_stack(-8)
            self._store(Pointer(STACK, 0), 0, 8, self._source(instruction, 0), on_top=True)
            return
        if mnemonic == _M.POP and instruction.op0_kind == x86.OpKind.REGISTER:
            top = self._get(_R.RSP)
            value = self._from_stack(top.base, top.offset, 8) if isinstance(top, Pointer) else None
            self._move_stack(8)
            self._set(instruction.op0_register, value)
            return
        if mnemonic in _STRING_MOVES and instruction.has_rep_prefix:
            count = self._get(_R.RCX)
            if isinstance(count, Number):
                size = Number(count.value * _STRING_MOVES[mnemonic])
                self._copy(self._get(_R.RDI), self._get(_R.RSI), size)
            self._other(instruction)
            return
        if mnemonic in _MOVES and instruction.op_count == 2 and instruction.op0_kind in _PLAIN:
            self._move(instruction)
            return
        if instruction.op_count == 2 and mnemonic == _M.LEA:
            place = self._place(instruction)
            pointer: Pointer | None = None
            if place is not None and isinstance(place[0], Pointer):
                pointer = Pointer(place[0].base, place[0].offset + place[1])
            self._set(instruction.op0_register, pointer)
            return
        if mnemonic in (_M.ADD, _M.SUB) and self._add(instruction):
            return
        if mnemonic == _M.AND and instruction.op0_register == _R.RSP:
            self._set(_R.RSP, Pointer(_ALIGNED_STACK, 0))
            return
        if mnemonic in (_M.OR, _M.AND) and self._change_bits(instruction):
            return
        if mnemonic in _CONDITIONAL_MOVES and self.keeps_all:
            old, new = self._get(instruction.op0_register), self._source(instruction, 1)
            self._set(instruction.op0_register, _any_of(old, new))
            return
        if mnemonic in _JOINS and self._join(instruction):
            return
        if mnemonic == _M.CMP and _is_immediate(instruction.op1_kind):
            value = self._source(instruction, 0)
            if value is not None:
                self.flow.compares.append((value, int(instruction.immediate(1)) & _MASK))
        if mnemonic == _M.INC and instruction.has_lock_prefix:
            self.flow.increments_shared = True
        self._other(instruction)

    def _move(self, instruction: x86.Instruction) -> None:
        if instruction.op0_kind == x86.OpKind.MEMORY:
            place = self._place(instruction)
            size = x86.MemorySizeExt.size(instruction.memory_size)
            value = self._source(instruction, 1)
            if place is None:
                return
            self._store(place[0], place[1], size, value)
            return
        value = self._source(instruction, 1)
        self._set(instruction.op0_register, value)

    def _add(self, instruction: x86.Instruction) -> bool:
        if instruction.op0_kind != x86.OpKind.REGISTER or not _is_immediate(instruction.op1_kind):
            return False
        value = self._get(instruction.op0_register)
        if not isinstance(value, Pointer):
            return False
        amount = int(instruction.immediate(1)) & _MASK
        amount -= (amount >> 63) << 64
        if instruction.mnemonic == _M.SUB:
            amount = -amount
        pointer = Pointer(value.base, value.offset + amount)
        self._set(instruction.op0_register, pointer)
        return True

    def _change_bits(self, instruction: x86.Instruction) -> bool:
        if instruction.op0_kind != x86.OpKind.REGISTER or not _is_immediate(instruction.op1_kind):
            return False
        number = int(instruction.immediate(1))
        is_or = instruction.mnemonic == _M.OR
        size = x86.RegisterExt.size(instruction.op0_register)
        ones, zeros = (number, 0) if is_or else (0, ~number)
        mask = (1 << 8 * size) - 1
        self._set(instruction.op0_register, Bits(ones & mask, zeros & mask))
        return True

    def _join(self, instruction: x86.Instruction) -> bool:
        """Two words become the halves of a wide register."""
        if instruction.op_kind(instruction.op_count - 1) != x86.OpKind.REGISTER:
            return False
        low = self._get(instruction.op_register(instruction.op_count - 2))
        high = self._get(instruction.op_register(instruction.op_count - 1))
        items = tuple(
            (distance, value, _WORD)
            for distance, value in ((0, low), (_WORD, high))
            if value is not None and not isinstance(value, Parts)
        )
        self._set(instruction.op0_register, Parts(items) if items else None)
        return True

    def _other(self, instruction: x86.Instruction) -> None:
        """An instruction of no special meaning: note what it reads, forget what it changes."""
        info = self._infos.info(instruction)
        for memory in info.used_memory():
            place = self._place(instruction)
            if place is None:
                continue
            size = x86.MemorySizeExt.size(memory.memory_size)
            if memory.access in READING:
                self._note_read(place, size)
            if memory.access in WRITING:
                self._store(place[0], place[1], size, None)
        for register in info.used_registers():
            if register.access in WRITING:
                self._set(register.register, None)

    def _place(self, instruction: x86.Instruction) -> tuple[Pointer | Loaded, int] | None:
        """(what the address is relative to, distance) of a memory operand, where both are known."""
        if instruction.memory_index != _R.NONE or instruction.memory_segment in (_R.FS, _R.GS):
            return None
        value = self._get(instruction.memory_base)
        offset = instruction.memory_displacement
        offset -= (offset >> 63) << 64
        if isinstance(value, Pointer):
            return Pointer(value.base, 0), value.offset + offset
        return (value, offset) if isinstance(value, Loaded) else None

    def _source(self, instruction: x86.Instruction, operand: int) -> Value | None:
        kind = instruction.op_kind(operand)
        if kind == x86.OpKind.REGISTER:
            return self._get(instruction.op_register(operand))
        if _is_immediate(kind):
            return Number(int(instruction.immediate(operand)) & _MASK)
        if kind != x86.OpKind.MEMORY:
            return None
        if instruction.is_ip_rel_memory_operand and instruction.memory_size == x86.MemorySize.UINT64:
            # Most often the global offset table's, of a function that is called by a register.
            word = self._resolve(instruction.ip_rel_memory_address)
            return Number(word) if word else None
        place = self._place(instruction)
        if place is None:
            return None
        size = x86.MemorySizeExt.size(instruction.memory_size)
        base, offset = place
        if isinstance(base, Pointer) and base.base < 0:
            return self._from_stack(base.base, offset, size)
        self._note_read(place, size)
        return _load(base, offset, size)

    def _from_stack(self, base: Base, offset: int, size: int) -> Value | None:
        kept = self.known.get((base, offset))
        if kept is not None and kept[1] == size:
            return kept[0]
        if size <= _WORD:
            return None
        parts = [
            (start - offset, *kept)
            for start in range(offset, offset + size)
            if (kept := self.known.get((base, start))) is not None and start + kept[1] <= offset + size
        ]
        return Parts(tuple(parts)) if parts else None

    def _note_read(self, place: tuple[Pointer | Loaded, int], size: int) -> None:
        if not isinstance(place[0], Pointer) or place[0].base >= 0:
            self.flow.reads.append(Access(place[0], place[1], size))

    def _store(
        self, base: Pointer | Loaded, offset: int, size: int, value: Value | None, *, on_top: bool = False
    ) -> None:
        if on_top:
            top = self._get(_R.RSP)
            if not isinstance(top, Pointer):
                return
            base, offset = Pointer(top.base, 0), top.offset
        if isinstance(value, Parts):
            self._store(base, offset, size, None)
            for distance, part, width in value.items:
                self._store(base, offset + distance, width, part)
            return
        if self.keeps_all and isinstance(value, Number) and size == 2:
            # By another way two flags may come there one by one.
            for number in range(size):
                self._store(base, offset + number, 1, Number(value.value >> 8 * number & 0xFF))
            return
        if not isinstance(base, Pointer) or base.base >= 0:
            self.flow.writes.append(Access(base, offset, size, value))
            return
        for start in range(offset - _WIDEST + 1, offset + size):
            kept = self.known.get((base.base, start))
            if kept is not None and start + kept[1] > offset:
                del self.known[base.base, start]
        if value is not None and len(self.known) < _MAX_KNOWN:
            self.known[base.base, offset] = value, size

    def _move_stack(self, amount: int) -> None:
        top = self._get(_R.RSP)
        if isinstance(top, Pointer):
            self._set(_R.RSP, Pointer(top.base, top.offset + amount))

    def _get(self, register: Register) -> Value | None:
        kept = self.known.get((_FULL(register), 0))
        return kept[0] if kept is not None else None

    def _set(self, register: Register, value: Value | None) -> None:
        key = (_FULL(register), 0)
        if value is None:
            self.known.pop(key, None)
        else:
            self.known[key] = value, 8


def _is_immediate(kind: OpKind) -> bool:
    return x86.OpKind.IMMEDIATE8 <= kind <= x86.OpKind.IMMEDIATE32TO64


def _load(base: Pointer | Loaded, offset: int, size: int) -> Loaded | None:
    """None for what is reached through more pointers than are asked for."""
    outer: Pointer | Loaded = base
    for _ in range(_MAX_DEPTH):
        if isinstance(outer, Pointer):
            return Loaded(base, offset, size)
        outer = outer.base
    return None


def _common(one: _State, other: _State) -> _State:
    return {key: value for key, value in one.items() if other.get(key) == value}


def _either(one: _State, other: _State) -> _State:
    """All that either has; what would be too much of it, or of another size, is forgotten."""
    result = dict(one)
    for key, (value, size) in other.items():
        before = result.setdefault(key, (value, size))
        if before == (value, size):
            continue
        both = _any_of(before[0], value)
        if both is None or before[1] != size:
            del result[key]
        else:
            result[key] = both, size
    return result


def _any_of(one: Value | None, other: Value | None) -> Value | None:
    both = options(one) | options(other)
    if not both or len(both) > _MAX_OPTIONS:
        return None
    return OneOf(both) if len(both) > 1 else next(iter(both))


_BRANCHES = frozenset((x86.FlowControl.CONDITIONAL_BRANCH, x86.FlowControl.UNCONDITIONAL_BRANCH))
_CALLS = frozenset((x86.FlowControl.CALL, x86.FlowControl.INDIRECT_CALL))
_GOING_ON = frozenset((x86.FlowControl.NEXT, *_CALLS))
_MOVES = frozenset(
    (
        *(_M.MOV, _M.MOVZX, _M.MOVQ, _M.MOVSD),
        *(_M.MOVUPS, _M.MOVAPS, _M.MOVDQU, _M.MOVDQA, _M.MOVUPD, _M.MOVAPD),
        *(_M.VMOVUPS, _M.VMOVAPS, _M.VMOVDQU, _M.VMOVDQA, _M.VMOVUPD, _M.VMOVAPD, _M.VMOVQ),
        *(_M.VMOVDQU64, _M.VMOVDQA64),
    )
)
_PLAIN = (x86.OpKind.REGISTER, x86.OpKind.MEMORY)
_CONDITIONAL_MOVES = frozenset(
    (
        *(_M.CMOVE, _M.CMOVNE, _M.CMOVA, _M.CMOVAE, _M.CMOVB, _M.CMOVBE, _M.CMOVG, _M.CMOVGE, _M.CMOVL),
        *(_M.CMOVLE, _M.CMOVS, _M.CMOVNS, _M.CMOVO, _M.CMOVNO, _M.CMOVP, _M.CMOVNP),
    )
)
_JOINS = frozenset((_M.PUNPCKLQDQ, _M.VPUNPCKLQDQ))
_STRING_MOVES = {_M.MOVSB: 1, _M.MOVSQ: 8}
READING = frozenset(
    (x86.OpAccess.READ, x86.OpAccess.COND_READ, x86.OpAccess.READ_WRITE, x86.OpAccess.READ_COND_WRITE)
)
WRITING = frozenset(
    (x86.OpAccess.WRITE, x86.OpAccess.COND_WRITE, x86.OpAccess.READ_WRITE, x86.OpAccess.READ_COND_WRITE)
)
