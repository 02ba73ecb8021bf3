"""What following a request costs in the kernel, by the kernel's own count of each program's run time.

    python -m bench.head_cost [--bytes N] [--rounds N] [--seconds S] [--connections N] [--brings]

`minimal` runs under the agent, and wrk sends it requests whose head is exactly N bytes long (500 by default),
with the lines that a browser sends; with --brings, a tracestate and baggage are among them.
kernel.bpf_stats_enabled counts time and runs of each program; divided by the requests that were served, the
median over some rounds:

- head: the programs at the end of the calls that read, which find and parse the request's head. The reads
  that found nothing are in it, for they come with each request.
- response: those at the end of the calls that write: status, framing, end of the span, its event.
- waits: epoll_wait.

The count itself costs some tens of nanoseconds a run, and interrupts that come while a program runs count as
its time; both are in the figures, and so is what the programs cost wrk, which is no target: the look that
finds this out. Needs root, bpftool and wrk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.support.agent import attach
from tests.support.services import Service, binary

GOAL_NS = 2000
STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")

GROUPS = {
    "head": ("http_in",),
    "response": ("http_out",),
    "waits": ("http_epoll_wait", "http_epoll_pwait", "http_epoll_pwait2"),
}

HEADERS = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language: en-US,en;q=0.5",
    "Accept-Encoding: gzip, deflate, br",
    "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)

BROUGHT = (
    "tracestate: rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
    "baggage: userId=alice,serverNode=DF%2028,isProduction=false",
)


def load(url: str, headers: tuple[str, ...], connections: int, seconds: int) -> int:
    """One run of wrk; the number of its requests, SystemExit if one of them failed."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", url]
    for header in headers:
        command += ["-H", header]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    match = re.search(r"(\d+) requests in", output)
    if match is None or "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"{url}: requests failed\n{output}")
    return int(match[1])


def head_length(path: str, headers: tuple[str, ...], port_digits: int) -> int:
    """The length of the head that wrk sends, from one that it did send."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        heads: list[bytes] = []

        def take() -> None:
            while not heads:
                connection, _ = server.accept()
                with connection:
                    head = b""
                    # wrk opens one connection only to see whether it can.
                    while not head.endswith(b"\r\n\r\n") and (data := connection.recv(65536)):
                        head += data
                    if head:
                        heads.append(head)
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        taking = threading.Thread(target=take, daemon=True)
        taking.start()
        command = ["wrk", "-t1", "-c1", "-d1", f"http://127.0.0.1:{port}{path}"]
        for header in headers:
            command += ["-H", header]
        subprocess.run(command, check=True, capture_output=True)
        taking.join(5)
    return len(heads[0]) - len(str(port)) + port_digits


def headers_for(length: int, url: str, fixed: tuple[str, ...]) -> tuple[str, ...]:
    """Headers with which a head is of that length: a cookie is filled up."""
    port_digits = len(url.rsplit(":", 1)[1].partition("/")[0])
    cookie = "Cookie: session="
    short = head_length("/", (*fixed, cookie + "x"), port_digits)
    if short > length:
        raise SystemExit(f"a head of these headers has at least {short} bytes")
    headers = (*fixed, cookie + "x" * (1 + length - short))
    assert head_length("/", headers, port_digits) == length
    return headers


def statistics_of_programs() -> dict[str, int]:
    """Nanoseconds, by name, of every program that is loaded; those of one name are added up."""
    listed = subprocess.run(["bpftool", "--json", "prog", "show"], check=True, capture_output=True).stdout
    found: dict[str, int] = {}
    for program in json.loads(listed):
        name = program.get("name", "")
        found[name] = found.get(name, 0) + program.get("run_time_ns", 0)
    return found


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """The kernel's statistics of programs are on."""
    before = STATISTICS.read_text()
    STATISTICS.write_text("1\n")
    try:
        yield
    finally:
        STATISTICS.write_text(before)


def one_round(url: str, headers: tuple[str, ...], connections: int, seconds: int) -> dict[str, float]:
    """Nanoseconds a request, by group."""
    before = statistics_of_programs()
    requests = load(url, headers, connections, seconds)
    after = statistics_of_programs()
    return {
        group: sum(after.get(name, 0) - before.get(name, 0) for name in names) / requests
        for group, names in GROUPS.items()
    }


def measure(length: int, rounds: int, seconds: int, connections: int, fixed: tuple[str, ...]) -> float:
    """Prints the figures; returns nanoseconds for a head."""
    with tempfile.TemporaryDirectory() as folder, Service(binary("minimal", "release")) as service:
        headers = headers_for(length, service.url, fixed)
        url = service.url + "/"
        with attach(service.pid, "--write", "off", export=Path(folder) / "spans"), counting():
            load(url, headers, connections, 1)
            figures = [one_round(url, headers, connections, seconds) for _ in range(rounds)]
    print(f"minimal, {connections} connections, heads of {length} bytes: nanoseconds a request")
    for group in GROUPS:
        values = [figure[group] for figure in figures]
        print(f"  {group:<9} {median(values):6.0f}   (from {min(values):.0f} to {max(values):.0f})")
    return median(figure["head"] for figure in figures)


def main() -> int:
    """Measures; exit code 1 if the goal for 500 bytes is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bytes", type=int, default=500, help="length of the head (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="how often (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=2, help="length of a round (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=8, help="of wrk (default: %(default)s)")
    parser.add_argument("--brings", action="store_true", help="with a tracestate and baggage")
    options = parser.parse_args()
    fixed = HEADERS + BROUGHT if options.brings else HEADERS
    head = measure(options.bytes, options.rounds, options.seconds, options.connections, fixed)
    if options.bytes > 500 or options.brings:
        return 0
    print(f"goal: {GOAL_NS} ns a head, {'met' if head <= GOAL_NS else 'missed'}")
    return 0 if head <= GOAL_NS else 1


if __name__ == "__main__":
    sys.exit(main())
