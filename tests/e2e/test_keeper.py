"""After `kill -9` of the agent no breakpoint stays in the service's code, and no map is pinned."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.agent import attach
from tests.support.client import load
from tests.support.remains import PINS, probed, wait_until
from tests.support.services import Service, binary

pytestmark = pytest.mark.root


def children_of(pid: int) -> set[int]:
    """Processes that a single-threaded part of a process has started, of any of its threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}


@pytest.mark.parametrize("attempt", range(3))
def test_a_killed_agent_leaves_no_breakpoint(attempt: int) -> None:
    executable = binary("lab", "release")
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    with Service(executable, environ=environ) as service:
        # The console export has a thread, and the kernel may end either of the two last.
        with attach(service.pid, "--write", "stop", "--export", "console") as agent:
            assert probed(service.pid, executable) >= 3
            load(service.address, range(attempt, 50), connections=8, target=lambda number: f"/roots/{number}")
            helpers = children_of(agent.process.pid)
            assert len(helpers) == 2, "the keeper and the tracer"
            agent.process.send_signal(signal.SIGKILL)
            agent.process.wait()
            wait_until(
                lambda: not any(Path(f"/proc/{child}").exists() for child in helpers), "both have ended"
            )
        assert probed(service.pid, executable) == 0
        assert not (PINS / str(service.pid)).exists()


_AGENT_AND_KEEPER_KILLED = """
import sys
from spanweld.bpf.pins import PinFolder
PinFolder(int(sys.argv[1])).create()
"""


def test_the_next_agent_removes_what_no_keeper_did() -> None:
    with Service(binary("lab", "release")) as service, Service(binary("lab", "release")) as other:
        subprocess.run([sys.executable, "-c", _AGENT_AND_KEEPER_KILLED, str(service.pid)], check=True)
        assert (PINS / str(service.pid) / "agent").is_symlink()
        with attach(other.pid, "--export", "json:/dev/null") as agent:
            assert not (PINS / str(service.pid)).exists()
            assert agent.stop() == 0
