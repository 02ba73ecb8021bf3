"""A child that holds all that is attached too, so that all is taken off in order even if the agent is killed.

A process that is being killed may not wait for another's memory: the kernel then gives up restoring
the probed instruction ("failed to unregister, leaking uprobe"), and the breakpoint stays in the
service, where it costs a trap a call for as long as the service lives. The keeper, which nobody
killed, lets go last, all at once where a killed process waits for each, and takes the agent's pinned
maps away.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from spanweld.bpf import pins

_AT_ONCE = 32
_MESSAGE = 512


class LinkKeeper:
    """Holds descriptors of links until told to let go, or until this process ends, however it ends.

    Forks in its constructor: to be made before there are threads, with the signals blocked that are
    not meant for it. The child calls ``meanwhile`` each ``interval`` seconds while it waits.
    """

    def __init__(self, meanwhile: Callable[[], None] | None = None, interval: float = 1.0) -> None:
        agent = pins.this_agent()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            _keep(theirs, agent, meanwhile, interval)
        theirs.close()
        self._socket = ours

    def hold(self, descriptor: int) -> None:
        """Holds a descriptor of this process, known by its number from here on."""
        socket.send_fds(self._socket, [str(descriptor).encode()], [descriptor])

    def let_go(self, descriptors: Sequence[int]) -> None:
        """Closes what was held, all at once; when this returns, whatever hung on them alone is gone."""
        for at in range(0, len(descriptors), _AT_ONCE):
            names = descriptors[at : at + _AT_ONCE]
            self._socket.send(b" ".join(str(descriptor).encode() for descriptor in names))
            self._socket.recv(_MESSAGE)

    def close(self) -> None:
        """Ends the keeper."""
        self._socket.close()
        os.waitpid(self._pid, 0)


def _keep(
    agent: socket.socket, name_of_agent: str, meanwhile: Callable[[], None] | None, interval: float
) -> NoReturn:
    """The child: serves until the agent is gone, then lets all go and ends."""
    try:
        os.setsid()
        os.chdir("/")
        # Nothing else of the agent's may live on by this process.
        os.closerange(0, agent.fileno())
        os.closerange(agent.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        held: dict[bytes, int] = {}
        agent.settimeout(interval if meanwhile else None)
        with contextlib.suppress(ConnectionError):
            while _serve(agent, held):
                if meanwhile:
                    meanwhile()
        _close(held.values())
        pins.remove_of(name_of_agent)
    finally:
        os._exit(0)


def _serve(agent: socket.socket, held: dict[bytes, int]) -> bool:
    """Does what is asked for until nothing was for a while; False when there is nobody any more."""
    while True:
        try:
            name, descriptors, _, _ = socket.recv_fds(agent, _MESSAGE, 1)
        except TimeoutError:
            return True
        if not name:
            return False
        if descriptors:
            held[name] = descriptors[0]
        else:
            _close([held.pop(one) for one in name.split()])
            agent.send(b"!")


def _close(descriptors: Iterable[int]) -> None:
    """All at once: the kernel waits at each one until nobody runs its program."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(os.close, descriptors))
