"""Where a process has what in its memory, and what it holds."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from spanweld.errors import TargetError
from spanweld.model import FileOffset, Pid, VirtAddr

_OCTAL_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MemoryRange:
    """A line of /proc/PID/maps: ``start`` inclusive, ``end`` exclusive; ``path`` is empty if anonymous."""

    start: VirtAddr
    end: VirtAddr
    permissions: str
    offset: FileOffset
    inode: int
    path: str

    @property
    def is_executable(self) -> bool:
        """Whether code in it can run."""
        return "x" in self.permissions


def memory_ranges(pid: Pid) -> tuple[MemoryRange, ...]:
    """Every mapping, in order of address; raises TargetError if the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").split("\n")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetError(f"process {pid} has ended") from error
    except PermissionError as error:
        raise TargetError(f"process {pid} may not be looked at", "Run as root.") from error
    return tuple(_parse(line) for line in lines if line)


def image_ranges(pid: Pid) -> tuple[MemoryRange, ...]:
    """The mappings of the process's own executable.

    Told by path, not by device and inode: on overlayfs and btrfs those differ between maps and stat.
    """
    try:
        exe = str(Path(f"/proc/{pid}/exe").readlink())
    except FileNotFoundError as error:
        raise TargetError(f"process {pid} has ended") from error
    return tuple(r for r in memory_ranges(pid) if r.path == exe)


def load_bias(pid: Pid, *, offset: FileOffset, address: VirtAddr) -> int:
    """What is added to the executable's ELF addresses in this process; 0 if it is not relocatable.

    ``offset`` and ``address`` are the same place, in an executable segment, as the ELF file has it.
    """
    for r in image_ranges(pid):
        if r.is_executable and r.offset <= offset < r.offset + (r.end - r.start):
            return r.start + (offset - r.offset) - address
    raise TargetError(f"process {pid} has no code mapped from offset {offset:#x} of its executable")


def read_memory(pid: Pid, address: VirtAddr, size: int) -> bytes | None:
    """``size`` bytes; None if not all of them can be read. Raises TargetError if the process is gone."""
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise TargetError(f"process {pid} may not be looked at", "Run as root.") from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetError(f"process {pid} has ended") from error
    try:
        data = os.pread(memory, size, address)
    except (OSError, OverflowError) as error:
        if isinstance(error, OverflowError) or error.errno in (errno.EIO, errno.EFAULT, errno.EINVAL):
            return None
        raise
    finally:
        os.close(memory)
    return data if len(data) == size else None


def _parse(line: str) -> MemoryRange:
    fields = line.split(maxsplit=5)
    start, end = fields[0].split("-")
    path = _OCTAL_ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[5]) if len(fields) > 5 else ""
    return MemoryRange(
        start=VirtAddr(int(start, 16)),
        end=VirtAddr(int(end, 16)),
        permissions=fields[1],
        offset=FileOffset(int(fields[2], 16)),
        inode=int(fields[4]),
        path=path,
    )
