"""Instructions of which a jump is to take the place: may it, and what do they become.

They are a function's first ones, or a single one within a function that is as long as the jump.
The jump is five bytes long. The instructions that begin in them are displaced: they run elsewhere, and then
jump back to what follows them. So nothing may lead to a place between the first and the last of these bytes.
The last of them may be a call. Elsewhere that is a push of the address to which it returned, and a jump: so
what is called returns to where it would have, and no address of elsewhere is on the stack. It may also be a
jump, behind which nothing is displaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import iced_x86 as x86

from spanweld.image.code import MAX_FUNCTION
from spanweld.image.elf import Image
from spanweld.image.symbols import Function
from spanweld.model import VirtAddr

JUMP_SIZE = 5
_MAX_INSTRUCTION = 15
_MAX_TABLE = 4096
_MOVABLE = (
    x86.FlowControl.NEXT,
    x86.FlowControl.CONDITIONAL_BRANCH,
    x86.FlowControl.UNCONDITIONAL_BRANCH,
)
_BRANCHES = (
    x86.FlowControl.UNCONDITIONAL_BRANCH,
    x86.FlowControl.CONDITIONAL_BRANCH,
    x86.FlowControl.CALL,
    x86.FlowControl.XBEGIN_XABORT_XEND,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the jump goes, by the image's addresses, and the whole instructions that stand there.

    ``address`` of a function's entry is its first byte, or lies behind the ``endbr64`` that stands there: an
    indirect call must go on finding that.
    """

    function: Function
    address: VirtAddr
    code: bytes

    @property
    def ends_in_call(self) -> bool:
        """Whether it is moved to code that calls without a call: a shadow stack would not have that."""
        return _is_call(_decode(self.code, self.address)[-1])


def find_entry(image: Image, function: Function) -> Entry | str:
    """What a jump at a function's entry would displace, or a sentence why none may be put there."""
    if function.size > MAX_FUNCTION:
        return f"{function.name} is too long to be looked through"
    code = image.read_memory(function.address, function.size)
    if code is None:
        return f"the code of {function.name} is not in the file"
    instructions = list(x86.Decoder(64, code, ip=function.address))
    first = 1 if instructions and instructions[0].mnemonic == x86.Mnemonic.ENDBR64 else 0
    size = first_byte = instructions[0].len if first else 0
    displaced = []
    for instruction in instructions[first:]:
        if size - first_byte >= JUMP_SIZE:
            break
        if instruction.is_invalid:
            return f"{function.name} begins with bytes that are no instruction"
        if instruction.flow_control not in _MOVABLE and not _is_call(instruction):
            return f"{function.name} begins with {_text(instruction)}, which cannot be displaced"
        displaced.append(instruction)
        size += instruction.len
        if instruction.flow_control == x86.FlowControl.UNCONDITIONAL_BRANCH:
            break
    if size - first_byte < JUMP_SIZE:
        return f"{function.name} is too short for a jump"
    address = VirtAddr(function.address + first_byte)
    inside = range(address + 1, function.address + size)
    if any(target in inside for target in _targets(image, function, instructions)):
        return f"a branch leads to the begin of {function.name}, behind its first instruction"
    return _if_movable(Entry(function, address, code[first_byte:size]), f"the begin of {function.name}")


def find_increment(image: Image, function: Function, address: VirtAddr) -> Entry | str:
    """A ``lock xadd`` on one address, which a jump may displace alone; or a sentence why not.

    It fills the jump's bytes, so no branch and no return can lead into them, and no thread can stand there.
    """
    code = image.read_memory(address, _MAX_INSTRUCTION) or b""
    instruction = next(iter(_decode(code, address)), None)
    if instruction is None or instruction.mnemonic != x86.Mnemonic.XADD or not instruction.has_lock_prefix:
        return f"no lock xadd stands at {address:#x}"
    if instruction.len < JUMP_SIZE:
        return f"the lock xadd at {address:#x} is too short for a jump"
    return _if_movable(Entry(function, address, code[: instruction.len]), f"the lock xadd at {address:#x}")


def _if_movable(entry: Entry, what: str) -> Entry | str:
    try:
        relocate(entry, 0, entry.address + (1 << 20))
    except ValueError as error:
        return f"{what} cannot be moved: {error}"
    return entry


def relocate(entry: Entry, bias: int, to: int, back: int | None = None) -> bytes:
    """The displaced instructions as they are at the address ``to``, and the jump behind them.

    ``bias`` is what the process adds to the image's addresses. The jump leads ``back``, by default to what
    followed them, where a call at their end returns to. ValueError where something cannot be reached from
    there, or the result, decoded again, is not the same.
    """
    instructions = _decode(entry.code, entry.address + bias)
    behind = entry.address + bias + len(entry.code)
    call = instructions.pop() if _is_call(instructions[-1]) else None
    moved = _move(instructions, to)
    end = to + len(moved)
    if call is None:
        return moved + jump(end, behind if back is None else back)
    called = jump(end + len(_PUSH_BEHIND_JUMP), call.near_branch_target)
    return moved + _PUSH_BEHIND_JUMP + called + behind.to_bytes(8, "little")


# push [rip + 5]: what lies behind the jump that follows. Any register may be an argument of the call.
_PUSH_BEHIND_JUMP = b"\xff\x35" + JUMP_SIZE.to_bytes(4, "little")


def _move(instructions: list[x86.Instruction], to: int) -> bytes:
    if not instructions:
        return b""
    encoder = x86.BlockEncoder(64)
    encoder.add_many(instructions)
    moved: bytes = encoder.encode(to)
    expected, found = ([_text(one) for one in code] for code in (instructions, _decode(moved, to)))
    if found != expected:
        raise ValueError(f"{expected} became {found}")
    return moved


def _is_call(instruction: x86.Instruction) -> bool:
    return bool(instruction.code == x86.Code.CALL_REL32_64)


def jump(at: int, to: int) -> bytes:
    """A near jump; ValueError where it does not reach."""
    distance = to - (at + JUMP_SIZE)
    if not -(1 << 31) <= distance < 1 << 31:
        raise ValueError(f"{to:#x} is too far from {at:#x}")
    return b"\xe9" + distance.to_bytes(4, "little", signed=True)


def _decode(code: bytes, address: int) -> list[x86.Instruction]:
    return list(x86.Decoder(64, code, ip=address))


def _text(instruction: x86.Instruction) -> str:
    """What it does, whichever length it has: addresses relative to itself are shown as what they mean."""
    text: str = x86.Formatter(x86.FormatterSyntax.INTEL).format(instruction)
    return text.replace(" short ", " ").replace(" near ", " ")


def _targets(image: Image, function: Function, instructions: Iterable[x86.Instruction]) -> Iterator[int]:
    """Where branches of the function lead, and what its jump tables hold."""
    inside = range(function.address, function.address + function.size)
    for instruction in instructions:
        if instruction.flow_control in _BRANCHES and instruction.op0_kind == x86.OpKind.NEAR_BRANCH64:
            yield instruction.near_branch_target
        # A jump table of rustc's: distances from the table's own begin, of four bytes each.
        if instruction.mnemonic == x86.Mnemonic.LEA and instruction.is_ip_rel_memory_operand:
            table = instruction.ip_rel_memory_address
            if table in inside:
                yield table
            else:
                yield from _table(image, table, inside)


def _table(image: Image, table: int, inside: range) -> Iterator[int]:
    for index in range(_MAX_TABLE):
        content = image.read_memory(table + 4 * index, 4)
        if content is None:
            return
        target = table + int.from_bytes(content, "little", signed=True)
        if target not in inside:
            return
        yield target
