"""The agent under test, as a user starts it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.support.services import PATIENCE, READY, Lines

COMMAND = (sys.executable, "-m", "spanweld")


class AgentProcess:
    """``spanweld run`` or ``attach`` in a process of its own, ready when the ``with`` block begins.

    ``command`` is for one that is started in another way.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str] | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._arguments = [*command, *arguments]
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "SUDO_"))},
            "NO_PROXY": "127.0.0.1",
            "RUST_BACKTRACE": "0",
            **(environ or {}),
        }

    def __enter__(self) -> AgentProcess:
        self.process = subprocess.Popen(
            self._arguments,
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.output = Lines(self.process.stdout)
        self.messages = Lines(self.process.stderr)
        try:
            self.messages.wait_for(" ready (pid ", 60)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def service_address(self) -> str:
        """In ``run``: where the service listens, from its own ready line."""
        return self.output.wait_for(READY).removeprefix(READY)

    @property
    def service_pid(self) -> int:
        """The traced process, from the agent's ready line."""
        line = self.messages.wait_for(" ready (pid ")
        return int(line.partition("(pid ")[2].partition(",")[0])

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 15.0) -> int:
        """Ends the agent by a signal; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout * PATIENCE)
        except subprocess.TimeoutExpired:
            threads = "\n".join(_threads(self.process.pid))
            self.process.kill()
            raise AssertionError(
                f"the agent did not end; it said:\n{self.messages.text}\n{threads}"
            ) from None


def _threads(pid: int) -> Iterator[str]:
    """What the threads of a process, and of its children, are waiting for."""
    with contextlib.suppress(OSError):  # one that has ended meanwhile
        for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
            name, waits_in = ((task / file).read_text().strip() for file in ("comm", "wchan"))
            yield f"thread {task.name} of {pid}: {name}, {waits_in}"
            for child in (task / "children").read_text().split():
                yield from _threads(int(child))


def attach(
    pid: int, *options: str, environ: Mapping[str, str] | None = None, export: Path | None = None
) -> AgentProcess:
    """The agent, attached to a process; spans to a file if one is given."""
    exports = ["--export", f"json:{export}"] if export else []
    return AgentProcess(["attach", *exports, *options, "--pid", str(pid)], environ)


def run(
    command: Sequence[str],
    *options: str,
    environ: Mapping[str, str] | None = None,
    export: Path | None = None,
) -> AgentProcess:
    """The agent, which starts a service; spans to a file if one is given."""
    exports = ["--export", f"json:{export}"] if export else []
    return AgentProcess(["run", *exports, *options, "--", *command], environ)
