"""The pinned maps of each target: /sys/fs/bpf/spanweld/<pid>/, owner-only.

A bpffs holds no plain files, so what must be known besides the maps is in the texts of symbolic
links: the target's start time, since process ids are reused, and the agent that attached.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from spanweld.bpf.host import BPFFS
from spanweld.errors import TargetError
from spanweld.model import Pid
from spanweld.process.find import read_stat

PINS = BPFFS / "spanweld"
_START_TIME = "start_time"
_AGENT = "agent"


def start_time(pid: int) -> str:
    """Clock ticks between boot and the start of a process, as text; empty if it does not exist."""
    stat = read_stat(Pid(pid))
    return str(stat.start_ticks) if stat else ""


class PinFolder:
    """The folder of one target, made by ``create`` and gone after ``remove``."""

    def __init__(self, pid: Pid) -> None:
        self.path = PINS / str(pid)
        self._pid = pid

    def create(self) -> None:
        """Makes the folder; TargetError if a live agent has one for this very process."""
        with _alone():
            agent = _live_agent(self.path)
            if agent and _link(self.path, _START_TIME) == start_time(self._pid):
                raise TargetError(
                    f"process {self._pid} is traced by spanweld already (process {agent})",
                    f"end that one first: kill {agent}",
                )
            self._remove()
            PINS.mkdir(mode=0o700, exist_ok=True)
            self.path.mkdir(mode=0o700)
            (self.path / _START_TIME).symlink_to(start_time(self._pid) or "0")
            (self.path / _AGENT).symlink_to(this_agent())

    def remove(self) -> None:
        """Removes the folder with all in it, and the one around it when it is empty."""
        with _alone():
            self._remove()

    def remove_stale(self) -> bool:
        """Removes the folder unless its agent lives; returns whether it did."""
        with _alone():
            if _live_agent(self.path):
                return False
            self._remove()
            return True

    def remove_of(self, agent: str) -> None:
        """Removes the folder if it is this agent's, living or not."""
        with _alone():
            if _link(self.path, _AGENT) == agent:
                self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for entry in list(self.path.iterdir()):
                entry.unlink()
            self.path.rmdir()
        with contextlib.suppress(OSError):
            PINS.rmdir()


def this_agent() -> str:
    """What a folder says of the agent that made it, if that is this process."""
    return f"{os.getpid()}:{start_time(os.getpid())}"


def remove_stale() -> int:
    """Removes what agents that were killed left behind; returns how many folders that were."""
    return sum(folder.remove_stale() for folder in _folders())


def remove_of(agent: str) -> None:
    """Removes all folders of an agent (``this_agent``), living or not."""
    for folder in _folders():
        folder.remove_of(agent)


def _folders() -> list[PinFolder]:
    with contextlib.suppress(FileNotFoundError):
        return [PinFolder(Pid(int(folder.name))) for folder in PINS.iterdir()]
    return []


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keeps other agents out: one that tidies up must not take a folder that is just being made."""
    descriptor = os.open(BPFFS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _live_agent(folder: Path) -> int:
    """Process id of the agent whose folder it is, 0 if it is no more."""
    pid, _, started = _link(folder, _AGENT).partition(":")
    return int(pid) if pid.isdecimal() and started and start_time(int(pid)) == started else 0


def _link(folder: Path, name: str) -> str:
    try:
        return str((folder / name).readlink())
    except OSError:
        return ""
