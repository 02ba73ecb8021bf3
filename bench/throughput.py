"""What the agent costs a service: a hit of a probe, throughput, and latency; copies side by side.

    python -m bench.throughput [--rounds N] [--seconds S] [--case NAME]...

Copies of one service run at once and are loaded one after the other, in rounds that alternate: two bare ones
(the second one's ratio to the first is the spread of the machine, A/A), and one for each way of tracing.
A figure is the median over the rounds; a ratio is to the first bare copy in the same round.

- hit: nanoseconds by manual root (three probes; two stops more with stop), over one connection: what a
  request with ten takes longer than one with none, and that less what it does in the bare copy. And by
  call, what code inside the target and a uprobe cost each by themselves.
- throughput: wrk at saturation. The agent's export is no part of it: its process is halted meanwhile (what
  lets threads stop for it is not), and the next turn begins once it has exported what it can.
- processor time: what the service's own threads took for a request in those runs, with all that runs in them:
  probes, stops, the kernel.
- least: a copy of which the kernel looks at each transfer and writes something down for each response, and
  nothing else (least.bpf.c): no way to follow requests from the kernel can cost less.
- latency: p99 at a fixed rate, 0.4 of the throughput of the slowest copy; from the moment at which each
  request was due. With all that the agent does.

Cases: `minimal` (no SDK), `lab` with one manual span and with ten, and `users`, which calls `store` for each
request over connections that are kept, so that there are probes on spawns and wakes. Needs root, clang
and wrk.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from bench.inline_cost import measure as measure_inline
from build_native import WARNINGS, bpf_command, find_clang
from spanweld.agent import load_programs
from spanweld.bpf.host import look_at_host
from spanweld.bpf.libbpf import BpfObject, Libbpf, detach_all
from spanweld.commands.doctor import measure_uprobe
from spanweld.settings import Settings
from tests.support.agent import attach
from tests.support.services import Service, binary

CONNECTIONS = 32
ROOTS = 10
FIXED_RATE = 0.4
QUIET = 0.1  # of a processor: what an agent takes that only looks whether there is anything
LOOK = 0.3
Options = tuple[str, ...]

LEAST = "least"
# The agent's options; None: a bare copy, or LEAST.
COPIES: dict[str, Options | None] = {
    "bare": None,
    "bare again": None,
    LEAST: None,
    "inline": ("--write", "inline"),
    "uprobe": ("--probes", "uprobe", "--write", "off"),
    "stop": ("--probes", "uprobe", "--write", "stop"),
}
AUTOMATIC: dict[str, Options | None] = {
    "bare": None,
    "bare again": None,
    LEAST: None,
    "traced": ("--write", "off"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of which service, and the copies of it."""

    service: str
    path: str
    copies: Mapping[str, Options | None]
    method: str = "GET"


CASES = {
    "no span": Case("minimal", "/", AUTOMATIC),
    "one span": Case("lab", "/many/1?spans=1", COPIES),
    "ten spans": Case("lab", f"/many/1?spans={ROOTS}", COPIES),
    "spawns and wakes": Case("users", "/api/users/1", COPIES, "POST"),
}
HIT = "hit"

T = TypeVar("T")


@contextlib.contextmanager
def looking_at(pid: int, folder: Path) -> Iterator[None]:
    """The program of least.bpf.c, for one process."""
    root = Path(__file__).resolve().parent.parent
    path = folder / f"least-{pid}.bpf.o"
    subprocess.run(bpf_command(root, find_clang(), root / "bench/least.bpf.c", path), check=True)
    with BpfObject(Libbpf(), path) as bpf:
        bpf.set_constant("watched", pid.to_bytes(4, "little"))
        bpf.load()
        link = bpf.attach("least")
        try:
            yield
        finally:
            detach_all([link])


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a service, and the process id of the agent that traces it, if one does."""

    service: Service
    agent: int | None

    @contextlib.contextmanager
    def without_export(self) -> Iterator[None]:
        """The agent does nothing meanwhile; afterwards it catches up."""
        if self.agent is None:
            yield
            return
        os.kill(self.agent, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.agent, signal.SIGCONT)
            self.wait_for_agent()

    def wait_for_agent(self) -> None:
        """Until the agent has next to nothing to do."""
        busy = math.inf
        while self.agent is not None and busy > QUIET:
            before = processor_time(self.agent)
            time.sleep(LOOK)
            busy = (processor_time(self.agent) - before) / 1e9 / LOOK


@contextlib.contextmanager
def running(case: Case, folder: Path) -> Iterator[dict[str, Copy]]:
    """The copies of a service, traced as each is to be, by name."""
    # No collector listens: the service's exporter must not be part of what is measured.
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with contextlib.ExitStack() as stack:
        arguments: list[str] = []
        if case.service == "users":
            store = stack.enter_context(Service(binary("store", "release"), ["--delay-ms", "0"]))
            arguments = ["--store", store.url]
        copies = {}
        for name, options in case.copies.items():
            service = stack.enter_context(Service(binary(case.service, "release"), arguments, environ))
            pid = None
            if name == LEAST:
                stack.enter_context(looking_at(service.pid, folder))
            if options is not None:
                export = folder / f"{case.service}-{name}"
                agent = stack.enter_context(attach(service.pid, *options, export=export))
                if "inline" in options:
                    assert "(write inline)" in agent.messages.wait_for("ready (pid")
                pid = agent.process.pid
            copies[name] = Copy(service, pid)
        yield copies


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of wrk came to."""

    rate: float
    """Requests a second."""
    processor: float
    """Nanoseconds that the service's threads ran, for a request."""


def processor_time(pid: int) -> int:
    """Nanoseconds that the threads of a process have run; those that ended are not in it."""
    return sum(int(task.read_text().split()[0]) for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def run_wrk(
    service: Service, path: str, seconds: int, script: Path | None = None, connections: int = CONNECTIONS
) -> Run:
    """One run of wrk, by a script of its own if one is given; raises if a request failed."""
    url = service.url + path
    before = processor_time(service.pid)
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}",
        *(["-s", str(script)] if script else []),
        url,
    ]
    result = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in result or "Socket errors" in result:
        raise SystemExit(f"{url}: requests failed\n{result}")
    match = re.search(r"(\d+) requests in (?s:.*)Requests/sec:\s+([\d.]+)", result)
    assert match is not None
    return Run(float(match[2]), (processor_time(service.pid) - before) / int(match[1]))


def take_turns(
    title: str, copies: Mapping[str, Copy], rounds: int, measure: Callable[[Copy], T]
) -> dict[str, list[T]]:
    """One figure of each copy and round, by name; once before that to no end."""
    for copy in copies.values():
        measure(copy)
    figures: dict[str, list[T]] = {name: [] for name in copies}
    for number in range(rounds):
        print(f"\r{title}: round {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
        # Every other round backwards, so that what drifts hits all alike.
        for name in copies if number % 2 else reversed(list(copies)):
            figures[name].append(measure(copies[name]))
    print("\r\033[K", end="", file=sys.stderr)
    return figures


def show(title: str, unit: str, figures: Mapping[str, list[float]]) -> None:
    """Medians, and ratios to the first copy."""
    bare = next(iter(figures.values()))
    print(title)
    for name, of_copy in figures.items():
        ratios = [one / base for one, base in zip(of_copy, bare, strict=True)]
        print(
            f"  {name:<12} {median(of_copy):9.0f} {unit:<7} "
            f"ratio {median(ratios):.3f}   (from {min(ratios):.3f} to {max(ratios):.3f})"
        )


def compare(
    title: str, copies: Mapping[str, Copy], rounds: int, run: Callable[[Service], Run]
) -> dict[str, list[float]]:
    """Loads copies of a service, by name, in turns; prints what came of it; returns requests a second."""

    def measure(copy: Copy) -> Run:
        with copy.without_export():
            return run(copy.service)

    runs = take_turns(title, copies, rounds, measure)
    rates = {name: [one.rate for one in of_copy] for name, of_copy in runs.items()}
    show(f"{title}: throughput", "req/s", rates)
    processor = {name: [one.processor for one in of_copy] for name, of_copy in runs.items()}
    show(f"{title}: processor time of the service", "ns", processor)
    return rates


def build_paced(folder: Path) -> Path:
    """The program that sends at a fixed rate."""
    program = folder / "paced"
    source = Path(__file__).with_name("paced.c")
    subprocess.run([find_clang(), "-O2", *WARNINGS, str(source), "-o", str(program)], check=True)
    return program


def p99(program: Path, service: Service, case: Case, rate: float, seconds: int) -> float:
    """Microseconds, of one run at a rate; raises if a request failed."""
    host, port = service.address.rsplit(":", 1)
    command = [str(program), host, port, case.method, case.path, f"{rate:.0f}"]
    output = subprocess.run(
        [*command, str(seconds), str(CONNECTIONS)], check=True, capture_output=True, text=True
    ).stdout
    return float(dict(line.split() for line in output.splitlines())["p99"])


def measure_case(name: str, rounds: int, seconds: int, folder: Path) -> None:
    """Throughput, then latency, of one case."""
    case = CASES[name]
    script = folder / "method.lua"
    script.write_text(f'wrk.method = "{case.method}"\n')
    program = build_paced(folder)
    with running(case, folder) as copies:
        rates = compare(name, copies, rounds, lambda service: run_wrk(service, case.path, seconds, script))
        fixed = FIXED_RATE * min(median(of_copy) for of_copy in rates.values())
        title = f"{name}: p99 at {fixed:.0f} requests a second"

        def measure(copy: Copy) -> float:
            result = p99(program, copy.service, case, fixed, seconds)
            copy.wait_for_agent()
            return result

        show(title, "us", take_turns(title, copies, rounds, measure))


def measure_hits(rounds: int, seconds: int, folder: Path) -> None:
    """What a root costs in a service, and a hit by itself."""
    print("a hit by itself, ns")
    for what, nanoseconds in measure_inline(max(1, min(rounds, 21)), folder).items():
        print(f"  inline, {what:<12} {nanoseconds:9.1f}")
    bpf, _ = load_programs(Settings(), look_at_host(mount=True))
    with bpf:
        print(f"  uprobe {measure_uprobe(bpf, ctypes.CDLL(None).wctob) or 0:23.1f}")
    case = CASES["ten spans"]

    def nanoseconds_of_a_root(copy: Copy) -> float:
        with copy.without_export():
            with_roots, without = (
                1e9 / run_wrk(copy.service, f"/many/1?spans={number}", seconds, connections=1).rate
                for number in (ROOTS, 0)
            )
        return (with_roots - without) / ROOTS

    with running(case, folder) as copies:
        figures = take_turns("a root", copies, rounds, nanoseconds_of_a_root)
    bare = figures["bare"]
    print("a root in a service, ns: in all, and more than in a bare copy")
    for name, of_copy in figures.items():
        more = [one - base for one, base in zip(of_copy, bare, strict=True)]
        print(
            f"  {name:<12} {median(of_copy):9.0f} {median(more):9.0f}   "
            f"(from {min(more):.0f} to {max(more):.0f})"
        )


def main() -> None:
    """Measures every case, or those that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each case (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="length of a run (default: %(default)s)")
    parser.add_argument("--case", action="append", choices=[HIT, *CASES], help="only this one, or these")
    options = parser.parse_args()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.case or (HIT, *CASES):
            if name == HIT:
                measure_hits(options.rounds, options.seconds, Path(folder))
            else:
                measure_case(name, options.rounds, options.seconds, Path(folder))


if __name__ == "__main__":
    main()
