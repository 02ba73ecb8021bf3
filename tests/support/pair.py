"""A connection of this process to itself, and what of requests comes out of it, byte by byte."""

from __future__ import annotations

import re
import select
import socket
import threading
from collections.abc import Callable
from types import TracebackType

LINE = re.compile(rb"traceparent: 00-([0-9a-f]{32})-([0-9a-f]{16})-01\r\n")
LINE_LENGTH = 70
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


class Pair:
    """A connection of this process to itself; ``client`` is the end that connected."""

    def __init__(
        self,
        family: socket.AddressFamily = socket.AF_INET,
        *,
        prepare: Callable[[socket.socket], None] | None = None,
    ) -> None:
        address = "127.0.0.1" if family == socket.AF_INET else "::1"
        with socket.create_server((address, 0), family=family) as server:
            self.client = socket.socket(family)
            if prepare:
                prepare(self.client)
            self.client.settimeout(20)
            self.client.connect(server.getsockname()[:2])
            self.server, _ = server.accept()
            self.server.settimeout(20)

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self.server.close()

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes that arrive."""
        came = bytearray()
        while len(came) < size:
            part = self.server.recv(size - len(came))
            assert part, f"{len(came)} of {size} bytes came"
            came += part
        return bytes(came)

    def expect(self, data: bytes) -> None:
        """Exactly this arrives."""
        came = self.take(len(data))
        assert came == data, (came[:300], data[:300])

    def expect_injected(self, data: bytes) -> bytes:
        """This arrives, with a header behind the request line; returns the header."""
        place = data.index(b"\n") + 1
        came = self.take(len(data) + LINE_LENGTH)
        line = came[place : place + LINE_LENGTH]
        assert LINE.fullmatch(line), came[:300]
        assert came[:place] + came[place + LINE_LENGTH :] == data, (came[:300], data[:300])
        return line

    def answer(self, data: bytes = OK) -> None:
        """The response arrives."""
        self.server.sendall(data)
        got = b""
        while len(got) < len(data):
            got += self.client.recv(len(data) - len(got))
        assert got == data

    def end(self) -> None:
        """Nothing else arrives."""
        self.client.shutdown(socket.SHUT_WR)
        assert self.server.recv(1) == b""


def post(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /a HTTP/1.1", b"Host: x", *headers, b"Content-Length: %d" % len(body), b"", b""]
    return b"\r\n".join(lines)


def send_in_parts(client: socket.socket, data: bytes) -> None:
    """As an event loop does."""
    waiting = memoryview(data)
    client.setblocking(False)
    while waiting:
        try:
            waiting = waiting[client.send(waiting) :]
        except BlockingIOError:
            select.select([], [client], [], 20)
    client.settimeout(20)


def upload(
    pair: Pair, whole: bytes, *, blocking: bool, after_part: Callable[[int], None] | None = None
) -> bytes:
    """Sends a request while another thread reads it; what came, header and all.

    ``after_part`` is told how many bytes have come so far.
    """
    came = bytearray()

    def read() -> None:
        # Whether there is a header depends on the room that there was.
        while len(came) < len(whole) + (LINE_LENGTH if LINE.search(came, 0, 200) else 0):
            came.extend(pair.server.recv(1 << 18))
            if after_part:
                after_part(len(came))

    reading = threading.Thread(target=read)
    reading.start()
    if blocking:
        pair.client.sendall(whole)
    else:
        send_in_parts(pair.client, whole)
    reading.join()
    return bytes(came)
