"""``spanweld run``: starts a service with everything attached before its main."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import traceback

import click

from spanweld.agent import Agent
from spanweld.commands.options import describe, tracing_options
from spanweld.errors import SpanweldError
from spanweld.messages import say, say_error
from spanweld.model import Pid
from spanweld.plan import make_plan
from spanweld.process.launch import Held, exit_code_of, find_program, launch
from spanweld.process.signals import SignalReader
from spanweld.process.users import resolve_user, sudo_user
from spanweld.settings import Settings

# What a user or a supervisor sends to a service through its wrapper.
FORWARDED = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT),
)


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    short_help="Start a service with everything attached.",
)
@tracing_options
@click.option(
    "--user",
    "user_text",
    envvar="SPANWELD_USER",
    metavar="NAME|UID[:GROUP]",
    help="As whom the service runs. Default: who called sudo, else root.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    *,
    settings: Settings,
    user_text: str | None,
    command: tuple[str, ...],
) -> int:
    """Starts COMMAND, a Rust service, with everything attached before its main.

    \b
    spanweld run -- ./service --its-flags
    spanweld run --export otlp -- ./service

    The service keeps its output, gets the signals that spanweld gets, and its exit code becomes
    spanweld's. Requests appear as trees on standard output unless an OTLP endpoint is set.
    """
    user = resolve_user(user_text) if user_text else sudo_user(os.environ)
    program = find_program(command[0], os.environ)
    plan = make_plan(program)
    environ = {**os.environ, **(user.environment if user else {})}
    reader = SignalReader(FORWARDED)
    agent = Agent(settings, say)
    held: Held | None = None
    try:
        choice = agent.open()
        held = launch(program, command, environ, user, reader.blocked_before)
        target = agent.add(held.pid, plan, program, choice, starting=True)
        held.release()
        service = Service(held.pid, reader)
        held = None
        try:
            agent.started(target)
            say(describe(target))
            agent.run(service.pass_on_signals, wake=(reader.fileno(),))
        except SpanweldError as error:
            say_error(error)
            say("the service goes on without being traced")
        except Exception:
            # A fault of ours ends the tracing; the service, whose wrapper this is, goes on.
            say("an error in spanweld: the service goes on without being traced")
            traceback.print_exc()
    finally:
        if held is not None:
            held.abandon()
        try:
            agent.close()
        except Exception:
            traceback.print_exc()
    status = service.wait()
    reader.close()
    if os.WIFSIGNALED(status):
        say(f"the service was ended by {signal.Signals(os.WTERMSIG(status)).name}")
    return exit_code_of(status)


class Service:
    """The child as its wrapper sees it: signals go to it, its end comes back."""

    def __init__(self, pid: Pid, signals: SignalReader) -> None:
        self._pid = pid
        self._signals = signals

    def pass_on_signals(self) -> bool:
        """Sends what has come on to the service; False, since none of them ends the tracing."""
        for received in self._signals.read():
            # What the terminal sent, it has sent to the whole foreground group, the service included.
            if not received.from_terminal:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, received.number)
        return False

    def wait(self) -> int:
        """Passes signals on until the service has ended; returns its wait status."""
        end = os.pidfd_open(self._pid)
        try:
            while True:
                ready, _, _ = select.select([end, self._signals.fileno()], [], [])
                self.pass_on_signals()
                if end in ready:
                    return os.waitpid(self._pid, 0)[1]
        finally:
            os.close(end)
