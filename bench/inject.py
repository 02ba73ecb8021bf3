"""Speed of large transfers of a target that injects headers, beside the same without.

    python -m bench.inject             over the loopback
    python -m bench.inject --link      over a link between network namespaces, shaped to 1 Gbit/s

100 MiB go up and down over connections of one process, in turns: two are older than the agent, and so as they
always were, the third is given headers. Up: as a blocking client sends, in writes of 1 MiB, and as an event
loop does, in writes of 64 KiB and of 1 MiB that take what there is room for. The figure is the best of all
rounds, that which other things on the machine disturbed least. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from tests.support.injecting import Injecting

SIZE = 100 << 20
BUFFER = 1 << 20
GOAL = 0.9
NAMESPACE = "spanweld-bench"
ADDRESSES = ("10.213.7.1", "10.213.7.2")
RATE = "1gbit"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


def serve(address: str) -> None:
    """Takes in what requests bring, and gives them what their path says: /BYTES."""
    data = bytes(BUFFER)
    with socket.create_server((address, 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                with contextlib.suppress(ConnectionError), connection:
                    while answer(connection, data):
                        pass
                os._exit(0)


def answer(connection: socket.socket, data: bytes) -> bool:
    """One request; False: there is none any more."""
    got = b""
    while b"\r\n\r\n" not in got:
        part = connection.recv(BUFFER)
        if not part:
            return False
        got += part
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
    left = length - len(body)
    buffer = bytearray(BUFFER)
    while left:
        left -= connection.recv_into(buffer)
    size = int(head.split(b" ")[1][1:])
    connection.sendall(RESPONSE % size)
    for at in range(0, size, BUFFER):
        connection.sendall(data[: size - at])
    return True


def exchange(
    connection: socket.socket, up: int, down: int, send: Callable[[socket.socket, memoryview], None]
) -> float:
    """Bytes a second of one request and its response."""
    data = memoryview(bytes(BUFFER))
    began = time.perf_counter()
    connection.sendall(b"POST /%d HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n" % (down, up))
    for at in range(0, up, BUFFER):
        send(connection, data[: up - at])
    got = connection.recv(BUFFER)
    head, _, _ = got.partition(b"\r\n\r\n")
    left = down - (len(got) - len(head) - 4)
    buffer = bytearray(BUFFER)
    while left:
        left -= connection.recv_into(buffer)
    return max(up, down) / (time.perf_counter() - began)


def blocking(connection: socket.socket, data: memoryview) -> None:
    connection.sendall(data)


def event_loop(size: int) -> Callable[[socket.socket, memoryview], None]:
    """Sends as an event loop does, in writes of this size."""

    def send(connection: socket.socket, data: memoryview) -> None:
        connection.setblocking(False)
        while data:
            try:
                data = data[connection.send(data[:size]) :]
            except BlockingIOError:
                select.select([], [connection], [])
        connection.setblocking(True)

    return send


WAYS: tuple[tuple[str, int, int, Callable[[socket.socket, memoryview], None]], ...] = (
    ("up, writes of 1 MiB, blocking", SIZE, 0, blocking),
    ("up, writes of 1 MiB, event loop", SIZE, 0, event_loop(1 << 20)),
    ("up, writes of 64 KiB, event loop", SIZE, 0, event_loop(1 << 16)),
    ("down", 0, SIZE, blocking),
)


@contextlib.contextmanager
def shaped_link() -> Iterator[None]:
    """A second network namespace, reached by a link that takes RATE each way."""
    ours, theirs = "spanweld-b0", "spanweld-b1"

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    ip("netns", "add", NAMESPACE)
    try:
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", NAMESPACE)
        ip("address", "add", f"{ADDRESSES[0]}/30", "dev", ours)
        ip("link", "set", ours, "up")
        ip("-n", NAMESPACE, "address", "add", f"{ADDRESSES[1]}/30", "dev", theirs)
        ip("-n", NAMESPACE, "link", "set", theirs, "up")
        shape = ("root", "tbf", "rate", RATE, "burst", "256kb", "latency", "50ms")
        subprocess.run(["tc", "qdisc", "add", "dev", ours, *shape], check=True)
        subprocess.run(["tc", "-n", NAMESPACE, "qdisc", "add", "dev", theirs, *shape], check=True)
        yield
    finally:
        ip("netns", "delete", NAMESPACE)


def measure(address: str, command: list[str], rounds: int) -> float:
    """Prints the figures; returns the lowest ratio."""
    server = subprocess.Popen(
        [*command, sys.executable, "-m", "bench.inject", "--serve", address],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    lowest = float("inf")
    try:
        to = (address, int(server.stdout.readline()))
        with (
            socket.create_connection(to) as bare,
            socket.create_connection(to) as again,
            Injecting(os.getpid()),
            socket.create_connection(to) as injecting,
        ):
            for name, up, down, send in WAYS:
                speeds: list[tuple[float, float, float]] = []
                for _ in range(rounds):
                    one, other, injected = (
                        exchange(connection, up, down, send) for connection in (bare, again, injecting)
                    )
                    speeds.append((one, other, injected))
                one, other, injected = (max(values) for values in zip(*speeds, strict=True))
                ratio = injected / one
                lowest = min(lowest, ratio)
                print(
                    f"  {name:<34} {one / 1e6:6.0f} MB/s   injecting {injected / 1e6:6.0f} MB/s"
                    f"   ratio {ratio:.2f}   (two without: {other / one:.2f})",
                    flush=True,
                )
    finally:
        server.kill()
        server.wait()
    return lowest


def main() -> int:
    """Measures; exit code 1 if the goal for a shaped link is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--link", action="store_true", help="over a shaped link")
    parser.add_argument("--rounds", type=int, default=15, help="how often (default: %(default)s)")
    parser.add_argument("--serve", metavar="ADDRESS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
    if not options.link:
        print("loopback")
        measure("127.0.0.1", [], options.rounds)
        return 0
    print(f"a link of {RATE}")
    with shaped_link():
        lowest = measure(ADDRESSES[1], ["ip", "netns", "exec", NAMESPACE], options.rounds)
    print(f"goal: {GOAL}, {'met' if lowest >= GOAL else 'missed'}")
    return 0 if lowest >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
