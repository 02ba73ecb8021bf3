"""What runs in the virtual machine, as root, on a kernel without lockdown; see test_kernel_writer.py.

SPANWELD_TEST_BINARIES=FOLDER python -m pytest tests/vm/in_guest.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spanweld.bpf.host import look_at_host
from tests.support import chain
from tests.support.agent import attach
from tests.support.exactness import check
from tests.support.remains import (
    PINS,
    KernelObjects,
    assert_untouched,
    probed,
    thread_ids,
    tracer_processes,
    wait_until,
)
from tests.support.services import Service
from tests.support.steady import Request, SteadyLoad

SOCKETS = Request("/n/{n}")
BINARIES = Path(os.environ.get("SPANWELD_TEST_BINARIES", "."))


def test_kernel_is_another_one() -> None:
    host = look_at_host(mount=True)
    assert host.kernel.startswith("6.1.")
    assert host.lockdown in ("none", "")


def test_thousand_requests_are_exact_by_the_kernel_writer() -> None:
    result = check(requests=1000, connections=64, write="auto", binaries=BINARIES)
    assert "(write kernel)" in result.messages
    assert result.ok, f"{result}\n{result.examples}\n{result.messages}"


def test_stop_writer_on_this_kernel() -> None:
    result = check(requests=100, connections=16, write="stop", how="attach", binaries=BINARIES)
    assert "(write stop)" in result.messages
    assert result.ok, f"{result}\n{result.examples}\n{result.messages}"


@pytest.mark.parametrize("how", ["run", "attach"])
def test_inline_probes_on_this_kernel(how: str) -> None:
    result = check(requests=500, connections=16, write="inline", how=how, binaries=BINARIES)
    assert "(write inline)" in result.messages
    assert result.ok, f"{result}\n{result.examples}\n{result.messages}"


def test_chain_with_inline_probes_on_this_kernel() -> None:
    outcome = chain.check(
        requests=40, connections=8, how="attach", options=("--write", "inline"), binaries=BINARIES
    )
    assert outcome.messages["all"].count("(write inline)") == 3
    assert outcome.ok, outcome.report()


@pytest.mark.parametrize("write", ["kernel", "stop"])
def test_agent_killed(write: str) -> None:
    with Service(BINARIES / "sockets") as service, SteadyLoad(service.address, SOCKETS, 4) as load:
        threads = thread_ids(service.pid)
        with attach(service.pid, "--write", write, "--export", "json:/dev/null") as agent:
            killed = KernelObjects.of(agent.process.pid)
            load.wait_for_more(20)
            agent.process.kill()
            agent.process.wait()
        load.wait_for_more(50)
        wait_until(lambda: not tracer_processes(service.pid), "the tracer has followed the agent", 5)
        wait_until(lambda: probed(service.pid, service.executable) == 0, "the probes are gone")
        wait_until(lambda: not (PINS / str(service.pid)).exists(), "its maps are gone")
        assert threads <= thread_ids(service.pid)
        with attach(service.pid, "--write", write, "--export", "json:/dev/null") as agent:
            last = KernelObjects.of(agent.process.pid)
            load.wait_for_more(20)
            assert agent.stop() == 0
        for objects in (killed, last):
            assert_untouched(service.pid, service.executable, objects)
        load.stop()
        assert load.failures == []
        assert service.stop() == 0
