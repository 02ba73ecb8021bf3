"""Finds the process to trace, and refuses what is none: kernel threads, zombies, threads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from spanweld.errors import TargetError
from spanweld.model import Pid

PF_KTHREAD = 0x00200000
"""Flag of ``task_struct.flags``; include/linux/sched.h."""


@dataclass(frozen=True, slots=True)
class Stat:
    """What is used of /proc/PID/stat, whose second field may hold spaces and parentheses."""

    name: str
    state: str
    parent: Pid
    flags: int
    start_ticks: int

    @classmethod
    def parse(cls, text: str) -> Stat:
        """Fields as numbered in proc_pid_stat(5): 2 name, 3 state, 4 ppid, 9 flags, 22 starttime."""
        head, _, tail = text.rpartition(")")
        rest = tail.split()
        return cls(head.partition("(")[2], rest[0], Pid(int(rest[1])), int(rest[6]), int(rest[19]))


@dataclass(frozen=True, slots=True)
class Process:
    """A process that can be traced, as it was when it was found.

    ``start_ticks`` (clock ticks since boot) tells it from a later process with the same pid. ``exe`` is
    the executable's path in the process's own mount namespace, for people; ``image_path`` can be opened
    from here while the process lives, also if the file was deleted or is in another mount namespace.
    """

    pid: Pid
    name: str
    uid: int
    start_ticks: int
    exe: str
    is_exe_deleted: bool

    @property
    def image_path(self) -> Path:
        """The executable, by the kernel's link to the very file that runs."""
        return Path(f"/proc/{self.pid}/exe")

    @property
    def still_runs(self) -> bool:
        """Whether this very process is there and no zombie."""
        stat = read_stat(self.pid)
        return stat is not None and stat.start_ticks == self.start_ticks and stat.state not in "ZX"


def read_stat(pid: Pid) -> Stat | None:
    """The process's stat; None if there is no such process."""
    try:
        return Stat.parse(Path(f"/proc/{pid}/stat").read_text(errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_running(pid: Pid) -> bool:
    """Whether there is a process with this pid that has not ended."""
    stat = read_stat(pid)
    return stat is not None and stat.state not in "ZX"


def tracer_of(pid: Pid) -> Pid | None:
    """Who traces the process's main thread with ptrace; None if nobody does, or the process is gone."""
    tracer = int(_status(pid).get("TracerPid", "0"))
    return Pid(tracer) if tracer else None


def find_by_pid(pid: Pid) -> Process:
    """The process with this pid; raises TargetError where there is none that can be traced."""
    stat = read_stat(pid)
    status = _status(pid)
    if stat is None or not status:
        raise TargetError(
            f"there is no process {pid}", "Look it up with `pgrep -a NAME`, or use `--exe GLOB`."
        )
    if (owner := int(status.get("Tgid", pid))) != pid:
        raise TargetError(f"{pid} is a thread of process {owner}", f"Use `--pid {owner}`.")
    if stat.state in "ZX":
        raise TargetError(
            f"process {pid} ({stat.name}) has ended and waits for its parent to notice", "Start it again."
        )
    if stat.flags & PF_KTHREAD:
        raise TargetError(f"process {pid} ({stat.name}) is a thread of the kernel")
    link = Path(f"/proc/{pid}/exe")
    try:
        exe = str(link.readlink())
        is_deleted = link.stat().st_nlink == 0
    except PermissionError as error:
        raise TargetError(f"process {pid} ({stat.name}) may not be looked at", "Run as root.") from error
    except OSError as error:
        raise TargetError(f"process {pid} ({stat.name}) has ended", "Start it again.") from error
    return Process(
        pid=pid,
        name=stat.name,
        uid=int(status["Uid"].split()[0]),
        start_ticks=stat.start_ticks,
        exe=exe.removesuffix(" (deleted)") if is_deleted else exe,
        is_exe_deleted=is_deleted,
    )


def find_by_exe(glob: str) -> tuple[Process, ...]:
    """All processes whose executable matches, by pid; raises TargetError if there is none.

    A glob with a slash is matched against the whole path, one without against the file's name. This
    process itself is never among them.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            process = find_by_pid(Pid(int(entry.name)))
        except TargetError:
            continue
        if fnmatchcase(process.exe if "/" in glob else Path(process.exe).name, glob):
            found.append(process)
    if not found:
        raise TargetError(
            f"no process runs an executable that matches {glob!r}",
            "A glob with a slash must match the whole path (as '*/bin/app'), one without the file's name.",
        )
    return tuple(sorted(found, key=lambda process: process.pid))


def _status(pid: Pid) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
