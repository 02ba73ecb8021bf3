"""HTTP/1.1 clients that decide for themselves which bytes go when: a raw connection, and a load."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; names of headers in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


def head(method: str, target: str, *headers: str, version: str = "1.1", host: str | None = "test") -> bytes:
    """The bytes of a request's head; ``headers`` are whole lines."""
    lines = [f"{method} {target} HTTP/{version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``1.2.3.4:80`` or ``[::1]:80``."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class Connection:
    """One TCP connection; what is sent leaves at once."""

    def __init__(self, address: str) -> None:
        self._server = split_address(address)
        self._socket = socket.create_connection(self._server, TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self._socket.makefile("rb")
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes both ways."""
        self._reader.close()
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Sends all of it."""
        self._socket.sendall(data)

    def send_in_pieces(self, pieces: Iterable[bytes]) -> None:
        """Sends each piece once the server has read the one before, so that each is a read of its own."""
        for piece in pieces:
            self.send(piece)
            self.wait_until_read()

    def wait_until_read(self, timeout: float = TIMEOUT) -> None:
        """Returns when nothing of what was sent waits in the server's socket."""
        deadline = time.monotonic() + timeout
        while _unread(self._server[1], self.port):
            assert time.monotonic() < deadline, "the server did not read what was sent"
            time.sleep(0.001)

    def request(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Response:
        """Sends a request and reads its answer."""
        lines = [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        self.send(head(method, target, *lines) + (body or b""))
        return self.read_response(method)

    def read_response(self, method: str = "GET") -> Response:
        """The next answer, an interim one too."""
        line = self._reader.readline()
        if not line:
            raise ConnectionError("the server closed the connection")
        status = int(line.split(b" ")[1])
        headers = {}
        while line := self._reader.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return Response(status, headers, self._read_body(method, status, headers))

    def _read_body(self, method: str, status: int, headers: Mapping[str, str]) -> bytes:
        if method == "HEAD" or status < 200 or status in (204, 304):
            return b""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self._reader.readline(), 16):
                chunks.append(self.read_exactly(size))
                self._reader.readline()
            self._reader.readline()
            return b"".join(chunks)
        if "content-length" in headers:
            return self.read_exactly(int(headers["content-length"]))
        return self._reader.read()

    def read_exactly(self, size: int) -> bytes:
        """So many bytes; AssertionError if the server closes before."""
        data = self._reader.read(size)
        assert len(data) == size, f"{len(data)} of {size} bytes came"
        return data

    def read_to_end(self) -> bytes:
        """All until the server closes, be it by a reset."""
        try:
            return self._reader.read()
        except ConnectionResetError:
            return b""


def _unread(server_port: int, client_port: int) -> int:
    """Bytes that wait to be read in the server's socket of a connection on this host. proc_net_tcp(5)"""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            ports = [int(address.rpartition(":")[2], 16) for address in fields[1:3]]
            if ports == [server_port, client_port]:
                return int(fields[4].partition(":")[2], 16)
    return 0


def get(address: str, target: str, headers: Mapping[str, str] | None = None) -> Response:
    """One GET on a connection of its own."""
    with Connection(address) as connection:
        return connection.request("GET", target, headers)


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a load met: ``failures`` says of each request without the expected status what came."""

    requests: int
    seconds: float
    failures: tuple[str, ...]


def load(
    address: str,
    numbers: Iterable[int],
    connections: int,
    target: Callable[[int], str],
    *,
    method: str = "GET",
    body: bytes | None = None,
    status: int = 200,
) -> LoadResult:
    """Sends one request for each number over so many keep-alive connections at once."""
    pending = iter(numbers)
    lock = threading.Lock()
    failures: list[str] = []
    sent = [0] * connections

    def work(worker: int) -> None:
        host, port = split_address(address)
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        while True:
            with lock:
                number = next(pending, None)
            if number is None:
                break
            sent[worker] += 1
            try:
                connection.request(method, target(number), body)
                response = connection.getresponse()
                response.read()
                if response.status != status:
                    failures.append(f"{number}: status {response.status}")
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{number}: {error!r}")
                connection.close()
        connection.close()

    began = time.monotonic()
    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return LoadResult(sum(sent), time.monotonic() - began, tuple(failures))
