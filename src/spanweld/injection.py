"""Trace context in requests out: the programs' attachment, and whether this kernel can be trusted with it.

Two programs (``probes/http_inject.bpf.c``): one at a cgroup, which sees sockets being connected, and one at
the map of sockets that the first one fills. Both go with the agent, however it ends: the first hangs on a
descriptor, the second on the map, and the sockets are then as they were.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path

from spanweld.bpf import events
from spanweld.bpf.libbpf import BpfObject
from spanweld.bpf.targets import TargetPlaces
from spanweld.errors import HostError
from spanweld.model import Pid

CONNECT_PROGRAM = "inject_connect"
MESSAGE_PROGRAM = "inject_message"
SOCKETS = "inject_sockets"
PROGRAMS = (CONNECT_PROGRAM, MESSAGE_PROGRAM)
MAPS = (SOCKETS, "inject_states")

_BODY = 3 << 20
_PIECE = 1 << 20
_TIMEOUT = 5.0
_LINE = re.compile(rb"traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-00\r\n")
_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Injection:
    """The two programs, attached. Raises HostError, with the reason, where that cannot be."""

    def __init__(self, bpf: BpfObject, places: TargetPlaces) -> None:
        if bpf.left_out:
            raise HostError(bpf.left_out)
        self._places = places
        self._sockets = bpf.map(SOCKETS)
        cgroup = _cgroup2()
        bpf.attach_to_sockets(MESSAGE_PROGRAM, self._sockets)
        self._link = bpf.attach_cgroup(CONNECT_PROGRAM, cgroup)

    def close(self) -> None:
        """Takes the programs off, and lets every socket go."""
        self._link.detach()
        for key in list(self._sockets.keys()):
            self._sockets.delete(key)

    def let_go(self, pid: int) -> None:
        """The sockets of a process are as they were."""
        for key in list(self._sockets.keys()):
            if events.INJECT_KEY.unpack(key)[1] == pid:
                self._sockets.delete(key)

    def let_socket_go(self, pid: int, cookie: int) -> None:
        """One socket is as it was."""
        self._sockets.delete(events.INJECT_KEY.pack(cookie, pid, 0))

    def why_not(self) -> str:
        """Why this kernel cannot be trusted with it; empty where all went well.

        Sends requests with large bodies over the loopback from this very process, as if it were a target,
        and compares what arrives bit by bit. The tracepoints of the HTTP probes must be attached.
        """
        own = Pid(os.getpid())
        values = dict.fromkeys(events.Target._fields, 0)
        values.update(inject=1)
        self._places.reserve(own, None)
        self._places.put(own, events.TARGET.pack(*values.values()))
        try:
            return _try_transfers()
        except OSError as error:
            return f"a transfer over the loopback failed: {error}"
        finally:
            self._places.hide(own)
            self._places.free(own)
            self.let_go(own)


def _cgroup2() -> Path:
    """Where a cgroup2 file system is mounted, also beside the older kind."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, path, kind, _ = line.split(" ", 3)
        if kind == "cgroup2":
            return Path(path)
    raise HostError("no cgroup2 file system is mounted", "mount -t cgroup2 none /sys/fs/cgroup/unified")


def _try_transfers() -> str:
    body = os.urandom(_PIECE) * (_BODY // _PIECE)
    post = b"POST / HTTP/1.1\r\nHost: loopback\r\nContent-Length: %d\r\n" % len(body)
    own = b"Traceparent: 00-%032x-%016x-01\r\n" % (1, 1)
    requests = (
        (post + b"\r\n" + body, True),
        (post + own + b"\r\n" + body, False),
        (b"GET / HTTP/1.1\r\nHost: loopback\r\n\r\n", True),
    )
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(server.getsockname(), _TIMEOUT))
        accepted = stack.enter_context(server.accept()[0])
        client.setblocking(False)
        accepted.settimeout(_TIMEOUT)
        for request, is_injected in requests:
            came = _transfer(client, accepted, request, len(request) + is_injected * _LINE_LENGTH)
            line = _LINE.search(came, 0, 200)
            if is_injected:
                if line is None:
                    return "a request over the loopback got no header"
                came = came[: line.start()] + came[line.end() :]
            if came != request:
                return "a transfer over the loopback did not arrive as it was sent"
            accepted.sendall(_RESPONSE)
            client.settimeout(_TIMEOUT)
            came = client.recv(len(_RESPONSE))
            client.setblocking(False)
            if came != _RESPONSE:
                return "a response over the loopback did not arrive as it was sent"
    return ""


_LINE_LENGTH = len(b"traceparent: 00--\r\n") + 32 + 16 + len(b"-00")


def _transfer(client: socket.socket, server: socket.socket, data: bytes, size: int) -> bytes:
    """What of ``data`` arrives, up to ``size`` bytes; sent without waiting, as an event loop does."""
    waiting = memoryview(data)
    came = bytearray()
    while len(came) < size:
        if waiting:
            with contextlib.suppress(BlockingIOError):
                waiting = waiting[client.send(waiting) :]
        part = server.recv(_PIECE)
        if not part:
            break
        came += part
    return bytes(came)
