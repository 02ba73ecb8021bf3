"""A child that holds the uprobes too, so that they are taken off in order even if the agent is killed.

A process that is being killed may not wait for another's memory: the kernel then gives up restoring
the probed instruction ("failed to unregister, leaking uprobe"), and the breakpoint stays in the
service, where it costs a trap a call for as long as the service lives. The keeper, which nobody
killed, lets go last.
"""

from __future__ import annotations

import os
import socket
from typing import NoReturn

_MESSAGE = 16


class LinkKeeper:
    """Holds descriptors of links until told to let go, or until this process ends, however it ends.

    Forks in its constructor: to be made before there are threads, with the signals blocked that are
    not meant for it.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            _keep(theirs)
        theirs.close()
        self._socket = ours

    def hold(self, descriptor: int) -> None:
        """Holds a descriptor of this process, known by its number from here on."""
        socket.send_fds(self._socket, [str(descriptor).encode()], [descriptor])

    def let_go(self, descriptor: int) -> None:
        """Closes what was held; when this returns, whatever hung on it alone is gone."""
        self._socket.send(str(descriptor).encode())
        self._socket.recv(_MESSAGE)

    def close(self) -> None:
        """Ends the keeper."""
        self._socket.close()
        os.waitpid(self._pid, 0)


def _keep(agent: socket.socket) -> NoReturn:
    """The child: serves until the agent is gone, then ends, which closes all that is held."""
    try:
        os.setsid()
        os.chdir("/")
        # Nothing else of the agent's may live on by this process.
        os.closerange(0, agent.fileno())
        os.closerange(agent.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        held: dict[bytes, int] = {}
        while True:
            name, descriptors, _, _ = socket.recv_fds(agent, _MESSAGE, 1)
            if not name:
                break
            if descriptors:
                held[name] = descriptors[0]
            else:
                os.close(held.pop(name))
                agent.send(b"!")
    except BrokenPipeError:
        pass
    finally:
        os._exit(0)
