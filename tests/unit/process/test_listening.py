from __future__ import annotations

import os
import socket

import pytest

from spanweld.errors import TargetError
from spanweld.model import Pid
from spanweld.process.listening import listening_ports


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_port_counts_while_it_listens(family: socket.AddressFamily, address: str) -> None:
    if family is socket.AF_INET6 and not os.path.exists("/proc/net/if_inet6"):  # noqa: PTH110
        pytest.skip("the kernel has no IPv6")
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind((address, 0))
        port = server.getsockname()[1]
        assert port not in listening_ports(Pid(os.getpid()))
        server.listen()
        client.connect((address, port))
        ports = listening_ports(Pid(os.getpid()))
        assert port in ports
        assert client.getsockname()[1] not in ports
    assert port not in listening_ports(Pid(os.getpid()))


def test_process_that_is_gone() -> None:
    with pytest.raises(TargetError, match="has ended"):
        listening_ports(Pid(2**22 + 1))
