"""Executables with something wrong in them: real ones, and the ways in which they are damaged.

Damage is a few writes and a new length, so that one copy of a large file serves for thousands of cases: what
was written is taken back. The same seed and the same executable give the same damage.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from spanweld.image import Image, Section

_SECTION_HEADER_SIZE, _PROGRAM_HEADER_SIZE, _SYMBOL_SIZE, _RELA_SIZE = 64, 56, 24, 24
_SHT_SYMTAB = 2
# Offset and size of each field: elf.h.
_HEADER_FIELDS = (
    *((4, 1), (5, 1), (16, 2), (18, 2), (24, 8), (32, 8), (40, 8), (52, 2), (54, 2), (56, 2), (58, 2)),
    *((60, 2), (62, 2)),
)
_PROGRAM_FIELDS = ((0, 4), (4, 4), *((offset, 8) for offset in range(8, 56, 8)))
_SECTION_FIELDS = (
    *((0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4), (48, 8), (56, 8)),
    # The two that a reader believes most, once more.
    *((24, 8), (32, 8)),
)
_SYMBOL_FIELDS = ((0, 4), (4, 1), (5, 1), (6, 2), (8, 8), (16, 8))
_EXTREMES = (
    *(0, 1, 2, 3, 7, 8, 0xFF, 0xFFFF, 0x10000, 1 << 20, 1 << 29, 1 << 30, (1 << 31) - 1, 1 << 31),
    *((1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 8, (1 << 64) - 1),
)
# What a reader of names looks for, to be found where nobody expects it.
_WORDS = (
    *(
        b"_ZN",
        b"_R",
        b"\0",
        b"4poll",
        b"3raw4poll",
        b"TaskIdGuard",
        b"20build_recording_span",
        b"12new_trace_id",
    ),
    *(b"$LT$", b"$u20$as$u20$", b"NtNtNt", b"INvB2_", b"17h0123456789abcdefE", b"5tokio7runtime", b"CONTEXT"),
    *(b"/registry/src/x/tokio-1.2.3/src/", b"-1.2.3/src/", b"/rustc/" + b"a" * 40 + b"/"),
    *(b"rustc version 1.95.0", b"GNU\0"),
)


@dataclass(slots=True)
class Damage:
    """Bytes to write, by offset, in order, and the new length of the file (None: as it was)."""

    names: list[str] = field(default_factory=list)
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    length: int | None = None


class Sample:
    """A real executable, and a copy of it at ``copy`` that is damaged and mended again."""

    def __init__(self, executable: Path, copy: Path) -> None:
        self.path = copy
        self.content = executable.read_bytes()
        copy.write_bytes(self.content)
        with Image.open(executable) as image:
            self.sections = image.sections
            self.segments = image.segments
        self.program_headers, self.section_headers = struct.unpack_from("<QQ", self.content, 32)
        self.symbols = next((section for section in self.sections if section.type == _SHT_SYMTAB), None)
        self.strings = self.sections[self.symbols.link] if self.symbols else None

    def section(self, *prefixes: str) -> list[Section]:
        """The sections with a name that begins so and with bytes in the file."""
        return [section for section in self.sections if section.size and section.name.startswith(prefixes)]

    @contextmanager
    def damaged(self, damage: Damage) -> Iterator[Path]:
        """The copy, damaged for the time of a ``with`` block."""
        length = len(self.content) if damage.length is None else damage.length
        with self.path.open("r+b") as file:
            for offset, data in damage.writes:
                file.seek(offset)
                file.write(data)
            file.truncate(length)
        try:
            yield self.path
        finally:
            with self.path.open("r+b") as file:
                file.truncate(len(self.content))
                if length < len(self.content):
                    file.seek(length)
                    file.write(self.content[length:])
                for offset, data in damage.writes:
                    file.seek(offset)
                    file.write(self.content[offset : offset + len(data)])
                file.truncate(len(self.content))


def damage(sample: Sample, chance: random.Random) -> Damage:
    """One to four kinds of damage."""
    result = Damage()
    for _ in range(chance.choice((1, 1, 2, 4))):
        kind = chance.choice(KINDS)
        result.names.append(kind.__name__.removeprefix("_"))
        kind(sample, chance, result)
    size = len(sample.content)
    # Only what is inside the file, so that taking it back needs no more than the content.
    result.writes = [(at, data[: size - at]) for at, data in result.writes if 0 <= at < size]
    return result


def _number(chance: random.Random, size: int, sample: Sample) -> bytes:
    near = chance.choice(sample.sections).offset if sample.sections else 0
    value = chance.choice(
        (
            chance.choice(_EXTREMES),
            chance.getrandbits(8 * size),
            len(sample.content) + chance.randrange(-64, 64),
            near + chance.randrange(-8, 9),
        )
    )
    return (value & (1 << 8 * size) - 1).to_bytes(size, "little")


def _flipped_bits(sample: Sample, chance: random.Random, result: Damage) -> None:
    sections = sample.section("")
    area = chance.choice(sections) if sections and chance.random() < 0.7 else None
    start, size = (area.offset, area.size) if area else (0, len(sample.content))
    for _ in range(chance.choice((1, 10, 1000))):
        at = start + chance.randrange(size)
        result.writes.append((at, bytes([sample.content[at] ^ 1 << chance.randrange(8)])))


def _truncated(sample: Sample, chance: random.Random, result: Damage) -> None:
    borders = [0, 64, len(sample.content)]
    borders += [
        place for section in sample.sections for place in (section.offset, section.offset + section.size)
    ]
    near = chance.choice(borders) + chance.choice((-1, 0, 1, 8))
    place = near if chance.random() < 0.7 else chance.randrange(len(sample.content))
    result.length = max(0, min(place, len(sample.content)))


def _grown(sample: Sample, chance: random.Random, result: Damage) -> None:
    """A sparse file of some GiB, and a header that says that something of it is there."""
    result.length = chance.choice((1 << 31, 1 << 33, 1 << 40))
    if sample.sections:
        index = chance.randrange(len(sample.sections))
        value = struct.pack("<Q", result.length - sample.sections[index].offset)
        result.writes.append((sample.section_headers + index * _SECTION_HEADER_SIZE + 32, value))


def _header(sample: Sample, chance: random.Random, result: Damage) -> None:
    offset, size = chance.choice(_HEADER_FIELDS)
    result.writes.append((offset, _number(chance, size, sample)))


def _program_header(sample: Sample, chance: random.Random, result: Damage) -> None:
    index = chance.randrange(len(sample.segments))
    offset, size = chance.choice(_PROGRAM_FIELDS)
    at = sample.program_headers + index * _PROGRAM_HEADER_SIZE + offset
    result.writes.append((at, _number(chance, size, sample)))


def _section_header(sample: Sample, chance: random.Random, result: Damage) -> None:
    for _ in range(chance.choice((1, 1, 4))):
        index = chance.randrange(max(1, len(sample.sections)))
        offset, size = chance.choice(_SECTION_FIELDS)
        at = sample.section_headers + index * _SECTION_HEADER_SIZE + offset
        result.writes.append((at, _number(chance, size, sample)))


def _duplicated_header(sample: Sample, chance: random.Random, result: Damage) -> None:
    if chance.random() < 0.3:
        start, size, count = sample.program_headers, _PROGRAM_HEADER_SIZE, len(sample.segments)
    else:
        start, size, count = sample.section_headers, _SECTION_HEADER_SIZE, max(1, len(sample.sections))
    one, other = (start + chance.randrange(count) * size for _ in range(2))
    result.writes.append((other, sample.content[one : one + size]))


def _overlapping_sections(sample: Sample, chance: random.Random, result: Damage) -> None:
    count = max(1, len(sample.sections))
    one, other = (sample.section_headers + chance.randrange(count) * _SECTION_HEADER_SIZE for _ in range(2))
    # Offset and size of the one, under the name and type of the other.
    result.writes.append((other + 24, sample.content[one + 24 : one + 40]))


def _symbols(sample: Sample, chance: random.Random, result: Damage) -> None:
    table = sample.symbols
    if table is None:
        return
    count = table.size // _SYMBOL_SIZE
    offset, size = chance.choice(_SYMBOL_FIELDS)
    same = _number(chance, size, sample)
    if chance.random() < 0.3:
        # All symbols with one name, one address, one type.
        content = bytearray(sample.content[table.offset : table.offset + count * _SYMBOL_SIZE])
        if offset == 0:
            index = chance.randrange(count) * _SYMBOL_SIZE
            same = bytes(content[index : index + 4])
        for at in range(size):
            content[offset + at :: _SYMBOL_SIZE] = bytes([same[at]]) * count
        result.writes.append((table.offset, bytes(content)))
        return
    for _ in range(chance.choice((1, 100, 2000))):
        at = table.offset + chance.randrange(count) * _SYMBOL_SIZE + offset
        result.writes.append((at, _number(chance, size, sample)))


def _names(sample: Sample, chance: random.Random, result: Damage) -> None:
    table = sample.strings
    if table is None:
        return
    choice = chance.random()
    if choice < 0.2:
        content = sample.content[table.offset : table.offset + table.size]
        result.writes.append((table.offset, content.replace(b"\0", chance.choice((b"a", b"E", b"_", b"$")))))
    elif choice < 0.4:
        words = b"".join(chance.choice(_WORDS) for _ in range(chance.randrange(1, 40)))
        result.writes.append((table.offset, (words * (table.size // len(words) + 1))[: table.size]))
    else:
        for _ in range(chance.choice((1, 100, 5000))):
            at = table.offset + chance.randrange(table.size)
            result.writes.append((at, chance.choice(_WORDS)))


def _inside(*prefixes: str) -> Callable[[Sample, random.Random, Damage], None]:
    """Damage inside sections of some names: bytes, numbers, words, runs."""

    def inside(sample: Sample, chance: random.Random, result: Damage) -> None:
        sections = sample.section(*prefixes)
        if not sections:
            return
        section = chance.choice(sections)
        if chance.random() < 0.15:
            size = min(section.size, 1 << 20)
            word = chance.choice((b"\0", b"\xff", b"\x80", *_WORDS, chance.randbytes(7)))
            result.writes.append((section.offset, (word * (size // len(word) + 1))[:size]))
            return
        for _ in range(chance.choice((1, 20, 1000))):
            # The beginning, where the lengths and the counts stand, half of the time.
            reach = section.size if chance.random() < 0.5 else min(section.size, 256)
            at = section.offset + chance.randrange(reach)
            word = chance.choice(
                (_number(chance, 8, sample), _number(chance, 4, sample), chance.choice(_WORDS))
            )
            result.writes.append((at, word[: section.offset + section.size - at]))

    inside.__name__ = "inside " + " ".join(prefixes)
    return inside


KINDS: tuple[Callable[[Sample, random.Random, Damage], None], ...] = (
    *(_flipped_bits, _truncated, _grown, _header, _program_header, _section_header, _section_header),
    *(_duplicated_header, _overlapping_sections, _symbols, _symbols, _names, _names),
    *(_inside(".note", ".comment"), _inside(".rela", ".dynamic", ".got"), _inside(".rodata", ".data.rel.ro")),
    *(_inside(".text"), _inside(".eh_frame", ".gcc_except_table"), _inside(".debug_"), _inside(".debug_")),
    *(_inside(".shstrtab", ".tdata"), _inside("")),
)
"""Each adds its damage to what is there."""
