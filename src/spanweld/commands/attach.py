"""``spanweld attach``: the same for a service that runs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import TypeVar

import click

from spanweld.agent import Agent
from spanweld.bpf.host import look_at_host
from spanweld.commands.options import describe, tracing_options
from spanweld.errors import ImageError, SpanweldError, TargetError, UsageError
from spanweld.messages import say, say_error
from spanweld.model import Pid
from spanweld.plan import make_plan
from spanweld.process.find import find_by_exe, find_by_pid
from spanweld.process.signals import SignalReader
from spanweld.settings import Settings

K = TypeVar("K")
T = TypeVar("T")

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(short_help="Trace a service that runs already.")
@tracing_options
@click.option("--pid", "pids", type=int, multiple=True, metavar="N", help="Process id; repeatable.")
@click.option("--exe", metavar="GLOB", help="Every process whose executable's path or name matches.")
def attach(
    *,
    settings: Settings,
    pids: tuple[int, ...],
    exe: str | None,
) -> int:
    """Traces a Rust service that runs, until it ends or Ctrl-C.

    \b
    spanweld attach --pid 4711
    spanweld attach --exe '*/release/service'

    Detaching (Ctrl-C, SIGTERM) leaves the service as it was.
    """
    if bool(pids) == bool(exe):
        raise UsageError("attach needs either --pid N or --exe GLOB", "spanweld attach --help shows both")
    # First of all: without root most processes cannot be seen, and none would match.
    look_at_host(mount=True).require()
    processes = find_by_exe(exe) if exe else tuple(find_by_pid(Pid(pid)) for pid in dict.fromkeys(pids))
    reader = SignalReader(ENDING)
    agent = Agent(settings, say)
    ended_by_signal = False

    def after_each_pass() -> bool:
        nonlocal ended_by_signal
        ended_by_signal = bool(reader.read()) or ended_by_signal
        return ended_by_signal

    try:
        plans = each(processes, lambda process: make_plan(process.image_path))
        choice = agent.open()
        targets = each(
            plans,
            lambda process: agent.add(process.pid, plans[process], process.image_path, choice),
        )
        for target in targets.values():
            say(describe(target))
        agent.run(after_each_pass, wake=(reader.fileno(),))
        say("detached" if ended_by_signal else "the service has ended")
    finally:
        agent.close()
        reader.close()
    return 0


def each(things: Iterable[K], do: Callable[[K], T]) -> dict[K, T]:
    """What ``do`` makes of each thing; what fails is said, and raised when nothing succeeds."""
    done: dict[K, T] = {}
    failures: list[SpanweldError] = []
    for thing in things:
        try:
            done[thing] = do(thing)
        except (ImageError, TargetError) as error:
            failures.append(error)
    last = failures.pop() if failures and not done else None
    for failure in failures:
        say_error(failure)
    if last:
        raise last
    return done
