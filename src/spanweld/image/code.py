"""Machine code of single functions: where they return, and what their first instruction does."""

from __future__ import annotations

from dataclasses import dataclass

import iced_x86 as x86

from spanweld.image.elf import Image
from spanweld.image.symbols import Function, find_function_at
from spanweld.model import FileOffset

MAX_FUNCTION = 1 << 18
"""Bytes: no more of a function is decoded."""
_MAX_JUMPS = 4

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
    """File offsets of every ``ret`` by which a call of a function ends, ascending.

    Where it leaves by a jump to another function, as `opt-level = "z"` likes to, these are the other's,
    which others may jump to or call as well. Empty where it never returns, or by a jump whose target only
    the running program knows.
    """
    returns: set[FileOffset] = set()
    seen: set[int] = set()
    ahead: list[Function | None] = [function]
    while ahead:
        body = ahead.pop()
        if body is None or body.address in seen:
            continue
        seen.add(body.address)
        inside = range(body.address, body.address + body.size)
        for instruction in decode(image, body):
            if instruction.mnemonic == x86.Mnemonic.RET:
                returns.add(FileOffset(body.file_offset + instruction.ip - body.address))
            elif instruction.mnemonic == x86.Mnemonic.JMP and len(seen) < _MAX_JUMPS:
                target = _target(image, instruction)
                if target is not None and target not in inside and target not in seen:
                    ahead.append(find_function_at(image, target))
    return tuple(sorted(returns))


def _target(image: Image, jump: x86.Instruction) -> int | None:
    """Where a jump goes: the address in it, or the one that the loader puts into the slot that it names."""
    if jump.op0_kind == x86.OpKind.NEAR_BRANCH64:
        return int(jump.near_branch_target)
    if jump.is_ip_rel_memory_operand:
        slot = int(jump.ip_rel_memory_address)
        target = image.relocation(slot)
        if target is None and not image.is_pie:
            content = image.read_memory(slot, 8)
            target = int.from_bytes(content, "little") if content else None
        return target
    return None


def jumped_to(image: Image, function: Function) -> Function | None:
    """What a function goes on to that does nothing but jump, as to another crate's; None for any other."""
    first = next(iter(decode(image, function)), None)
    if first is None or first.mnemonic != x86.Mnemonic.JMP:
        return None
    target = _target(image, first)
    return find_function_at(image, target) if target is not None else None


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


def constants_of(instruction: x86.Instruction) -> list[int]:
    """Addresses that an instruction computes, and numbers and addresses that stand in it."""
    if instruction.is_ip_rel_memory_operand:
        return [instruction.ip_rel_memory_address] if instruction.mnemonic == x86.Mnemonic.LEA else []
    return [
        int(instruction.immediate(operand))
        for operand in range(instruction.op_count)
        if x86.OpKind.IMMEDIATE8 <= instruction.op_kind(operand) <= x86.OpKind.IMMEDIATE32TO64
    ]


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
