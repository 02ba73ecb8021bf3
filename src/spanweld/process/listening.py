"""The TCP ports on which a process listens."""

from __future__ import annotations

import re
from pathlib import Path

from spanweld.errors import TargetError
from spanweld.model import Pid

TCP_LISTEN = "0A"
"""State of a socket in /proc/net/tcp; include/net/tcp_states.h."""


def listening_ports(pid: Pid) -> frozenset[int]:
    """Ports, of IPv4 and IPv6, of listening sockets that the process has open, in its network namespace.

    Raises TargetError if the process is gone.
    """
    inodes = _socket_inodes(pid)
    ports = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except FileNotFoundError:
            continue  # a kernel without IPv6
        for line in lines:
            fields = line.split()
            if fields[3] == TCP_LISTEN and int(fields[9]) in inodes:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return frozenset(ports)


def _socket_inodes(pid: Pid) -> frozenset[int]:
    inodes = set()
    try:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                link = str(descriptor.readlink())
            except FileNotFoundError:
                continue  # closed meanwhile
            if match := re.fullmatch(r"socket:\[(\d+)\]", link):
                inodes.add(int(match[1]))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise TargetError(f"process {pid} has ended") from error
    except PermissionError as error:
        raise TargetError(f"process {pid} may not be looked at", "Run as root.") from error
    return frozenset(inodes)
