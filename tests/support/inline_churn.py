"""Attach and detach inline probes under load, again and again; now and then the agent is killed.

    python -m tests.support.inline_churn --rounds 200

A quarter of the agents get SIGKILL somewhere between their start and some time after they are ready. In the
end the service has failed no request, has nothing mapped that is not its own, and its code is that of its
file.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path

from spanweld.model import Pid
from spanweld.process.memory import image_ranges, memory_ranges
from tests.support.agent import COMMAND, attach
from tests.support.services import Service, binary
from tests.support.steady import USERS, SteadyLoad

KILL_AFTER = 4.0
"""Seconds, at most: an agent is ready after one to three."""


def churn(rounds: int, seed: int) -> int:
    """Does it; returns how many agents were killed. AssertionError for whatever harmed the service."""
    chance = random.Random(seed)
    killed = 0
    executable = binary("users", "release")
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(Service(binary("store", "release")))
        service = stack.enter_context(Service(executable, ["--store", store.url]))
        load = stack.enter_context(SteadyLoad(service.address, USERS, connections=8))
        options = ("--write", "inline", "--export", "json:/dev/null")
        for _ in range(rounds):
            if chance.random() < 0.25:
                command = [*COMMAND, "attach", *options, "--pid", str(service.pid)]
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(chance.random() * KILL_AFTER)
                process.kill()
                process.wait()
                killed += 1
                load.wait_for_more(20)
                continue
            with attach(service.pid, *options) as agent:
                load.wait_for_more(20)
                assert agent.stop() == 0, agent.messages.text
                assert "mapped" not in agent.messages.text, agent.messages.text
            load.wait_for_more(20)
        with attach(service.pid, *options) as agent:
            load.wait_for_more(20)
            assert agent.stop() == 0
        assert_untouched(Pid(service.pid), executable)
        load.stop()
        assert load.failures == []
        assert service.stop() == 0
    return killed


def assert_untouched(pid: Pid, executable: Path) -> None:
    """The code is that of the file, and no mapping is ours."""
    assert not [r for r in memory_ranges(pid) if "memfd" in r.path or "bpf-map" in r.path]
    code = executable.read_bytes()
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        for r in image_ranges(pid):
            if r.is_executable:
                memory.seek(r.start)
                size = min(r.end - r.start, len(code) - r.offset)
                assert memory.read(size) == code[r.offset : r.offset + size]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="inline probes in and out under load, agents killed")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    killed = churn(arguments.rounds, arguments.seed)
    print(f"{arguments.rounds} rounds, {killed} agents killed: no request failed, nothing is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
