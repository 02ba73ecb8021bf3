"""Runs a few hundred instructions of an image in a model of memory, to see what they do.

Nothing of the image is executed by the processor. Reading an offset out of machine code by its
shape would need one shape for each compiler and each optimisation level; running the code needs
none. Only the integer instructions that compilers use around thread-locals are known, with plain
16-byte moves; whatever else comes ends the run. Memory is the image's own segments, relocated as if
loaded at address 0, a stack, one thread-local block and one arena; anything else faults. Calls out
of the image fault too, since their slots are empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import iced_x86 as x86

from spanweld.image.elf import Image

if TYPE_CHECKING:
    # At run time these are plain numbers; only the stubs have them as types.
    from iced_x86._iced_x86_py import ConditionCode, Register

_PAGE = 4096
_STACK = 0x7F00_0000_0000
_STACK_SIZE = 1 << 16
THREAD_POINTER = 0x7E00_0000_0000
ARENA = 0x7D00_0000_0000
ARENA_SIZE = 1 << 14
_AFTER_THREAD_POINTER = 0x100
_RETURN_ADDRESS = 0x7C00_0000_0000
_MASK_64 = (1 << 64) - 1

_R = x86.Register
_M = x86.Mnemonic
_FULL = x86.RegisterExt.full_register
_HIGH_BYTES = {_R.AH: _R.RAX, _R.BH: _R.RBX, _R.CH: _R.RCX, _R.DH: _R.RDX}


class EmulationError(Exception):
    """The code did something that is not modelled; the text says what."""


class Machine:
    """One thread of an image with ``thread_locals`` bytes of thread-local block before fs:0.

    The block is filled with ``fill``: 1 makes the state of every ``thread_local!`` "alive", so that
    no destructor is registered. ``marker`` is a value whose way into the block is watched.
    """

    def __init__(self, image: Image, thread_locals: int, fill: int, marker: int) -> None:
        self._image = image
        self._pages: dict[int, bytearray] = {}
        self._relocated: set[int] = set()
        self._code: dict[int, x86.Instruction] = {}
        self._block = range(THREAD_POINTER - thread_locals, THREAD_POINTER + _AFTER_THREAD_POINTER)
        self._owned = (
            range(_STACK - _STACK_SIZE, _STACK + _PAGE),
            self._block,
            range(ARENA, ARENA + ARENA_SIZE),
        )
        self._fill = fill
        self._marker = marker
        # Each 64-bit word that was ever written into the block → where.
        self._written: dict[int, set[int]] = {}
        self._registers: dict[Register, int] = {}
        self._vectors: dict[Register, int] = {}
        self._carry = self._zero = self._sign = self._overflow = self._parity = False
        self._ip = 0
        self.write(THREAD_POINTER, THREAD_POINTER, 8)

    def call(
        self,
        address: int,
        arguments: tuple[int, ...],
        limit: int,
        *,
        after_marked: int | None = None,
    ) -> int:
        """Call the function at ``address`` and end when it returns; the result is what is in rax then.

        At most ``limit`` instructions; what can not be run is an EmulationError. With ``after_marked``,
        this many instructions after the marker came into the block are enough, and no more are needed.
        """
        order = (_R.RDI, _R.RSI, _R.RDX, _R.RCX, _R.R8, _R.R9)
        self._registers = dict(zip(order, arguments, strict=False))
        self._registers[_R.RSP] = _STACK - 8
        self.write(_STACK - 8, _RETURN_ADDRESS, 8)
        self._ip = address
        for _ in range(limit):
            if self._ip == _RETURN_ADDRESS:
                return self._get_register(_R.RAX)
            if after_marked is not None and self._marker in self._written:
                if after_marked == 0:
                    return self._get_register(_R.RAX)
                after_marked -= 1
                try:
                    self._step()
                except EmulationError:
                    return self._get_register(_R.RAX)
            else:
                self._step()
        raise EmulationError(f"no end after {limit} instructions")

    def read(self, address: int, size: int) -> int:
        """A little-endian number in memory."""
        if address < _RETURN_ADDRESS:
            self._relocate(address)
        offset = address % _PAGE
        if offset + size <= _PAGE:
            return int.from_bytes(self._page(address, size)[offset : offset + size], "little")
        head = _PAGE - offset
        return self.read(address, head) | self.read(address + head, size - head) << 8 * head

    def write(self, address: int, value: int, size: int) -> None:
        """Store a little-endian number."""
        if address in self._block:
            for offset in range(0, size - 7, 8):
                word = value >> 8 * offset & _MASK_64
                self._written.setdefault(word, set()).add(address + offset)
        offset = address % _PAGE
        if offset + size <= _PAGE:
            self._page(address, size)[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(
                size, "little"
            )
            return
        head = _PAGE - offset
        self.write(address, value, head)
        self.write(address + head, value >> 8 * head, size - head)

    def find_written(self, word: int) -> list[int]:
        """Offsets from fs:0 of the aligned words of the thread-local block that ``word`` was written to.

        It need not be there any more.
        """
        places = sorted(self._written.get(word, ()))
        return [place - THREAD_POINTER for place in places if place < THREAD_POINTER and place % 8 == 0]

    def _page(self, address: int, size: int) -> bytearray:
        number = address // _PAGE
        owned = any(address in area and address + size <= area.stop for area in self._owned)
        page = self._pages.get(number)
        if page is not None and (owned or address < _RETURN_ADDRESS):
            return page
        if owned:
            fill = self._fill if address in self._block else 0
            page = bytearray([fill]) * _PAGE
        else:
            page = self._image_page(number * _PAGE, address, size)
        self._pages[number] = page
        return page

    def _relocate(self, address: int) -> None:
        """Bring the aligned word at ``address`` to what the loader makes of it, once."""
        slot = address & ~7
        if slot in self._relocated:
            return
        self._relocated.add(slot)
        value = self._image.relocation(slot)
        if value is not None:
            self.write(slot, value & _MASK_64, 8)

    def _image_page(self, start: int, address: int, size: int) -> bytearray:
        if self._image.read_memory(address, size) is None:
            raise EmulationError(f"access to {address:#x}")
        page = bytearray(_PAGE)
        for segment in self._image.loads:
            low = max(start, segment.address)
            high = min(start + _PAGE, segment.address + segment.memory_size)
            if low < high:
                page[low - start : high - start] = self._image.read_memory(low, high - low) or bytes(
                    high - low
                )
        return page

    def _fetch(self) -> x86.Instruction:
        known = self._code.get(self._ip)
        if known is not None:
            return known
        code = self._image.read_memory(self._ip, 15) or self._image.read_memory(self._ip, 1)
        if code is None or not self._image.is_executable(self._ip):
            raise EmulationError(f"jump to {self._ip:#x}")
        instruction = x86.Decoder(64, code, ip=self._ip).decode()
        self._code[self._ip] = instruction
        return instruction

    def _get_register(self, register: Register) -> int:
        if register in _HIGH_BYTES:
            return self._registers.get(_HIGH_BYTES[register], 0) >> 8 & 0xFF
        size = x86.RegisterExt.size(register)
        return self._registers.get(_FULL(register), 0) & (1 << 8 * size) - 1

    def _set_register(self, register: Register, value: int) -> None:
        size = x86.RegisterExt.size(register)
        if register in _HIGH_BYTES:
            full = _HIGH_BYTES[register]
            self._registers[full] = self._registers.get(full, 0) & ~0xFF00 | (value & 0xFF) << 8
        elif size >= 4:
            # A 32-bit result clears the upper half.
            self._registers[_FULL(register)] = value & (1 << 8 * size) - 1
        else:
            mask = (1 << 8 * size) - 1
            full = _FULL(register)
            self._registers[full] = self._registers.get(full, 0) & ~mask | value & mask

    def _address(self, instruction: x86.Instruction, with_segment: bool = True) -> int:
        base = instruction.memory_base
        address = instruction.memory_displacement
        if base not in (_R.NONE, _R.RIP, _R.EIP):
            address += self._registers.get(_FULL(base), 0)
        if instruction.memory_index != _R.NONE:
            address += (
                self._registers.get(_FULL(instruction.memory_index), 0) * instruction.memory_index_scale
            )
        if with_segment and instruction.memory_segment == _R.FS:
            address += THREAD_POINTER
        elif with_segment and instruction.memory_segment == _R.GS:
            raise EmulationError("access by gs")
        return address & _MASK_64

    def _size(self, instruction: x86.Instruction, operand: int) -> int:
        if instruction.op_kind(operand) == x86.OpKind.REGISTER:
            return x86.RegisterExt.size(instruction.op_register(operand))
        return x86.MemorySizeExt.size(instruction.memory_size)

    def _get(self, instruction: x86.Instruction, operand: int) -> int:
        kind = instruction.op_kind(operand)
        if kind == x86.OpKind.REGISTER:
            return self._get_register(instruction.op_register(operand))
        if kind == x86.OpKind.MEMORY:
            return self.read(self._address(instruction), self._size(instruction, operand))
        return int(instruction.immediate(operand)) & _MASK_64

    def _set(self, instruction: x86.Instruction, operand: int, value: int) -> None:
        if instruction.op_kind(operand) == x86.OpKind.REGISTER:
            self._set_register(instruction.op_register(operand), value)
        else:
            self.write(self._address(instruction), value, self._size(instruction, operand))

    def _push(self, value: int) -> None:
        self._registers[_R.RSP] -= 8
        self.write(self._registers[_R.RSP], value, 8)

    def _pop(self) -> int:
        value = self.read(self._registers[_R.RSP], 8)
        self._registers[_R.RSP] += 8
        return value

    def _step(self) -> None:
        instruction = self._fetch()
        if instruction.is_invalid:
            raise EmulationError(f"no instruction at {self._ip:#x}")
        self._ip = instruction.next_ip
        mnemonic = instruction.mnemonic
        flow = instruction.flow_control
        if flow == x86.FlowControl.CONDITIONAL_BRANCH:
            if self._condition(instruction.condition_code):
                self._ip = instruction.near_branch_target
        elif mnemonic in (_M.JMP, _M.CALL):
            indirect = flow in (x86.FlowControl.INDIRECT_BRANCH, x86.FlowControl.INDIRECT_CALL)
            target = self._get(instruction, 0) if indirect else instruction.near_branch_target
            if mnemonic == _M.CALL:
                self._push(instruction.next_ip)
            self._ip = target
        elif mnemonic == _M.RET:
            self._ip = self._pop()
        elif flow != x86.FlowControl.NEXT:
            raise EmulationError(f"{instruction} at {instruction.ip:#x}")
        elif instruction.condition_code != x86.ConditionCode.NONE:
            self._conditional(instruction)
        elif mnemonic in _MOVES:
            self._move(instruction)
        elif mnemonic in _ARITHMETIC:
            self._arithmetic(instruction)
        elif mnemonic in _SHIFTS:
            self._shift(instruction)
        elif mnemonic in _EXCHANGES:
            self._exchange(instruction)
        elif mnemonic in _VECTOR_MOVES or mnemonic in _VECTOR_XORS:
            self._vector(instruction)
        elif mnemonic not in (_M.NOP, _M.ENDBR64):
            raise EmulationError(f"{instruction} at {instruction.ip:#x}")

    def _conditional(self, instruction: x86.Instruction) -> None:
        holds = self._condition(instruction.condition_code)
        if instruction.op_count == 1:
            self._set(instruction, 0, int(holds))
        else:
            # cmov reads its source in either case, and clears the upper half in either case.
            source = self._get(instruction, 1)
            self._set(instruction, 0, source if holds else self._get(instruction, 0))

    def _move(self, instruction: x86.Instruction) -> None:
        mnemonic = instruction.mnemonic
        if mnemonic == _M.LEA:
            self._set(instruction, 0, self._address(instruction, with_segment=False))
        elif mnemonic == _M.PUSH:
            self._push(self._get(instruction, 0))
        elif mnemonic == _M.POP:
            self._set(instruction, 0, self._pop())
        elif mnemonic in (_M.MOVSX, _M.MOVSXD):
            self._set(instruction, 0, _signed(self._get(instruction, 1), self._size(instruction, 1)))
        else:
            self._set(instruction, 0, self._get(instruction, 1))

    def _arithmetic(self, instruction: x86.Instruction) -> None:
        mnemonic = instruction.mnemonic
        size = self._size(instruction, 0)
        left = self._get(instruction, 0)
        if mnemonic == _M.NOT:
            self._set(instruction, 0, ~left)
            return
        carry = self._carry
        if mnemonic in (_M.INC, _M.DEC):
            right = 1
        elif mnemonic == _M.NEG:
            left, right = 0, left
        else:
            right = self._get(instruction, 1)
        right &= (1 << 8 * size) - 1
        if mnemonic in (_M.ADD, _M.INC):
            result = self._add(left, right, size)
        elif mnemonic in (_M.SUB, _M.CMP, _M.DEC, _M.NEG):
            result = self._subtract(left, right, size)
        else:
            if mnemonic in (_M.AND, _M.TEST):
                result = left & right
            else:
                result = left | right if mnemonic == _M.OR else left ^ right
            self._carry = self._overflow = False
            self._note(result, size)
        if mnemonic in (_M.INC, _M.DEC):
            self._carry = carry
        if mnemonic not in (_M.CMP, _M.TEST):
            self._set(instruction, 0, result)

    def _shift(self, instruction: x86.Instruction) -> None:
        size = self._size(instruction, 0)
        count = self._get(instruction, 1) & (63 if size == 8 else 31)
        value = self._get(instruction, 0)
        if count == 0:
            return
        if instruction.mnemonic == _M.SHL:
            result = value << count
            self._carry = bool(result >> 8 * size & 1)
        else:
            signed = _signed(value, size) if instruction.mnemonic == _M.SAR else value
            result = signed >> count
            self._carry = bool(signed >> count - 1 & 1)
        result &= (1 << 8 * size) - 1
        self._overflow = False
        self._note(result, size)
        self._set(instruction, 0, result)

    def _exchange(self, instruction: x86.Instruction) -> None:
        size = self._size(instruction, 0)
        old, new = self._get(instruction, 0), self._get(instruction, 1)
        if instruction.mnemonic == _M.CMPXCHG:
            accumulator = {1: _R.AL, 2: _R.AX, 4: _R.EAX, 8: _R.RAX}[size]
            self._subtract(self._get_register(accumulator), old, size)
            if self._zero:
                self._set(instruction, 0, new)
            else:
                self._set_register(accumulator, old)
            return
        result = self._add(old, new, size) if instruction.mnemonic == _M.XADD else new
        self._set(instruction, 1, old)
        self._set(instruction, 0, result)

    def _vector(self, instruction: x86.Instruction) -> None:
        kinds = [instruction.op_kind(operand) for operand in range(2)]
        if instruction.mnemonic in _VECTOR_XORS:
            same = kinds[1] == x86.OpKind.REGISTER and instruction.op1_register == instruction.op0_register
            if not same:
                raise EmulationError(f"{instruction} at {instruction.ip:#x}")
            self._vectors[instruction.op0_register] = 0
        elif kinds[0] == x86.OpKind.REGISTER:
            if kinds[1] == x86.OpKind.REGISTER:
                value = self._vectors.get(instruction.op1_register, 0)
            else:
                value = self.read(self._address(instruction), 16)
            self._vectors[instruction.op0_register] = value
        else:
            self.write(self._address(instruction), self._vectors.get(instruction.op1_register, 0), 16)

    def _add(self, left: int, right: int, size: int) -> int:
        result = left + right
        bits = 8 * size
        self._carry = bool(result >> bits)
        self._overflow = bool((left ^ result) & (right ^ result) & 1 << bits - 1)
        self._note(result, size)
        return result & (1 << bits) - 1

    def _subtract(self, left: int, right: int, size: int) -> int:
        result = left - right
        self._carry = left < right
        self._overflow = bool((left ^ right) & (left ^ result) & 1 << 8 * size - 1)
        self._note(result, size)
        return result & (1 << 8 * size) - 1

    def _note(self, result: int, size: int) -> None:
        result &= (1 << 8 * size) - 1
        self._zero = result == 0
        self._sign = bool(result >> 8 * size - 1)
        self._parity = (result & 0xFF).bit_count() % 2 == 0

    def _condition(self, code: ConditionCode) -> bool:
        condition = x86.ConditionCode
        less = self._sign != self._overflow
        values = {
            condition.O: self._overflow,
            condition.NO: not self._overflow,
            condition.B: self._carry,
            condition.AE: not self._carry,
            condition.E: self._zero,
            condition.NE: not self._zero,
            condition.BE: self._carry or self._zero,
            condition.A: not (self._carry or self._zero),
            condition.S: self._sign,
            condition.NS: not self._sign,
            condition.P: self._parity,
            condition.NP: not self._parity,
            condition.L: less,
            condition.GE: not less,
            condition.LE: less or self._zero,
            condition.G: not (less or self._zero),
        }
        if code not in values:
            # jrcxz and loop
            raise EmulationError("a branch on a register")
        return values[code]


def _signed(value: int, size: int) -> int:
    sign = 1 << 8 * size - 1
    return (value & sign - 1) - (value & sign)


_MOVES = frozenset((_M.MOV, _M.MOVZX, _M.MOVSX, _M.MOVSXD, _M.LEA, _M.PUSH, _M.POP))
_ARITHMETIC = frozenset(
    (_M.ADD, _M.SUB, _M.CMP, _M.AND, _M.TEST, _M.OR, _M.XOR, _M.INC, _M.DEC, _M.NEG, _M.NOT)
)
_SHIFTS = frozenset((_M.SHL, _M.SHR, _M.SAR))
_EXCHANGES = frozenset((_M.XCHG, _M.CMPXCHG, _M.XADD))
_VECTOR_MOVES = frozenset((_M.MOVUPS, _M.MOVAPS, _M.MOVDQU, _M.MOVDQA, _M.MOVUPD, _M.MOVAPD))
_VECTOR_XORS = frozenset((_M.XORPS, _M.PXOR, _M.XORPD))
