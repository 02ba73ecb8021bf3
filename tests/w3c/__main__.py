"""The W3C trace-context suite against ``relay``, a service without a line of tracing: ``make w3c``, or

    python -m tests.w3c [--repository URL|FOLDER] [--how bare|run|both] [--write stop]

The suite (the folder ``test/`` of w3c/trace-context) is fetched at a pinned commit and is no part of this
repository; it runs in a virtual environment of its own. Both are kept in the user's cache. It is run against
the bare service, which fails all of it, and against the same one under ``spanweld run``. Needs root.
Ends with 0 if all tests pass under spanweld and none does without, else with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.agent import run
from tests.support.services import Service, binary

REPOSITORY = "https://github.com/w3c/trace-context"
COMMIT = "acab820be9db7b3433668baa5cdd43f57f4c4be0"
"""Of 30 June 2026: 41 tests, of levels 1 and 2 of the specification."""
TESTS = 41
REQUIREMENTS = ("aiohttp==3.14.5",)
STRICT_LEVEL = "2"
SPEC_LEVEL = "2"
"""With 1, which is its default, the suite skips one of its tests."""
# The suite has no free port of its own choice.
HARNESS_PORT = "7777"
HARNESS_TIMEOUT = "5"


def cache() -> Path:
    """Where what is fetched is kept."""
    chosen = os.environ.get("XDG_CACHE_HOME")
    return (Path(chosen) if chosen else Path.home() / ".cache") / "spanweld" / "w3c"


def fetch_suite(repository: str) -> Path:
    """The suite's folder, at the pinned commit; CalledProcessError if git cannot get it."""
    checkout = cache() / f"trace-context-{COMMIT[:12]}"
    if not checkout.exists():
        half = checkout.with_suffix(".part")
        subprocess.run(["rm", "-rf", str(half)], check=True)
        git = ("git", "-c", "advice.detachedHead=false")
        subprocess.run([*git, "clone", "--quiet", "--no-checkout", repository, str(half)], check=True)
        subprocess.run([*git, "-C", str(half), "checkout", "--quiet", COMMIT], check=True)
        half.rename(checkout)
    return checkout / "test"


def make_venv() -> Path:
    """The Python with what the suite imports."""
    folder = cache() / "venv"
    python = folder / "bin" / "python"
    done = folder / ".installed"
    if not done.exists() or done.read_text() != " ".join(REQUIREMENTS):
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *REQUIREMENTS], check=True)
        done.write_text(" ".join(REQUIREMENTS))
    return python


@dataclass(frozen=True, slots=True)
class Results:
    """Each test's outcome (``ok``, ``FAIL``, ``ERROR``, ``skipped``) by name, and all that was printed."""

    outcomes: dict[str, str]
    output: str

    @property
    def passed(self) -> int:
        """How many passed."""
        return sum(outcome == "ok" for outcome in self.outcomes.values())


def read_outcomes(output: str) -> dict[str, str]:
    """The outcomes in what unittest prints at verbosity 2, docstrings and the service's noise between."""
    pattern = r"^(test_\w+) \(__main__\.(\w+)(?:\.\w+)?\).*?\.\.\. .*?(ok|FAIL|ERROR|skipped)\b.*?$"
    found = re.finditer(pattern, output, re.MULTILINE | re.DOTALL)
    return {f"{match[2]}.{match[1]}": match[3] for match in found}


def run_suite(python: Path, suite: Path, address: str) -> Results:
    """Runs it against a service."""
    finished = subprocess.run(
        [str(python), "test.py", f"http://{address}/test"],
        cwd=suite,
        env={
            **os.environ,
            "STRICT_LEVEL": STRICT_LEVEL,
            "SPEC_LEVEL": SPEC_LEVEL,
            "HARNESS_PORT": HARNESS_PORT,
            "HARNESS_TIMEOUT": HARNESS_TIMEOUT,
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Results(read_outcomes(finished.stdout), finished.stdout)


@contextlib.contextmanager
def bare() -> Iterator[str]:
    """The address of the service by itself."""
    with Service(binary("relay", "release")) as service:
        yield service.address


@contextlib.contextmanager
def traced(write: str) -> Iterator[str]:
    """The address of the service under spanweld, whose spans nobody reads."""
    export = cache() / "spans.jsonl"
    export.unlink(missing_ok=True)
    with run([str(binary("relay", "release"))], "--write", write, export=export) as agent:
        yield agent.service_address


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="the W3C trace-context suite against a service without tracing"
    )
    parser.add_argument("--repository", default=os.environ.get("W3C_REPOSITORY") or REPOSITORY)
    parser.add_argument("--how", choices=("bare", "run", "both"), default="both")
    parser.add_argument("--write", default="stop")
    parser.add_argument("--verbose", action="store_true", help="print what the suite says")
    options = parser.parse_args()
    cache().mkdir(parents=True, exist_ok=True)
    suite, python = fetch_suite(options.repository), make_venv()
    results: dict[str, Results] = {}
    if options.how != "run":
        with bare() as address:
            results["bare"] = run_suite(python, suite, address)
    if options.how != "bare":
        with traced(options.write) as address:
            results["spanweld"] = run_suite(python, suite, address)
    if options.verbose:
        print(*(result.output for result in results.values()), sep="\n")
    print_table(results)
    expected = {"bare": 0, "spanweld": TESTS}
    as_expected = [
        len(result.outcomes) == TESTS and result.passed == expected[name] for name, result in results.items()
    ]
    return 0 if all(as_expected) else 1


def print_table(results: dict[str, Results]) -> None:
    """A line a test, a column a way to run the service."""
    tests = sorted({test for result in results.values() for test in result.outcomes})
    width = max(map(len, tests), default=0)
    print(
        f"{f'STRICT_LEVEL {STRICT_LEVEL}, SPEC_LEVEL {SPEC_LEVEL}':<{width}}  "
        + "  ".join(f"{name:<8}" for name in results)
    )
    for test in tests:
        outcomes = (f"{result.outcomes.get(test, '-'):<8}" for result in results.values())
        print(f"{test:<{width}}  " + "  ".join(outcomes).rstrip())
    passed = (f"{result.passed}/{len(result.outcomes)}" for result in results.values())
    print(f"{'passed':<{width}}  " + "  ".join(f"{text:<8}" for text in passed).rstrip())


if __name__ == "__main__":
    sys.exit(main())
