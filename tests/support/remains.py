"""What an agent leaves behind: in the kernel, in the process that it traced, in the file systems."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from spanweld.model import Pid
from spanweld.plan import make_plan
from spanweld.process.memory import image_ranges
from tests.support.services import PATIENCE

PINS = Path("/sys/fs/bpf/spanweld")
_KINDS = {"prog": "prog_id", "map": "map_id", "link": "link_id"}


@dataclass(frozen=True, slots=True)
class KernelObjects:
    """Ids of BPF programs, maps and links; the kernel gives an id once."""

    ids: frozenset[tuple[str, int]]

    @classmethod
    def of(cls, pid: int) -> KernelObjects:
        """All that a process has open."""
        found = set()
        for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
            try:
                text = entry.read_text()
            except FileNotFoundError:
                continue
            for kind, name in _KINDS.items():
                match = re.search(rf"^{name}:\s*(\d+)$", text, re.MULTILINE)
                # A link's text names its program, too.
                if match and (kind == "link" or "link_id:" not in text):
                    found.add((kind, int(match[1])))
        return cls(frozenset(found))

    def alive(self) -> set[tuple[str, int]]:
        """Those that the kernel still has."""
        now = set()
        for kind in _KINDS:
            listed = subprocess.run(["bpftool", "-j", kind, "list"], check=True, capture_output=True)
            now |= {(kind, int(item["id"])) for item in json.loads(listed.stdout or b"[]")}
        return now & self.ids


def wait_until(condition: Callable[[], object], what: str, timeout: float = 10.0) -> None:
    """Asks until it is so; AssertionError if it does not become so."""
    deadline = time.monotonic() + timeout * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not so within {timeout} s: {what}"
        time.sleep(0.01)


def thread_ids(pid: int) -> set[int]:
    """The threads of a process."""
    return {int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()}


def tracers_of_threads(pid: int) -> set[int]:
    """Who traces any of its threads."""
    found = set()
    for tid in thread_ids(pid):
        try:
            text = Path(f"/proc/{pid}/task/{tid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.add(int(text.partition("TracerPid:")[2].split()[0]))
    return found - {0}


def tracer_processes(pid: int) -> list[int]:
    """Processes that are the stop writer's tracer of this process."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words[0].endswith(b"/spanweld-tracer") and words[2:3] == [str(pid).encode()]:
            found.append(int(entry.name))
    return found


def probed(pid: int, executable: Path) -> int:
    """At how many attach points the process's code is not what the file has."""
    code = executable.read_bytes()
    changed = 0
    ranges = [found for found in image_ranges(Pid(pid)) if found.is_executable]
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for offset in {point.offset for point in make_plan(executable).points}:
            for found in ranges:
                if found.offset <= offset < found.offset + found.end - found.start:
                    memory.seek(found.start + offset - found.offset)
                    changed += memory.read(5) != code[offset : offset + 5]
    return changed


def assert_untouched(pid: int, executable: Path, objects: KernelObjects) -> None:
    """Nothing of an agent that has ended is left in or around a process that runs."""
    # The kernel frees in the background what nobody holds any more.
    wait_until(lambda: not objects.alive(), "the agent's BPF objects are gone")
    assert not (PINS / str(pid)).exists()
    wait_until(lambda: not tracer_processes(pid), "the tracer has ended", 5)
    assert tracers_of_threads(pid) == set()
    assert probed(pid, executable) == 0
