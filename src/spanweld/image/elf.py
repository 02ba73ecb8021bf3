"""ELF files: class, machine, sections, segments, build id, and the way from an address to a file offset.

Every number in the file is untrusted. What does not fit into the file is an ImageError where
nothing works without it (the header, the program headers) and absent where the rest goes on (the
section headers, which a running program does not need). Nothing is mapped: a file that shrinks
under a mapping kills the reader with SIGBUS, while a short read is only an error.
"""

from __future__ import annotations

import errno
import operator
import os
import re
import stat
import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from spanweld.errors import ImageError
from spanweld.model import FileOffset, VirtAddr

# From elf.h; only what is looked at.
_EI_CLASS, _EI_DATA = 4, 5
_ELFCLASS32, _ELFCLASS64 = 1, 2
_ELFDATA2LSB = 1
_ET_EXEC, _ET_DYN = 2, 3
_ET_NAMES = {0: "no file type", 1: "an object file", 4: "a core dump"}
_EM_X86_64 = 62
_EM_NAMES = {
    3: "x86 (32-bit)",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC 64",
    22: "s390x",
    40: "ARM (32-bit)",
    183: "AArch64",
    243: "RISC-V",
    258: "LoongArch",
}
_PT_LOAD, _PT_INTERP, _PT_NOTE, _PT_TLS = 1, 3, 4, 7
_PF_X, _PF_W = 1, 2
_SHT_NOBITS, _SHT_RELA = 8, 4
_SHF_COMPRESSED = 0x800
_NT_GNU_BUILD_ID = 3
_R_X86_64_RELATIVE = 8

_HEADER = struct.Struct("<HHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_RELA = struct.Struct("<QQq")

_CHUNK = 1 << 22
MAX_SECTION = 1 << 29
"""Bytes: no more than this is scanned of one section, so that a hostile file costs seconds."""
# Linux 6.18 takes up to 64 KiB of them, no linker makes more than twenty.
_MAX_PROGRAM_HEADERS = 1 << 8
_MAX_SECTIONS = 1 << 16
_MAX_NOTES = 1 << 16
MAX_RELOCATIONS = 1 << 26
"""Bytes: no more than this is read of them, for the same reason."""

REBUILD = "take the file again from its build, or name another one"
"""The remedy for a damaged file."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section header. ``offset`` and ``size`` are 0 where the file holds no bytes of it."""

    name: str
    type: int
    address: VirtAddr
    offset: FileOffset
    size: int
    link: int
    entry_size: int
    compressed: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """One program header; sizes in bytes."""

    type: int
    address: VirtAddr
    offset: FileOffset
    file_size: int
    memory_size: int
    alignment: int
    executable: bool
    writable: bool


@dataclass(frozen=True, slots=True)
class ThreadLocalBlock:
    """PT_TLS: the image's thread-local variables as each new thread gets them."""

    address: VirtAddr
    file_size: int
    memory_size: int
    alignment: int

    def offset_from_fs(self, symbol_value: int) -> int:
        """Where a variable at ``symbol_value`` in the block lies, relative to fs:0; negative.

        TLS variant II (x86-64): the block of the executable ends at the thread pointer, rounded up
        to its alignment.
        """
        alignment = max(self.alignment, 1)
        return symbol_value - (self.memory_size + alignment - 1) // alignment * alignment


class Image:
    """An executable file, open for reading; use it as a context manager.

    ``open`` raises ImageError for whatever is not a 64-bit little-endian x86-64 executable.
    """

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path = path
        self.size = size
        self._descriptor = descriptor
        header = self._checked_header()
        (
            self.type,
            _machine,
            _version,
            _entry,
            program_headers,
            section_headers,
            _flags,
            _header_size,
            program_header_size,
            program_header_count,
            section_header_size,
            section_count,
            self._names_index,
        ) = header
        self.segments = self._read_segments(program_headers, program_header_size, program_header_count)
        self.sections = self._read_sections(section_headers, section_header_size, section_count)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open ``path`` and check what kind of file it is; never blocks on a pipe or a device."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            remedy = "run as a user who may read it" if error.errno == errno.EACCES else "check the path"
            raise ImageError(f"{path}: {os.strerror(error.errno or 0)}", remedy) from None
        except ValueError:
            raise ImageError(f"{str(path)!r} is not a path", "check the path") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"{path}: not a regular file", "name the service's executable")
            return cls(path, descriptor, status.st_size)
        except BaseException:
            os.close(descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was read stays usable."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset`` of the file, or an ImageError where the file ends before."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self.broken(f"bytes {offset:#x} to {offset + size:#x} lie outside its {self.size} bytes")
        parts = []
        while size:
            try:
                part = os.pread(self._descriptor, size, offset)
            except OSError as error:
                raise ImageError(f"{self.path}: {os.strerror(error.errno or 0)}", REBUILD) from None
            if not part:
                raise self.broken("it became shorter while it was read")
            parts.append(part)
            offset += len(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_memory(self, address: int, size: int) -> bytes | None:
        """What a fresh process has at ``address``, relocations left out; None outside the segments."""
        for segment in self.loads:
            start = address - segment.address
            if start >= 0 and start + size <= segment.memory_size:
                from_file = max(0, min(size, segment.file_size - start))
                try:
                    data = self.read(segment.offset + start, from_file)
                except ImageError:
                    return None
                return data + bytes(size - from_file)
        return None

    def chunks(
        self, offset: int, size: int, overlap: int = 0, record: int = 1
    ) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) pieces of a range of the file, each beginning ``overlap`` before the last's end.

        All but the last are a multiple of ``record`` bytes long.
        """
        end = min(offset + min(size, MAX_SECTION), self.size)
        while offset < end:
            piece = self.read(offset, min(_CHUNK // record * record, end - offset))
            yield offset, piece
            if offset + len(piece) >= end:
                return
            offset += len(piece) - overlap

    def search(
        self, pattern: re.Pattern[bytes], offset: int, size: int, overlap: int
    ) -> Iterator[tuple[int, re.Match[bytes], bytes]]:
        """(file offset, match, piece of the file it is in) for each match; one may come twice.

        A match longer than ``overlap`` bytes may be missed at the border of two pieces.
        """
        for start, piece in self.chunks(offset, size, overlap):
            for match in pattern.finditer(piece):
                yield start + match.start(), match, piece

    def section(self, name: str) -> Section | None:
        """The first section of that name."""
        return next((section for section in self.sections if section.name == name), None)

    @cached_property
    def loads(self) -> tuple[Segment, ...]:
        """The segments that are mapped into a process."""
        return tuple(segment for segment in self.segments if segment.type == _PT_LOAD)

    @property
    def is_pie(self) -> bool:
        """Whether it is loaded at an address that the kernel picks."""
        return self.type == _ET_DYN

    @property
    def is_static(self) -> bool:
        """Whether no dynamic loader is asked for."""
        return all(segment.type != _PT_INTERP for segment in self.segments)

    @cached_property
    def thread_locals(self) -> ThreadLocalBlock | None:
        """PT_TLS, or None where the image has no thread-local variable."""
        for segment in self.segments:
            if segment.type == _PT_TLS:
                return ThreadLocalBlock(
                    segment.address, segment.file_size, segment.memory_size, segment.alignment
                )
        return None

    @cached_property
    def build_id(self) -> str | None:
        """The linker's build id in hexadecimal digits, from any note segment."""
        for segment in self.segments:
            if segment.type != _PT_NOTE:
                continue
            try:
                data = self.read(segment.offset, min(segment.file_size, _MAX_NOTES))
            except ImageError:
                continue
            found = _build_id_in(data)
            if found is not None:
                return found
        return None

    def file_offset(self, address: int) -> FileOffset | None:
        """Where the byte at ``address`` stands in the file; None for what the file does not hold."""
        for segment in self.loads:
            if segment.address <= address < segment.address + segment.file_size:
                offset = address - segment.address + segment.offset
                return FileOffset(offset) if offset < self.size else None
        return None

    def is_executable(self, address: int) -> bool:
        """Whether ``address`` lies in a segment that is mapped executable."""
        return any(
            segment.executable and segment.address <= address < segment.address + segment.file_size
            for segment in self.loads
        )

    def relocation(self, slot: int) -> int | None:
        """The address (without bias) that the loader stores in the 8 bytes at ``slot``; None for none.

        Packed relocations (.relr.dyn) keep their addend in the slot, so they need nothing here.
        """
        slots, addends = self._relative_relocations
        index = bisect_left(slots, slot)
        return addends[index] if index < len(slots) and slots[index] == slot else None

    @cached_property
    def _relative_relocations(self) -> tuple[array[int], array[int]]:
        """Slots and addends of R_X86_64_RELATIVE, by slot.

        Linkers put them before all others, in this order (`-z combreloc`); what is not so is left out.
        """
        slots, addends = array("Q"), array("q")
        section = self.section(".rela.dyn")
        if section is None or section.type != _SHT_RELA:
            return slots, addends
        size = min(section.size, MAX_RELOCATIONS) // _RELA.size * _RELA.size
        for _, piece in self.chunks(section.offset, size, record=_RELA.size):
            words = memoryview(piece).cast("Q")
            kinds = words[1::3].tolist()
            end = next((index for index, kind in enumerate(kinds) if kind != _R_X86_64_RELATIVE), len(kinds))
            slots.extend(words[: 3 * end : 3].tolist())
            addends.extend(memoryview(piece).cast("q")[2 : 3 * end : 3].tolist())
            if end < len(kinds):
                break
        if any(map(operator.gt, slots, slots[1:])):
            return array("Q"), array("q")
        return slots, addends

    def broken(self, why: str) -> ImageError:
        """The error for a damaged file."""
        return ImageError(f"{self.path}: damaged ELF file: {why}", REBUILD)

    def _checked_header(self) -> tuple[int, ...]:
        start = self.read(0, min(self.size, 64))
        if not start:
            raise ImageError(f"{self.path}: the file is empty", REBUILD)
        if start.startswith(b"#!"):
            interpreter = start[2:].split(b"\n")[0].strip().decode("ascii", "replace")
            if not interpreter.isprintable():
                interpreter = "an interpreter"
            raise ImageError(
                f"{self.path}: a script (for {interpreter}), not a program",
                "name the executable that the script starts",
            )
        if not start.startswith(b"\x7fELF"):
            raise ImageError(f"{self.path}: not an ELF executable", "name the service's executable")
        if len(start) < 20:
            raise self.broken("it ends inside its header")
        if start[_EI_CLASS] not in (_ELFCLASS32, _ELFCLASS64):
            raise self.broken(f"class {start[_EI_CLASS]} does not exist")
        is_little = start[_EI_DATA] == _ELFDATA2LSB
        machine = int.from_bytes(start[18:20], "little" if is_little else "big")
        build = "build the service for x86_64-unknown-linux-gnu or -musl"
        if start[_EI_CLASS] == _ELFCLASS32:
            name = _EM_NAMES.get(machine, f"machine {machine}")
            raise ImageError(f"{self.path}: a 32-bit executable ({name})", build)
        if machine != _EM_X86_64 or not is_little:
            name = _EM_NAMES.get(machine, f"machine {machine}")
            raise ImageError(f"{self.path}: an executable for {name}, not for x86-64", build)
        if len(start) < 64:
            raise self.broken("it ends inside its header")
        header = _HEADER.unpack_from(start, 16)
        if header[0] not in (_ET_EXEC, _ET_DYN):
            kind = _ET_NAMES.get(header[0], f"ELF type {header[0]}")
            raise ImageError(f"{self.path}: {kind}, not an executable", "name the service's executable")
        return header

    def _read_segments(self, offset: int, entry_size: int, count: int) -> tuple[Segment, ...]:
        if count == 0 or count > _MAX_PROGRAM_HEADERS or entry_size != _PROGRAM_HEADER.size:
            raise self.broken(f"{count} program headers of {entry_size} bytes")
        data = self.read(offset, count * entry_size)
        segments = tuple(
            Segment(
                type=kind,
                address=VirtAddr(address),
                offset=FileOffset(start),
                file_size=file_size,
                memory_size=memory_size,
                alignment=alignment,
                executable=bool(flags & _PF_X),
                writable=bool(flags & _PF_W),
            )
            for kind, flags, start, address, _, file_size, memory_size, alignment in (
                _PROGRAM_HEADER.iter_unpack(data)
            )
        )
        loads = [segment for segment in segments if segment.type == _PT_LOAD]
        if not loads:
            raise self.broken("nothing in it is loaded")
        for segment in loads:
            if segment.offset + segment.file_size > self.size:
                raise self.broken("it ends inside a segment that is loaded (truncated?)")
        return segments

    def _read_sections(self, offset: int, entry_size: int, count: int) -> tuple[Section, ...]:
        # A process runs without them, so damage here means "no symbols", not "no image".
        if offset == 0 or entry_size != _SECTION_HEADER.size:
            return ()
        try:
            if count == 0:
                # More than 0xff00 sections: the number stands in the first header (gABI).
                count = _SECTION_HEADER.unpack(self.read(offset, entry_size))[5]
            if count > _MAX_SECTIONS:
                return ()
            headers = list(_SECTION_HEADER.iter_unpack(self.read(offset, count * entry_size)))
        except ImageError:
            return ()
        names = headers[self._names_index] if self._names_index < len(headers) else None
        if names is None or names[4] + names[5] > self.size:
            return ()
        table = self.read(names[4], min(names[5], 1 << 22))
        result = []
        for name, kind, flags, address, start, size, link, _, _, entry in headers:
            end = table.find(b"\0", name, name + 256)
            absent = kind == _SHT_NOBITS or start + size > self.size
            result.append(
                Section(
                    name=table[name:end].decode("ascii", "replace") if 0 <= name < end else "",
                    type=kind,
                    address=VirtAddr(address),
                    offset=FileOffset(0 if absent else start),
                    size=0 if absent else size,
                    link=link,
                    entry_size=entry,
                    compressed=bool(flags & _SHF_COMPRESSED),
                )
            )
        return tuple(result)


def _build_id_in(notes: bytes) -> str | None:
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, position)
        name_start = position + 12
        start = name_start + (name_size + 3 & ~3)
        if start + size > len(notes):
            return None
        if kind == _NT_GNU_BUILD_ID and notes[name_start : name_start + name_size] == b"GNU\0":
            return notes[start : start + size].hex()
        position = start + (size + 3 & ~3)
    return None
