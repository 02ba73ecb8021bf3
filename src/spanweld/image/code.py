"""Machine code of single functions: where they return, and what their first instruction does."""

from __future__ import annotations

from dataclasses import dataclass

import iced_x86 as x86

from spanweld.image.elf import Image
from spanweld.image.symbols import Function
from spanweld.model import FileOffset

MAX_FUNCTION = 1 << 20
"""Bytes: no more of a function is decoded."""
_MAX_THUNK = 4
"""Instructions of a function that only passes on to another."""
_MAX_FOLLOWED = 1 << 14
"""Bytes behind the beginning of the function that a thunk jumps to."""

_CALLEE_SAVED = frozenset(
    (
        x86.Register.RBX,
        x86.Register.RBP,
        x86.Register.R12,
        x86.Register.R13,
        x86.Register.R14,
        x86.Register.R15,
    )
)
_WRITING = frozenset(
    (
        x86.OpAccess.WRITE,
        x86.OpAccess.COND_WRITE,
        x86.OpAccess.READ_WRITE,
        x86.OpAccess.READ_COND_WRITE,
    )
)


@dataclass(frozen=True, slots=True)
class FirstInstruction:
    """What the instruction under an entry probe does.

    ``touches_memory``: it reads or writes memory other than its own stack, so that it can fault.
    ``early_return``: a thread that has executed just this instruction can be made to return to the
    function's caller (rip = [sp], rsp = sp + 8, with sp from before it): it neither jumps nor
    changes a register that the caller owns. ``wide_nop``: a nop of five bytes, in place of which
    Linux 6.18 puts a call to a page that forked children lack: a probe there would end them.
    """

    text: str
    size: int
    touches_memory: bool
    early_return: bool
    wide_nop: bool


def find_returns(image: Image, function: Function) -> tuple[FileOffset, ...]:
    """File offsets of every ``ret`` of a function, ascending; empty where it never returns by one.

    One that only jumps to another (a *thunk*) returns where that one does. Otherwise a jump to another
    function is an exit that is not among them.
    """
    instructions = decode(image, function)
    returns = [instruction.ip for instruction in instructions if instruction.mnemonic == x86.Mnemonic.RET]
    if not returns and instructions and len(instructions) <= _MAX_THUNK:
        last = instructions[-1]
        leaves = last.flow_control == x86.FlowControl.UNCONDITIONAL_BRANCH and last.is_jmp_short_or_near
        if leaves and not function.address <= last.near_branch_target < function.address + function.size:
            returns = _returns_from(image, last.near_branch_target)
    offsets = (image.file_offset(address) for address in sorted(returns))
    return tuple(FileOffset(offset) for offset in offsets if offset is not None)


def _returns_from(image: Image, address: int) -> list[int]:
    """Addresses of the ``ret`` instructions that can be reached from an address without a call.

    Empty where not all of the way is known: a computed jump, bytes that are no code, or too much of it.
    """
    size = _MAX_FOLLOWED
    code = image.read_memory(address, size)
    while code is None and size > 1:  # less of the segment is left
        size //= 2
        code = image.read_memory(address, size)
    if code is None or not image.is_executable(address):
        return []
    decoder = x86.Decoder(64, code, ip=address)
    returns: list[int] = []
    seen: set[int] = set()
    waiting = [address]
    while waiting:
        at = waiting.pop()
        while at not in seen:
            if not address <= at < address + len(code):
                return []
            seen.add(at)
            decoder.position = at - address
            decoder.ip = at
            instruction = decoder.decode()
            flow = instruction.flow_control
            if instruction.is_invalid or flow == x86.FlowControl.INDIRECT_BRANCH:
                return []
            if flow == x86.FlowControl.RETURN:
                returns.append(at)
                break
            if flow in (x86.FlowControl.EXCEPTION, x86.FlowControl.INTERRUPT):
                break
            if flow == x86.FlowControl.CONDITIONAL_BRANCH:
                waiting.append(instruction.near_branch_target)
            at = (
                instruction.near_branch_target
                if flow == x86.FlowControl.UNCONDITIONAL_BRANCH
                else instruction.next_ip
            )
    return returns


def first_instruction(image: Image, function: Function) -> FirstInstruction | None:
    """What the first instruction of a function does; None where the bytes there are no instruction."""
    code = image.read_memory(function.address, 15)
    if code is None:
        code = image.read_memory(function.address, max(1, min(15, function.size)))
    if code is None:
        return None
    instruction = x86.Decoder(64, code, ip=function.address).decode()
    if instruction.is_invalid:
        return None
    info = x86.InstructionInfoFactory().info(instruction)
    own_stack = (x86.Register.RSP, x86.Register.ESP)
    touches_memory = any(memory.base not in own_stack for memory in info.used_memory())
    changes_callers = any(
        x86.RegisterExt.full_register(register.register) in _CALLEE_SAVED and register.access in _WRITING
        for register in info.used_registers()
    )
    goes_on = instruction.flow_control == x86.FlowControl.NEXT
    return FirstInstruction(
        text=x86.Formatter(x86.FormatterSyntax.INTEL).format(instruction),
        size=instruction.len,
        touches_memory=touches_memory,
        early_return=goes_on and not changes_callers,
        wide_nop=instruction.mnemonic == x86.Mnemonic.NOP and instruction.len == 5,
    )


def decode(image: Image, function: Function) -> list[x86.Instruction]:
    """The instructions of a function from its first byte to its last."""
    code = image.read_memory(function.address, min(function.size, MAX_FUNCTION))
    if not code:
        return []
    return [
        instruction
        for instruction in x86.Decoder(64, code, ip=function.address)
        if not instruction.is_invalid
    ]
