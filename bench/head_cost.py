"""What following a request costs in the kernel, by the kernel's own count of each program's run time.

    python -m bench.head_cost [--bytes N] [--rounds N] [--seconds S] [--connections N] [--brings]

`minimal` runs under the agent, and wrk sends it requests whose head is exactly N bytes long (500 by default),
with the lines that a browser sends; with --brings, a tracestate and baggage are among them.
Two programs at each tracepoint, one attached before the agent's and one after it (around.bpf.c), take the
time in between, by system call; what they see without the agent is taken off. Divided by the requests
that were served, the median over some rounds:

- head: at the end of the calls that read, where the request's head is found and parsed. The reads that found
  nothing are in it, for they come with each request.
- response: at the end of the calls that write: status, framing, end of the span, its event.
- other: at the beginning and the end of all others.

Interrupts that come in between count, too. Needs root, clang and wrk.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from build_native import bpf_command, find_clang
from spanweld.bpf.libbpf import BpfObject, Libbpf, detach_all
from tests.support.agent import attach
from tests.support.services import Service, binary

GOAL_NS = 2000
Figures = dict[str, float]

CALLS = 512  # as in around.bpf.c

# arch/x86/entry/syscalls/syscall_64.tbl: read, readv, recvfrom, recvmsg; write, writev, sendto, sendmsg
GROUPS = {"head": (0, 19, 45, 47), "response": (1, 20, 44, 46)}
OTHER = "other"

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


@contextlib.contextmanager
def watching(pid: int) -> Iterator[tuple[BpfObject, Callable[[], None]]]:
    """The programs of around.bpf.c: the first of each pair attached, and what attaches the others."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "around.bpf.o"
        source = Path(__file__).with_name("around.bpf.c")
        subprocess.run(bpf_command(root, find_clang(), source, path), check=True)
        with BpfObject(Libbpf(), path) as bpf:
            bpf.set_constant("watched", pid.to_bytes(4, "little"))
            bpf.load()
            links = [bpf.attach("before_exit"), bpf.attach("before_enter")]

            def close() -> None:
                links.extend([bpf.attach("after_exit"), bpf.attach("after_enter")])

            try:
                yield bpf, close
            finally:
                detach_all(links)


def spent(bpf: BpfObject) -> list[int]:
    """Nanoseconds until now, by system call: at their ends, then at their beginnings."""
    cells = bpf.map("spent")
    return [cells.sum(number.to_bytes(4, "little")) for number in range(2 * CALLS)]


def one_round(bpf: BpfObject, url: str, headers: tuple[str, ...], connections: int, seconds: int) -> Figures:
    """Nanoseconds a request, by group."""
    before = spent(bpf)
    requests = load(url, headers, connections, seconds)
    took = [after - before for before, after in zip(before, spent(bpf), strict=True)]
    figures = {group: sum(took[number] for number in numbers) / requests for group, numbers in GROUPS.items()}
    return {**figures, OTHER: sum(took) / requests - sum(figures.values())}


def measure(length: int, rounds: int, seconds: int, connections: int, fixed: tuple[str, ...]) -> float:
    """Prints the figures; returns nanoseconds for a head."""
    with tempfile.TemporaryDirectory() as folder, Service(binary("minimal", "release")) as service:
        headers = headers_for(length, service.url, fixed)
        url = service.url + "/"

        def some_rounds(bpf: BpfObject) -> list[Figures]:
            load(url, headers, connections, 1)
            return [one_round(bpf, url, headers, connections, seconds) for _ in range(rounds)]

        with watching(service.pid) as (bpf, close):
            close()
            bare = some_rounds(bpf)
        with (
            watching(service.pid) as (bpf, close),
            attach(service.pid, "--write", "off", export=Path(folder) / "spans"),
        ):
            close()
            traced = some_rounds(bpf)
    nothing = {group: median(figures[group] for figures in bare) for group in (*GROUPS, OTHER)}
    print(f"minimal, {connections} connections, heads of {length} bytes: nanoseconds a request")
    for group, without in nothing.items():
        values = [figures[group] - without for figures in traced]
        print(f"  {group:<9} {median(values):6.0f}   (from {min(values):.0f} to {max(values):.0f})")
    return median(figures["head"] for figures in traced) - nothing["head"]


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
