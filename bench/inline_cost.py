"""What the probes inside a target cost a call, in nanoseconds: the very code, called without a target.

    python -m bench.inline_cost [--rounds N]

``no_agent``: an entry whose agent has ended. ``no_request``: a root outside any request. ``adoption``: a
root from begin to end, which is three entries, a trace id handed out, and a parent written. ``spawn``:
a task's new id, in a request.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from build_native import WARNINGS, find_clang
from spanweld.writers.inline.writer import CODE

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("new_trace_id", "build_recording_span", "ensure_ended")
SPAWN = ("behind", "back", "cookie")


def measure(rounds: int, folder: Path) -> dict[str, float]:
    """Nanoseconds by name; CalledProcessError if anything came out wrong."""
    with CODE.open("rb") as file:
        elf = ELFFile(file)
        text, table = elf.get_section_by_name(".text"), elf.get_section_by_name(".symtab")
        assert text is not None
        assert isinstance(table, SymbolTableSection)
        symbols = {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}
        (folder / "code").write_bytes(text.data())
    places = [symbols[f"{part}_{place}_0"] for place in PLACES for part in ("stub", "displaced")]
    places += [symbols[f"{part}_task_spawned_0"] for part in SPAWN]
    program = folder / "inline_cost"
    include = (f"-I{ROOT / 'src/spanweld/bpf/include'}", f"-I{ROOT / 'src/spanweld/probes'}")
    source = ROOT / "bench/inline_cost.c"
    subprocess.run([find_clang(), "-O2", *WARNINGS, *include, str(source), "-o", str(program)], check=True)
    command = [str(program), str(folder / "code"), str(rounds), *map(str, places)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: float(value) for name, value in (line.split() for line in output.splitlines())}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="cost of the probes inside a target")
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, nanoseconds in measure(arguments.rounds, Path(folder)).items():
            print(f"{name:12} {nanoseconds:8.1f} ns")
    return 0


if __name__ == "__main__":
    sys.exit(main())
