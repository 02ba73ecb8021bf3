"""What the agent costs a service at saturation: copies of one service side by side, alternating rounds.

    python -m bench.throughput [--rounds N] [--seconds S]

Copies of the `lab` service (one manual root a request) and of `minimal` (no SDK) run at once, and wrk
loads one after the other: two bare copies (their ratio is the spread of the machine), and one for each way
of tracing. A figure is the median over the rounds of the ratio to the first bare copy of the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.agent import attach
from tests.support.services import Service, binary

CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Copy:
    """One copy of a service; ``options`` are the agent's, None for a bare one."""

    name: str
    options: tuple[str, ...] | None


CASES: dict[tuple[str, str], tuple[Copy, ...]] = {
    ("minimal", "/"): (
        Copy("bare", None),
        Copy("bare again", None),
        Copy("traced", ("--write", "off")),
    ),
    ("lab", "/drop/1"): (
        Copy("bare", None),
        Copy("bare again", None),
        Copy("write off", ("--write", "off")),
        Copy("write stop", ("--write", "stop")),
        Copy("write inline", ("--write", "inline")),
    ),
}


def requests_per_second(url: str, seconds: int, script: Path | None = None) -> float:
    """One run of wrk, by a script of its own if one is given; raises if a request failed."""
    command = [
        "wrk",
        "-t1",
        f"-c{CONNECTIONS}",
        f"-d{seconds}",
        *(["-s", str(script)] if script else []),
        url,
    ]
    result = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in result or "Socket errors" in result:
        raise SystemExit(f"{url}: requests failed\n{result}")
    match = re.search(r"Requests/sec:\s+([\d.]+)", result)
    assert match is not None
    return float(match[1])


def measure(service: str, path: str, copies: Sequence[Copy], rounds: int, seconds: int) -> None:
    """Runs one case and prints its lines."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls: dict[Copy, str] = {}
        for copy in copies:
            # No collector listens: the service's exporter must not be part of what is measured.
            environ = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
                "OTEL_BSP_SCHEDULE_DELAY": "600000",
            }
            running = stack.enter_context(Service(binary(service, "release"), environ=environ))
            urls[copy] = running.url + path
            if copy.options is not None:
                stack.enter_context(attach(running.pid, *copy.options, export=folder / copy.name))
        compare(
            f"{service}{path}",
            {copy.name: url for copy, url in urls.items()},
            rounds,
            seconds,
            requests_per_second,
        )


def compare(
    title: str, urls: dict[str, str], rounds: int, seconds: int, rate: Callable[[str, int], float]
) -> None:
    """Loads copies of a service by turns, and prints medians and ratios to the first one.

    ``urls`` are by name. ``rate`` gives the requests a second of one run at a URL, of so many seconds.
    """
    for url in urls.values():
        rate(url, 1)
    rates: dict[str, list[float]] = {name: [] for name in urls}
    for number in range(rounds):
        print(f"\r{title}: round {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
        # Every other round backwards, so that what drifts hits all alike.
        for name in urls if number % 2 else reversed(urls):
            rates[name].append(rate(urls[name], seconds))
    print("\r\033[K", end="", file=sys.stderr)
    bare = next(iter(rates.values()))
    print(title)
    for name, of_copy in rates.items():
        ratios = [one / base for one, base in zip(of_copy, bare, strict=True)]
        print(
            f"  {name:<12} {statistics.median(of_copy):9.0f} req/s   "
            f"ratio {statistics.median(ratios):.3f}   (from {min(ratios):.3f} to {max(ratios):.3f})"
        )


def main() -> None:
    """Measures every case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each case (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="length of a run (default: %(default)s)")
    options = parser.parse_args()
    for (service, path), copies in CASES.items():
        measure(service, path, copies, options.rounds, options.seconds)


if __name__ == "__main__":
    main()
