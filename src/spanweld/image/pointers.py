"""The constants of an image that hold addresses, as the loader leaves them: vtables, panic locations.

They lie in the part that is read-only after relocation (PT_GNU_RELRO); in an executable at a fixed
address, which needs no relocation, also among its other constants. All is read at once, since what
is looked for may be anywhere in it, and no more than 64 MiB of it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from weakref import WeakKeyDictionary

from spanweld.image.elf import MAX_RELOCATIONS, Image

_PT_GNU_RELRO = 0x6474E552
_SHT_RELA = 4
_R_X86_64_RELATIVE = 8
_RELA = struct.Struct("<QQq")
_WORD = struct.Struct("<Q")
_MASK = (1 << 64) - 1
MAX_MATCHES = 1 << 16
"""How many places are found of one pattern."""
_MAX_AREA = 1 << 26
_MAX_STRING = 1 << 10


# Address and bytes of each area. Whoever follows code asks for them, and to relocate them takes a while.
_areas_of: WeakKeyDictionary[Image, list[tuple[int, bytearray]]] = WeakKeyDictionary()


def _relocated(image: Image) -> list[tuple[int, bytearray]]:
    areas: list[tuple[int, bytearray]] = []
    left = _MAX_AREA
    for segment in image.segments:
        relocated = segment.type == _PT_GNU_RELRO
        constant = not image.is_pie and segment in image.loads and not segment.executable
        if not relocated and (not constant or segment.writable):
            continue
        data = image.read_memory(segment.address, min(segment.file_size, left) & ~7)
        if data and segment.address % 8 == 0:
            areas.append((segment.address, bytearray(data)))
            left -= len(data)
    # Packed relocations (.relr.dyn) keep the address in the word itself: nothing is due for them.
    section = image.section(".rela.dyn")
    if not areas or section is None or section.type != _SHT_RELA:
        return areas
    size = min(section.size, MAX_RELOCATIONS) // _RELA.size * _RELA.size
    for _, piece in image.chunks(section.offset, size, record=_RELA.size):
        for slot, kind, addend in _RELA.iter_unpack(piece[: len(piece) // _RELA.size * _RELA.size]):
            if kind != _R_X86_64_RELATIVE:
                continue
            for start, area in areas:
                if start <= slot <= start + len(area) - 8:
                    _WORD.pack_into(area, slot - start, addend & _MASK)
    return areas


class Pointers:
    """Words of 8 bytes at addresses; aligned ones only."""

    def __init__(self, image: Image) -> None:
        self._image = image
        if image not in _areas_of:
            _areas_of[image] = _relocated(image)
        self._areas = _areas_of[image]

    def word(self, address: int) -> int | None:
        """The word at ``address``; None for what is not among these constants."""
        for start, area in self._areas:
            if start <= address <= start + len(area) - 8:
                word: int = _WORD.unpack_from(area, address - start)[0]
                return word
        return None

    def words(self, address: int, count: int) -> tuple[int, ...] | None:
        """``count`` words from ``address`` on; None where they are not all among these constants."""
        for start, area in self._areas:
            if start <= address and address + 8 * count <= start + len(area):
                return struct.unpack_from(f"<{count}Q", area, address - start)
        return None

    def find(self, pattern: re.Pattern[bytes]) -> Iterator[int]:
        """Aligned addresses where ``pattern`` matches, up to 65536 of them.

        Matches may overlap where the pattern only looks ahead.
        """
        count = 0
        for start, area in self._areas:
            for match in pattern.finditer(area):
                if match.start() % 8 == 0:
                    yield start + match.start()
                    count += 1
                    if count == MAX_MATCHES:
                        return

    def holds(self, word: int) -> bool:
        """Whether any of the words is ``word``."""
        return next(self.find(re.compile(re.escape(_WORD.pack(word)))), None) is not None

    def text(self, address: int) -> bytes | None:
        """The bytes of a ``&'static str`` whose pointer and length are the words at ``address``."""
        pair = self.words(address, 2)
        if pair is None or not 0 < pair[1] <= _MAX_STRING:
            return None
        return self._image.read_memory(pair[0], pair[1])
