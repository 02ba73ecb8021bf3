"""What `spanweld inspect` costs on executables of 100 MB: seconds of the whole command, and memory.

    python -m bench.inspect_cost [--rounds N]

Three executables are made of the `lab` service. To reach their size without hours of compiling, the code
of `lab` itself is linked in again and again, with names of its own, unwind tables and symbols:

- `debug info`: as cargo builds it with `debug = 2`, most of it debug information;
- `symbols`: without debug information, 100 MB of code, names, and unwind tables;
- `stripped`: the same of 100 MB without any symbol.

Each is a service that works: the agent is attached to it too, and the time to its ready line is taken.
What that takes more than to inspect it is mostly the kernel's check of the BPF programs, the same for every
executable; `small` is the release build of `lab`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.agent import attach
from tests.support.profiles import Profile
from tests.support.services import Service, binary

SIZE = 100 * 10**6
GOAL_SECONDS = 2.0
GOAL_MEMORY = 300 * 10**6
GOAL_ATTACH = 1.0
"""Seconds more than to inspect the same executable, which attaching does, too."""

# What objcopy leaves of each kind.
KINDS = {"debug info": "--preserve-dates", "symbols": "--strip-debug", "stripped": "--strip-all"}

FULL_DEBUG = Profile("full-debug", "dev", settings={"debug": "2"})
# The probes' own functions stay what they are: their copies would be more places to attach to.
_LEGACY = re.compile(r"(_ZN\S+17h)[0-9a-f]{16}E")
_NOT_COPIED = ("opentelemetry_sdk", "TaskIdGuard", "current_task_id")


@dataclass(frozen=True, slots=True)
class Cost:
    """One run of a command: seconds that passed and of CPU, and the most bytes of memory it had at once."""

    seconds: float
    cpu: float
    memory: int


def copies_of(executable: Path, number: int, folder: Path) -> Path:
    """An object file with ``number`` copies of an executable's code, each function under a new name."""
    headers = subprocess.run(
        ["readelf", "-SW", executable], check=True, capture_output=True, text=True
    ).stdout
    match = re.search(r" \.text +PROGBITS +([0-9a-f]+) ([0-9a-f]+) ([0-9a-f]+) ", headers)
    assert match is not None
    address, offset, size = (int(group, 16) for group in match.groups())
    code = folder / "text.bin"
    code.write_bytes(executable.read_bytes()[offset : offset + size])
    symbols = subprocess.run(["nm", "-S", executable], check=True, capture_output=True, text=True).stdout
    functions: dict[int, tuple[int, str]] = {}
    for line in symbols.splitlines():
        found = re.fullmatch(rf"([0-9a-f]+) ([0-9a-f]+) [tT] {_LEGACY.pattern}", line)
        if found and address <= int(found[1], 16) < address + size:
            functions[int(found[1], 16) - address] = (int(found[2], 16), found[3])
    source = folder / "copies.s"
    with source.open("w") as file:
        file.write('.section .text.copies,"axR",@progbits\n')
        for copy in range(number):
            file.writelines(_copy(copy, functions, size))
    output = folder / f"copies{number}.o"
    subprocess.run(["as", "-o", output, source], cwd=folder, check=True)
    return output


def _copy(copy: int, functions: dict[int, tuple[int, str]], total: int) -> Iterator[str]:
    starts = sorted(functions)
    for start, following in zip(starts, [*starts[1:], total], strict=True):
        size, head = functions[start]
        name = f'"{head}{copy:02x}{start:014x}E"'
        if any(word in name for word in _NOT_COPIED):
            name = f".Lcode{copy}_{start}"
        yield f".type {name},@function\n{name}:\n.cfi_startproc\n"
        yield f'.incbin "text.bin",{start},{following - start}\n.cfi_endproc\n.size {name},{size}\n'


def executables(folder: Path) -> dict[str, Path]:
    """The three kinds of executable, made anew in ``folder``; ``lab`` as it is stays in cargo's folder."""
    lab = folder / "lab"
    shutil.copy(FULL_DEBUG.build("lab"), lab)

    def build(copies: int, option: str, path: Path) -> int:
        linked = FULL_DEBUG.build("lab", f"-Clink-arg={copies_of(lab, copies, folder)}")
        subprocess.run(["objcopy", option, linked, path], check=True)
        return path.stat().st_size

    result = {}
    for kind, option in KINDS.items():
        path = result[kind] = folder / kind.replace(" ", "-")
        one, two = build(1, option, path), build(2, option, path)
        build(max(1, 1 + -(-(SIZE - one) // (two - one))), option, path)
    FULL_DEBUG.build("lab")
    return result


def run(*command: str) -> Cost:
    """Runs a command once, its output thrown away; raises where it fails."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def time_to_attach(executable: Path) -> float:
    """Seconds from the start of `spanweld attach` to its ready line."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with tempfile.TemporaryDirectory() as folder, Service(executable, environ=environ) as service:
        begin = time.monotonic()
        with attach(service.pid, export=Path(folder) / "spans"):
            seconds = time.monotonic() - begin
    return seconds


def main() -> int:
    """Measures each kind; exit code 1 if a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7, help="how often each (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the executables there")
    options = parser.parse_args()
    met = True
    with tempfile.TemporaryDirectory() as temporary:
        paths = {"small": binary("lab", "release"), **executables(options.keep or Path(temporary))}
        for kind, path in paths.items():
            command = (sys.executable, "-m", "spanweld", "inspect", str(path))
            costs = [run(*command) for _ in range(options.rounds)]
            seconds = [cost.seconds for cost in costs]
            memory = max(cost.memory for cost in costs)
            attaching = [time_to_attach(path) for _ in range(options.rounds)]
            print(
                f"{kind:<10} {path.stat().st_size / 1e6:4.0f} MB   "
                f"inspect {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f}, "
                f"CPU {statistics.median(cost.cpu for cost in costs):.2f}), {memory / 1e6:.0f} MB   "
                f"attach {statistics.median(attaching):.2f} s ({min(attaching):.2f} to {max(attaching):.2f})",
                flush=True,
            )
            met = met and statistics.median(seconds) < GOAL_SECONDS and memory < GOAL_MEMORY
            met = met and statistics.median(attaching) - statistics.median(seconds) < GOAL_ATTACH
    print(
        f"goal: {GOAL_SECONDS:.0f} s, {GOAL_MEMORY / 1e6:.0f} MB, to attach {GOAL_ATTACH:.0f} s more: ",
        end="",
    )
    print("met" if met else "missed")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
