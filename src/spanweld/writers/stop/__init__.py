"""The stop writer: a thread stops at a probe, a small C tracer writes, the thread goes on."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path

from spanweld.errors import HostError, TargetError
from spanweld.model import Pid

TRACER = Path(__file__).parent.parent / "bin" / "spanweld-tracer"
EXIT_OTHER_TRACER = 3


class TracerEvent(Enum):
    """First word of a line that the tracer writes; ENDED is the end of its output."""

    READY = "ready"
    OTHER_TRACER = "other-tracer"
    EXEC = "exec"
    GONE = "gone"
    FAILED = "failed"
    NOTE = "note"
    COUNTS = "counts"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class TracerMessage:
    """One line of the tracer's: what happened, and the rest of the line."""

    event: TracerEvent
    text: str = ""


@dataclass(frozen=True, slots=True)
class TracerCounts:
    """What the tracer did in its life, in numbers of threads, requests, signals and system calls.

    ``requests`` = ``served`` + ``stale`` + ``failed`` + ``refused``. ``early`` of those served came at
    another signal's stop. ``coalesced`` requests shared their SIGURG with a genuine one, which was
    delivered. ``restarted`` system calls had been interrupted by a signal that the target ignores.
    """

    threads: int = 0
    requests: int = 0
    served: int = 0
    early: int = 0
    stale: int = 0
    failed: int = 0
    refused: int = 0
    coalesced: int = 0
    signals: int = 0
    restarted: int = 0


class StopTracer:
    """The tracer process of one target.

    Contract: ``start`` from the agent's main thread (the tracer ends with the thread that started it),
    ``wait_ready`` before a probe may ask; take the probes off before ``stop``. A probe asks only in a
    thread whose ``task->parent->tgid`` is ``pid`` and that does not block SIGURG. In an epoll loop:
    register ``fileno()``, call ``poll()`` when it is readable, until a message is ENDED.
    """

    def __init__(self, target: Pid, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._target = target
        self._process = process
        self._fd = process.stdout.fileno()
        self._rest = b""
        self._unread: list[TracerMessage] = []
        self._ended = False
        self._counts: TracerCounts | None = None
        os.set_blocking(self._fd, False)

    @classmethod
    def start(
        cls, target: Pid, requests_map_fd: int, *, expect_exec: bool = False, tracer: Path = TRACER
    ) -> StopTracer:
        """Start the tracer, which begins at once to seize the target's threads.

        ``expect_exec``: the target is a child that waits to exec its program; that exec is followed.
        """
        command = [str(tracer), str(os.getpid()), str(target), str(requests_map_fd)]
        if expect_exec:
            command.append("--expect-exec")
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                pass_fds=(requests_map_fd,),
                start_new_session=True,  # a terminal's Ctrl-C is not for the tracer
                cwd="/",
                env={},
            )
        except OSError as error:
            raise HostError(
                f"the stop writer's tracer {tracer} cannot be started: {error.strerror}",
                "Build it with `make build`, or use `--write off`.",
            ) from error
        return cls(target, process)

    @property
    def pid(self) -> Pid:
        """Process id (``tgid``) of the tracer."""
        return Pid(self._process.pid)

    @property
    def counts(self) -> TracerCounts | None:
        """What the tracer did; None until it has ended, and if it was killed."""
        return self._counts

    def fileno(self) -> int:
        """Readable when ``poll`` has something to return, and when the tracer has ended."""
        return self._fd

    def wait_ready(self, timeout: float = 5.0) -> int:
        """Wait until every thread of the target is seized; return their number.

        Raises TargetError if another tracer is there, or the target is gone or cannot be traced; then,
        and after ``timeout`` seconds, nothing stays seized.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            select.select([self._fd], [], [], left)
            messages = self.poll()
            for index, message in enumerate(messages):
                if message.event is TracerEvent.READY:
                    self._unread = messages[index + 1 :]
                    return int(message.text)
                if message.event is not TracerEvent.NOTE:
                    self.kill()
                    raise self._not_ready(message)
        self.kill()
        raise TargetError(
            f"process {self._target} was not seized within {timeout:g} s", "Try again, or use `--write off`."
        )

    def poll(self) -> list[TracerMessage]:
        """What the tracer has said since; never blocks. ENDED comes once, as the last message."""
        messages, self._unread = self._unread, []
        while not self._ended:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                break
            lines = (self._rest + data).split(b"\n")
            self._rest = lines.pop()
            messages += [self._parse(line.decode(errors="replace")) for line in lines]
            if not data:
                self._ended = True
                code = self._process.wait()
                messages.append(TracerMessage(TracerEvent.ENDED, str(code)))
        return messages

    def stop(self, timeout: float = 2.0) -> TracerCounts | None:
        """Let the tracer serve what is under way and end, which takes up to 0.1 s; return its counts.

        The probes must be off. Messages that were not polled yet are still there afterwards. A tracer
        that does not end in ``timeout`` seconds is killed; the target runs on then, too.
        """
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + timeout
        messages: list[TracerMessage] = []
        while not self._ended and (left := deadline - time.monotonic()) > 0:
            select.select([self._fd], [], [], left)
            messages += self.poll()
        self._unread = messages
        self.kill()
        return self._counts

    def kill(self) -> None:
        """End the tracer at once, if it still runs; the kernel lets the target go on."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill the tracer if it still runs, and close its output."""
        self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _parse(self, line: str) -> TracerMessage:
        word, _, text = line.partition(" ")
        message = TracerMessage(TracerEvent(word), text)
        if message.event is TracerEvent.COUNTS:
            values = dict(item.split("=", 1) for item in text.split())
            self._counts = TracerCounts(**{f.name: int(values[f.name]) for f in fields(TracerCounts)})
        return message

    def _not_ready(self, message: TracerMessage) -> TargetError:
        if message.event is TracerEvent.OTHER_TRACER:
            return TargetError(
                f"process {self._target} is already traced by process {message.text}{_name(message.text)}",
                "End that tracer (gdb, strace or another agent), or use `--write off`.",
            )
        if message.event is TracerEvent.FAILED:
            return TargetError(
                f"process {self._target} cannot be traced: {message.text}",
                "Run as root, with CAP_SYS_PTRACE, or use `--write off`.",
            )
        if message.event is TracerEvent.ENDED:
            return TargetError(
                f"the tracer of process {self._target} ended with status {message.text}",
                "Use `--write off`.",
            )
        return TargetError(f"process {self._target} ended before it was traced", "Start it again.")


def _name(pid: str) -> str:
    try:
        return f" ({Path('/proc', pid, 'comm').read_text().strip()})"
    except OSError:
        return ""
