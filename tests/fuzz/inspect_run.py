"""Gives damaged executables to ``inspect``, and so to the plan of ``run`` and ``attach``: none may harm them.

    python -m tests.fuzz.inspect_run --cases 10000            (or: make fuzz-inspect)
    python -m tests.fuzz.inspect_run --first 4711 --cases 1   one case again

A case is a number: with the seed and the executables it gives the same damage each time. It passes if
the report is made or refused by an error of ours with a remedy, within CPU seconds and memory. Cases
run in worker processes; one that dies or hangs is a finding like any other, and the rest goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console

from spanweld.commands.inspect import make_report, print_report, to_json
from spanweld.errors import SpanweldError
from tests.support import services
from tests.support.corrupt import Sample, damage
from tests.support.unknown import of_unknown_version

CPU_SECONDS = 15
MEMORY = 300 << 20
"""Bytes of address space beyond what the worker has before its first case."""
SILENCE = 300
"""Seconds after which a worker that says nothing is ended."""

# The SDK's types in a program of a few lines, with all its debug information.
DESCRIBED = services.ROOT / "tests/unit/layouts/spans.rs"


@dataclass(frozen=True, slots=True)
class Finding:
    """A case that did harm; ``what`` is the trace of an exception, or how the worker ended."""

    case: int
    what: str


def executables(folder: Path) -> list[Path]:
    """Services with the SDK, with and without tokio, symbols, a known version; one with debug information."""
    described = folder / "described"
    # As from a registry: the version stands in the path.
    source = folder / "opentelemetry_sdk-0.31.0/src/main.rs"
    source.parent.mkdir(parents=True)
    shutil.copy(DESCRIBED, source)
    command = ("rustc", "--edition=2021", "--crate-name=opentelemetry_sdk", "-g", "-o", described, source)
    subprocess.run(command, check=True)
    stripped = folder / "stripped"
    users = services.binary("users", "release")
    subprocess.run(["strip", "-o", stripped, users], check=True)
    unknown = of_unknown_version(users, folder / "unknown")
    unknown_stripped = folder / "unknown-stripped"
    subprocess.run(["strip", "-o", unknown_stripped, unknown], check=True)
    return [users, services.binary("sockets", "release"), stripped, unknown, unknown_stripped, described]


class TooLongError(BaseException):
    """A case took more CPU time than it may; no Exception, so that nothing on the way catches it."""


def examine(path: Path) -> str:
    """All of ``inspect``, which makes the agent's own plan; returns the verdict or ``refused``."""
    try:
        report = make_report(path)
        json.dumps(to_json(report))
        print_report(report, Console(file=io.StringIO(), highlight=False, soft_wrap=True))
    except SpanweldError:
        return "refused"
    return report.verdict.value


def run_case(number: int, seed: int, samples: Sequence[Sample]) -> tuple[str, str]:
    """(outcome, kinds of damage) of one case; raises what the code under test should not."""
    chance = random.Random(f"{seed} {number}")
    sample = chance.choice(samples)
    done = damage(sample, chance)
    with sample.damaged(done) as path:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            return examine(path), f"{sample.path.name}: {', '.join(done.names)}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)


def work(first: int, cases: int, seed: int, paths: Sequence[Path]) -> None:
    """A worker: one line of JSON on standard output for each case, before it and after it."""

    def too_long(_number: int, _frame: FrameType | None) -> None:
        raise TooLongError

    signal.signal(signal.SIGPROF, too_long)
    with tempfile.TemporaryDirectory() as folder:
        samples = [Sample(path, Path(folder) / path.name) for path in paths]
        for sample in samples:
            examine(sample.path)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(first, first + cases):
            print(json.dumps({"begin": number}), flush=True)
            try:
                outcome, kinds = run_case(number, seed, samples)
                print(json.dumps({"case": number, "outcome": outcome, "kinds": kinds}), flush=True)
            except (Exception, TooLongError):
                print(json.dumps({"case": number, "finding": traceback.format_exc()}), flush=True)


class Run:
    """A range of cases, shared among workers; what they found and how the cases ended."""

    def __init__(self, first: int, cases: int, seed: int, paths: Sequence[Path]) -> None:
        self._next = first
        self._end = first + cases
        self._seed = seed
        self._paths = paths
        self.findings: list[Finding] = []
        self.outcomes: Counter[str] = Counter()

    def go(self, jobs: int, *, loud: bool = False) -> None:
        """Runs all cases; returns when the last has ended."""
        with selectors.DefaultSelector() as selector:
            for _ in range(jobs):
                self._start(selector)
            while selector.get_map():
                for key, _ in selector.select(10):
                    worker: _Worker = key.data
                    line = worker.output.readline()
                    if line:
                        self._note(worker, json.loads(line), loud)
                        continue
                    selector.unregister(worker.output)
                    self._ended(worker, loud)
                    self._start(selector)
                for key in list(selector.get_map().values()):
                    if time.monotonic() - key.data.heard > SILENCE:
                        key.data.process.kill()

    def _start(self, selector: selectors.BaseSelector) -> None:
        share = min(100, self._end - self._next)
        if share <= 0:
            return
        worker = _Worker(self._next, share, self._seed, self._paths)
        self._next += share
        selector.register(worker.output, selectors.EVENT_READ, worker)

    def _note(self, worker: _Worker, message: dict[str, object], loud: bool) -> None:
        worker.heard = time.monotonic()
        if "begin" in message:
            worker.case = int(str(message["begin"]))
            return
        if "finding" in message:
            self._found(Finding(worker.case, str(message["finding"])), loud)
        self.outcomes[str(message.get("outcome", "finding"))] += 1
        worker.done += 1
        total = sum(self.outcomes.values())
        if loud and total % 500 == 0:
            print(f"{total} cases: {dict(self.outcomes)}", file=sys.stderr, flush=True)

    def _found(self, finding: Finding, loud: bool) -> None:
        self.findings.append(finding)
        if loud:
            print(f"case {finding.case}:\n{finding.what}", flush=True)

    def _ended(self, worker: _Worker, loud: bool) -> None:
        code = worker.process.wait()
        worker.output.close()
        if worker.done == worker.cases and code == 0:
            return
        self._found(Finding(worker.case, f"the worker ended with {code} in the middle of it"), loud)
        self.outcomes["finding"] += 1
        worker.first, rest = worker.case + 1, worker.first + worker.cases - worker.case - 1
        if rest > 0:
            # What it had still to do comes at the end.
            again = Run(worker.first, rest, self._seed, self._paths)
            again.go(1, loud=loud)
            self.findings += again.findings
            self.outcomes += again.outcomes


class _Worker:
    """A worker process and where it stands."""

    def __init__(self, first: int, cases: int, seed: int, paths: Sequence[Path]) -> None:
        self.first, self.cases, self.case, self.done = first, cases, first, 0
        self.heard = time.monotonic()
        numbers = ("--first", str(first), "--cases", str(cases), "--seed", str(seed))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.inspect_run", "--worker", *numbers, *map(str, paths)],
            cwd=services.ROOT,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout


@contextlib.contextmanager
def prepared() -> Iterator[list[Path]]:
    """The executables, copied to where nobody builds them anew meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for path in executables(Path(folder)):
            copy = Path(folder) / f"copy-{path.name}"
            shutil.copy(path, copy)
            paths.append(copy)
        yield paths


def main() -> int:
    """Runs the cases; exit code 1 if one did harm."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="other damage (default: %(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="workers (default: %(default)s)"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("executables", type=Path, nargs="*", help="what to damage (default: the services)")
    options = parser.parse_args()
    if options.worker:
        work(options.first, options.cases, options.seed, options.executables)
        return 0
    with contextlib.ExitStack() as stack:
        paths = options.executables or stack.enter_context(prepared())
        run = Run(options.first, options.cases, options.seed, paths)
        run.go(options.jobs, loud=True)
    print(f"seed {options.seed}, cases {options.first} to {options.first + options.cases - 1}:", end=" ")
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(run.outcomes.items())))
    return 1 if run.findings else 0


if __name__ == "__main__":
    sys.exit(main())
