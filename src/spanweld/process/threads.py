"""The threads of a process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from spanweld.errors import TargetError
from spanweld.model import Pid, Tid


@dataclass(frozen=True, slots=True)
class Thread:
    """A thread as it was when it was listed; bit N - 1 of ``blocked`` is signal N."""

    tid: Tid
    name: str
    blocked: int

    def blocks(self, signal: Signals) -> bool:
        """Whether the signal stays pending instead of reaching this thread."""
        return bool(self.blocked >> (signal - 1) & 1)


def threads(pid: Pid) -> tuple[Thread, ...]:
    """All threads by id; those that end meanwhile are left out. Raises TargetError if the process is gone."""
    try:
        entries = list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetError(f"process {pid} has ended") from error
    found = [_thread(entry) for entry in entries]
    return tuple(sorted((thread for thread in found if thread), key=lambda thread: thread.tid))


def _thread(folder: Path) -> Thread | None:
    try:
        lines = (folder / "status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return Thread(Tid(int(folder.name)), status["Name"], int(status["SigBlk"], 16))
