"""Headers in requests out, byte by byte: this process is the target, and its peer at the same time."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.support.injecting import Injecting
from tests.support.pair import GET, LINE, OK, Pair, post, upload

pytestmark = [pytest.mark.root]

# What would be taken for a request where one is due.
BAIT = b"GET /bait HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module", autouse=True)
def injecting() -> Iterator[Injecting]:
    with Injecting(os.getpid()) as entered:
        yield entered


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_requests_of_a_connection(family: socket.AddressFamily) -> None:
    with Pair(family) as pair:
        lines = set()
        for _ in range(3):
            pair.client.sendall(GET)
            lines.add(pair.expect_injected(GET))
            pair.answer()
            whole = post(b"0123456789") + b"0123456789"
            pair.client.sendall(whole)
            lines.add(pair.expect_injected(whole))
            pair.answer()
        assert len(lines) == 6
        pair.end()


def test_head_and_body_apart() -> None:
    with Pair() as pair:
        for _ in range(3):
            head = post(b"x" * 5000)
            pair.client.sendall(head)
            pair.expect_injected(head)
            for _ in range(5):
                pair.client.sendall(b"x" * 1000)
            pair.expect(b"x" * 5000)
            pair.answer()


def test_each_system_call() -> None:
    with Pair() as pair:
        fd = pair.client.fileno()
        calls: list[Callable[[], int]] = [
            lambda: os.write(fd, GET),
            lambda: os.writev(fd, [GET[:5], b"", GET[5:20], GET[20:]]),
            lambda: pair.client.send(GET),
            lambda: pair.client.sendmsg([GET[:30], GET[30:]]),
        ]
        for call in calls * 2:
            assert call() == len(GET)
            pair.expect_injected(GET)
            pair.answer()


@pytest.mark.parametrize(
    "header",
    [b"traceparent: 00-x", b"Traceparent: 1", b"TRACEPARENT:", b"tRaCePaReNt: 1", b"traceparent : 1"],
)
def test_header_of_the_applications_own(header: bytes) -> None:
    for lines in ((header,), (b"A: b", header), (header, b"A: b"), (b"A: " + b"b" * 5000, header)):
        with Pair() as pair:
            for body in (b"", b"x" * 100_000):
                whole = post(body, *lines) + body
                pair.client.sendall(whole)
                pair.expect(whole)
                pair.answer()
            pair.client.sendall(GET)
            pair.expect_injected(GET)


@pytest.mark.parametrize(
    "header",
    [b"X-Traceparent: 1", b"A: traceparent", b"A: b\ttraceparent: 1", b"tracestate: a=b", b"traceparen: 1"],
)
def test_headers_that_are_others(header: bytes) -> None:
    with Pair() as pair:
        whole = post(b"", header)
        pair.client.sendall(whole)
        pair.expect_injected(whole)


def test_head_in_pieces_is_left_alone() -> None:
    for cut in range(1, len(GET)):
        with Pair() as pair:
            pair.client.sendall(GET[:cut])
            pair.client.sendall(GET[cut:])
            pair.expect(GET)
            pair.answer()
            pair.client.sendall(GET)
            pair.expect_injected(GET)
            pair.end()


def test_pipelined() -> None:
    """Of several heads in one call, the first gets a header; in several calls, each does."""
    with Pair() as pair:
        pair.client.sendall(GET + BAIT + GET)
        pair.expect_injected(GET + BAIT + GET)
        pair.client.sendall(GET)
        pair.expect_injected(GET)
        pair.client.sendall(post(BAIT) + BAIT + GET)
        pair.expect_injected(post(BAIT) + BAIT + GET)
        pair.client.sendall(GET[:10])
        pair.client.sendall(GET[10:] + BAIT)
        pair.expect(GET + BAIT)
        pair.answer(OK * 8)
        pair.client.sendall(GET)
        pair.expect_injected(GET)
        pair.end()


def test_bodies_that_look_like_requests() -> None:
    with Pair() as pair:
        pair.client.sendall(post(BAIT * 3))
        pair.expect_injected(post(BAIT * 3))
        for _ in range(3):
            pair.client.sendall(BAIT)
            pair.expect(BAIT)
        pair.answer()
        head = b"PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        pair.client.sendall(head)
        pair.expect_injected(head)
        for piece in (b"%x\r\n" % len(BAIT), BAIT, b"\r\n", b"%x\r\n" % (2 * len(BAIT)), BAIT, BAIT, b"\r\n"):
            pair.client.sendall(piece)
            pair.expect(piece)
        for piece in (b"0\r\n", b"T: t\r\n", b"\r\n"):
            pair.client.sendall(piece)
            pair.expect(piece)
        pair.answer()
        pair.client.sendall(GET)
        pair.expect_injected(GET)
        pair.end()


def test_response_before_the_body_is_sent() -> None:
    with Pair() as pair:
        pair.client.sendall(post(BAIT * 2))
        pair.expect_injected(post(BAIT * 2))
        pair.answer()
        pair.client.sendall(BAIT)
        pair.client.sendall(BAIT)
        pair.expect(BAIT * 2)
        pair.client.sendall(GET)
        pair.expect_injected(GET)


def test_expect_continue() -> None:
    with Pair() as pair:
        head = post(BAIT, b"Expect: 100-continue")
        pair.client.sendall(head)
        pair.expect_injected(head)
        pair.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
        pair.client.sendall(BAIT)
        pair.expect(BAIT)
        pair.answer()
        pair.client.sendall(GET)
        pair.expect_injected(GET)


def test_connect_is_left_alone_and_what_follows() -> None:
    with Pair() as pair:
        head = b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n"
        pair.client.sendall(head)
        pair.expect(head)
        pair.answer(b"HTTP/1.1 200 OK\r\n\r\n")
        pair.client.sendall(GET)
        pair.expect(GET)
        pair.end()


def test_upgrade_and_what_follows() -> None:
    with Pair() as pair:
        head = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        pair.client.sendall(head)
        pair.expect_injected(head)
        pair.answer(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")
        for _ in range(3):
            pair.client.sendall(GET)
            pair.expect(GET)
        pair.end()


@pytest.mark.parametrize(
    "first",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 500,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\x00\x00\x00\x08\x04\xd2\x16/",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET /\r\n",
        b"get / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_no_plain_request(first: bytes) -> None:
    with Pair() as pair:
        pair.client.sendall(first)
        pair.expect(first)
        pair.end()


def test_opaque_connections_stay_so() -> None:
    for first in (b"\x16\x03\x01" + b"x" * 500, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-x\r\n"):
        with Pair() as pair:
            pair.client.sendall(first)
            pair.expect(first)
            for _ in range(3):
                pair.client.sendall(GET)
                pair.expect(GET)


def test_own_export_is_left_alone() -> None:
    with Pair() as pair:
        head = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"
        pair.client.sendall(head + b"abc")
        pair.expect(head + b"abc")


@pytest.mark.parametrize("size", [400, 1000, 5000, 15000])
def test_long_lines(size: int) -> None:
    with Pair() as pair:
        for whole in (
            b"GET /" + b"a" * size + b" HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nCookie: " + b"a" * size + b"\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"A: b567890123456789\r\n" * (size // 21) + b"\r\n",
        ):
            pair.client.sendall(whole)
            pair.expect_injected(whole)
            pair.answer()


def test_head_that_is_too_long_is_left_alone() -> None:
    with Pair() as pair:
        whole = b"GET / HTTP/1.1\r\nCookie: " + b"a" * 20_000 + b"\r\n\r\n"
        pair.client.sendall(whole)
        pair.expect(whole)


def test_sizes_of_all_kinds() -> None:
    """The kernel keeps what is sent in pages: heads come to lie across their ends."""
    with Pair() as pair:
        for number in range(3000):
            whole = post(b"y" * (number * 7 % 2500), b"A: " + b"a" * (number * 13 % 700)) + b"y" * (
                number * 7 % 2500
            )
            pair.client.sendall(whole)
            pair.expect_injected(whole)
            pair.answer()
        pair.end()


@contextlib.contextmanager
def file_of(data: bytes) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        yield file.fileno()


def test_sendfile() -> None:
    body = os.urandom(1 << 18)
    with Pair() as pair, file_of(body) as file:
        for _ in range(2):
            pair.client.sendall(post(body))
            pair.expect_injected(post(body))
            sent = 0
            reading = threading.Thread(target=pair.expect, args=(body,))
            reading.start()
            while sent < len(body):
                sent += os.sendfile(pair.client.fileno(), file, sent, len(body) - sent)
            reading.join()
            pair.answer()
        pair.client.sendall(GET)
        pair.expect_injected(GET)


def test_bytes_that_nobody_follows() -> None:
    """By splice(2). That a request begins there is known; where the next one does, nobody knows."""
    with Pair() as pair:
        pair.client.sendall(GET)
        pair.expect_injected(GET)
        pair.answer()
        reader, writer = os.pipe()
        os.write(writer, post(BAIT))
        os.splice(reader, pair.client.fileno(), len(post(BAIT)))
        pair.expect_injected(post(BAIT))
        pair.client.sendall(BAIT)
        pair.expect(BAIT)
        pair.answer()
        pair.client.sendall(GET)
        pair.expect(GET)
        pair.end()
        os.close(reader)
        os.close(writer)


def test_more_to_come() -> None:
    with Pair() as pair:
        pair.client.send(post(BAIT), socket.MSG_MORE)
        pair.client.sendall(BAIT)
        pair.expect_injected(post(BAIT) + BAIT)
        pair.answer()
        pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        pair.client.sendall(GET)
        pair.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        pair.expect_injected(GET)


def test_urgent_data() -> None:
    with Pair(prepare=None) as pair:
        pair.server.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        pair.client.sendall(GET)
        pair.expect_injected(GET)
        pair.answer()
        pair.client.send(b"!", socket.MSG_OOB)
        pair.expect(b"!")
        pair.end()


def test_duplicates_and_threads() -> None:
    with Pair() as pair, pair.client.dup() as other:
        for number in range(10):
            thread = threading.Thread(target=(pair.client, other)[number % 2].sendall, args=(GET,))
            thread.start()
            thread.join()
            pair.expect_injected(GET)
            pair.answer()


@pytest.mark.parametrize("option", [0, 4096, 65536])
@pytest.mark.parametrize("lowat", [0, 1, 4096, 16384])
@pytest.mark.parametrize("blocking", [True, False])
def test_large_uploads_through_small_buffers(option: int, lowat: int, blocking: bool) -> None:
    """Where the kernel takes a part only, or nothing, and the rest is sent again."""

    def prepare(client: socket.socket) -> None:
        if option:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, option)
        if lowat:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, lowat)

    body = os.urandom(1 << 20) + BAIT
    with Pair(prepare=prepare) as pair:
        for _ in range(3):
            whole = post(body) + body
            assert LINE.sub(b"", upload(pair, whole, blocking=blocking), count=1) == whole
            pair.answer()


def test_full_buffer() -> None:
    """Requests that the peer reads slowly: some find too little room for a header; all arrive bit by bit."""
    with Pair(prepare=lambda client: client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)) as pair:
        pair.client.setblocking(False)
        sent, came = bytearray(), bytearray()
        for number in range(3000):
            waiting = memoryview(b"GET /%d HTTP/1.1\r\nA: %s\r\n\r\n" % (number, b"a" * (number % 900)))
            sent += waiting
            while waiting:
                try:
                    waiting = waiting[pair.client.send(waiting) :]
                except BlockingIOError:
                    came += pair.server.recv(3000)
        pair.client.shutdown(socket.SHUT_WR)
        while part := pair.server.recv(1 << 20):
            came += part
        assert LINE.sub(b"", came) == sent
