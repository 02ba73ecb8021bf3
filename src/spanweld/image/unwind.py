"""Where functions begin and end, from the tables by which a panic unwinds; `strip` leaves them.

`.eh_frame_hdr` (PT_GNU_EH_FRAME) lists the first address of every function with the place of its
entry in `.eh_frame`, which has the size. Source: Linux Standard Base Core, "Exception Frames". Only
the encodings that linkers write are read; with others there is no function.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice
from operator import gt

from spanweld.errors import ImageError
from spanweld.image.elf import Image
from spanweld.model import VirtAddr

_PT_GNU_EH_FRAME = 0x6474E550
_HEADER = struct.Struct("<BBBBiI")
_VERSION = 1
# DW_EH_PE_udata4 for the number of entries, DW_EH_PE_datarel | DW_EH_PE_sdata4 for the entries.
_COUNT_ENCODING, _TABLE_ENCODING = 0x03, 0x3B
_ENTRY = 8
_MAX_FUNCTIONS = 1 << 20
# Length, offset of the CIE, first address (relative to itself), size: with the encoding
# DW_EH_PE_pcrel | DW_EH_PE_sdata4, which is what compilers use in position-independent code and out of it.
_FRAME = struct.Struct("<IIiI")


class FunctionTable:
    """The functions of an image; empty where there is no table or it cannot be read."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self.starts: list[int] = []
        self._frames: Sequence[int] = ()
        for segment in image.segments:
            if segment.type != _PT_GNU_EH_FRAME or segment.file_size < _HEADER.size:
                continue
            try:
                self.starts, self._frames = _read_table(
                    image, segment.address, segment.offset, segment.file_size
                )
            except ImageError:
                continue
            break

    def is_start(self, address: int) -> bool:
        """Whether a function begins at ``address``."""
        return self.containing(address) == address

    def containing(self, address: int) -> int | None:
        """The begin of the function that ``address`` lies in, or after, up to the next one."""
        index = self._index(address)
        return self.starts[index] if index >= 0 else None

    def size(self, start: int) -> int:
        """Bytes of the function that begins at ``start``; 0 where that is not known."""
        index = self._index(start)
        frame = self._frames[index] if index >= 0 and self.starts[index] == start else None
        data = self._image.read_memory(frame, _FRAME.size) if frame is not None else None
        if frame is None or data is None:
            return 0
        _, _, relative, size = _FRAME.unpack(data)
        return size if frame + 8 + relative == start and size < 1 << 31 else 0

    def _index(self, address: int) -> int:
        """Of the last function that begins at or before ``address``; -1 if none does."""
        return bisect_right(self.starts, address) - 1


def _read_table(image: Image, address: VirtAddr, offset: int, size: int) -> tuple[list[int], Sequence[int]]:
    """Where functions begin, in order, and where each one's frame description is."""
    version, _, count_encoding, table_encoding, _, count = _HEADER.unpack(image.read(offset, _HEADER.size))
    if version != _VERSION or (count_encoding, table_encoding) != (_COUNT_ENCODING, _TABLE_ENCODING):
        return [], ()
    count = min(count, (size - _HEADER.size) // _ENTRY, _MAX_FUNCTIONS)
    pairs = array("i", image.read(offset + _HEADER.size, count * _ENTRY))
    starts = [address + start for start in pairs[::2]]
    frames = [address + frame for frame in pairs[1::2]]
    # It is in order already, unless somebody means harm.
    if any(map(gt, starts, islice(starts, 1, None))):
        order = sorted(range(len(starts)), key=starts.__getitem__)
        starts, frames = [starts[at] for at in order], [frames[at] for at in order]
    return starts, frames
