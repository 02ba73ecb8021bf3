"""What following tasks costs a service at saturation: the probes on what spawns, and on what wakes.

    python -m bench.tasks [--rounds N] [--seconds S]

Copies of one service run at once, and wrk loads one after the other, as in bench.throughput: two bare
ones (their ratio is the spread of the machine), one whose requests are traced but not its tasks, one with
the probes on spawns as well, and one with those on wakes too, which is what the agent does. `users` calls
`store` for each request, over connections that are kept; nothing is written into it, and no headers are
injected. `store` calls nobody: nothing reads its wakes, and the agent attaches no probes to them.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from bench.throughput import Copy, compare, run_wrk
from spanweld.agent import Agent, Target
from spanweld.bpf.libbpf import Link
from spanweld.commands import main as spanweld
from spanweld.probes import tokio_tasks
from spanweld.probes.declaration import Instrumentation
from tests.support.agent import AgentProcess
from tests.support.services import Service, binary

OPTIONS = ("--write", "off", "--inject", "off")
GROUPS = (tokio_tasks.INSTRUMENTATION, tokio_tasks.WAKES)
POST = 'wrk.method = "POST"\n'


@dataclass(frozen=True, slots=True)
class Tracing:
    """How one copy of a service is traced: ``groups`` of probes on tasks, None for a bare one."""

    name: str
    groups: int | None


COPIES = (
    Tracing("bare", None),
    Tracing("bare again", None),
    Tracing("spans only", 0),
    Tracing("and spawns", 1),
    Tracing("and wakes", 2),
)


def attach_some(groups: int, arguments: Sequence[str]) -> None:
    """The agent, but with so many groups of probes on tasks."""
    follow = Agent._follow  # there is no option for this, as nobody would want less

    def follow_some(agent: Agent, target: Target, group: Instrumentation, links: list[Link]) -> None:
        if group in GROUPS[:groups]:
            follow(agent, target, group, links)

    with patch.object(Agent, "_follow", follow_some), patch.object(sys, "argv", ["spanweld", *arguments]):
        spanweld()


def measure(name: str, path: str, arguments: Sequence[str], rounds: int, seconds: int) -> None:
    """Runs one case and prints its lines."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = folder / "post.lua"
        script.write_text(POST)
        # No collector listens: the service's exporter must not be part of what is measured.
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "600000"}
        copies: dict[str, Copy] = {}
        for tracing in COPIES:
            running = stack.enter_context(Service(binary(name, "release"), arguments, environ))
            agent = None
            if tracing.groups is not None:
                spans = folder / tracing.name.replace(" ", "-")
                attach = ["attach", *OPTIONS, "--export", f"json:{spans}", "--pid", str(running.pid)]
                command = (sys.executable, "-m", "bench.tasks", "--groups", str(tracing.groups), "--")
                agent = stack.enter_context(AgentProcess(attach, command=command)).process.pid
            copies[tracing.name] = Copy(running, agent)
        compare(f"{name}{path}", copies, rounds, lambda service: run_wrk(service, path, seconds, script))


def main() -> None:
    """Measures both cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each case (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="length of a run (default: %(default)s)")
    parser.add_argument("--groups", type=int, help=argparse.SUPPRESS)
    parser.add_argument("agent", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.groups is not None:
        attach_some(options.groups, options.agent)
        return
    with Service(binary("store", "release"), ["--delay-ms", "0"]) as store:
        measure("users", "/api/users/1", ["--store", store.url], options.rounds, options.seconds)
    measure("store", "/store", ["--delay-ms", "0"], options.rounds, options.seconds)


if __name__ == "__main__":
    main()
