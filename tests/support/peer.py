"""A server by hand, which services under test ask: it does on the wire what the request's path names."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tests.support.client import TIMEOUT

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BODY_DELAY = 0.2


class Peer:
    """Listens on a TCP port of its own, or at a Unix socket's ``path``; ends with the ``with`` block.

    ``GET /WHAT/N`` is answered as the method ``_WHAT`` says, and with 200 where there is none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._changed = threading.Condition()
        self._heads: list[str] = []
        self.body_sent_ns = 0
        """When the body of ``slow-body`` was begun to be sent, Unix time."""
        self.connections = 0

    def __enter__(self) -> Peer:
        if self._path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            host, port = self._listener.getsockname()
            self.address = f"{host}:{port}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self._path))
            self._listener.listen()
            self.address = f"unix:{self._path}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # accept() goes on in its thread until the socket is shut, not only closed.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def port(self) -> int:
        """The TCP port."""
        return int(self.address.rpartition(":")[2])

    def heads(self) -> list[str]:
        """The request heads that came."""
        with self._changed:
            return list(self._heads)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(TIMEOUT)
        with contextlib.suppress(OSError), connection:
            read = b""
            while True:
                while b"\r\n\r\n" not in read:
                    more = connection.recv(65536)
                    if not more:
                        return
                    read += more
                head, _, read = read.partition(b"\r\n\r\n")
                with self._changed:
                    self._heads.append(head.decode("latin-1"))
                what = head.split(b" ")[1].decode().split("/")[1]
                answer: Callable[[socket.socket], bool] | None = getattr(
                    self, "_" + what.replace("-", "_"), None
                )
                if answer is None:
                    connection.sendall(_OK)
                elif not answer(connection):
                    return
                if b"connection: close" in head.lower():
                    return

    # Each sends what it is named for; whether the connection goes on.

    def _head(self, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        return True

    def _continue(self, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b""
        while len(body) < 5:
            body += connection.recv(5 - len(body))
        connection.sendall(
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
        )
        return True

    def _empty(self, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
        return True

    def _unchanged(self, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n")
        return True

    def _missing(self, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n")
        return True

    def _broken(self, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
        return True

    def _chunked(self, connection: socket.socket) -> bool:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"16\r\nHTTP/1.1 500 No\r\n\r\nabc\r\n0\r\n\r\n"
        )
        return False

    def _until_close(self, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nsome")
        return False

    def _slow_body(self, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        time.sleep(BODY_DELAY)
        self.body_sent_ns = time.time_ns()
        connection.sendall(b"ok")
        return True

    def _pieces(self, connection: socket.socket) -> bool:
        for byte in _OK:
            connection.sendall(bytes([byte]))
            time.sleep(0.001)
        return True

    def _close(self, connection: socket.socket) -> bool:  # noqa: ARG002
        return False

    def _half(self, connection: socket.socket) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Len")
        return False

    def _reset(self, connection: socket.socket) -> bool:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False
