"""The stop writer, as the agent sees it."""

from __future__ import annotations

from spanweld.model import Pid
from spanweld.settings import WriteMode
from spanweld.writers.stop import TRACER, StopTracer, TracerEvent


class StopWriter:
    """Seizes the target's threads, and writes where a probe stops one of them."""

    mode = WriteMode.STOP

    def __init__(self, target: Pid, requests_fd: int, *, expect_exec: bool) -> None:
        self._target = target
        self._requests_fd = requests_fd
        self._expect_exec = expect_exec
        self._tracer: StopTracer | None = None
        self._stopping = False

    @property
    def tracer(self) -> Pid | None:
        """The tracer, from ``start`` on."""
        return self._tracer.pid if self._tracer else None

    def start(self) -> None:
        """Starts the tracer and waits until it has seized every thread."""
        tracer = StopTracer.start(self._target, self._requests_fd, expect_exec=self._expect_exec)
        tracer.wait_ready()
        self._tracer = tracer

    def fileno(self) -> int | None:
        """The tracer's messages."""
        return self._tracer.fileno() if self._tracer else None

    def poll(self) -> list[str]:
        """What happened; an empty text when no adoption is possible any more."""
        said: list[str] = []
        for message in self._tracer.poll() if self._tracer else []:
            if message.event is TracerEvent.EXEC:
                said += ["the service has executed another program: its manual spans are left alone", ""]
            elif message.event is TracerEvent.ENDED and not self._stopping:
                said += [
                    f"the tracer has ended (status {message.text}): manual spans are left alone; "
                    "the service and its automatic spans go on",
                    "",
                ]
            elif message.event is TracerEvent.NOTE:
                said.append(message.text)
            elif message.event is TracerEvent.GONE:
                self._stopping = True
        return said

    def stop(self) -> str:
        """Lets the target go; what the tracer could not do is returned."""
        if self._tracer is None:
            return ""
        self._stopping = True
        counts = self._tracer.stop()
        self._tracer.close()
        self._tracer = None
        if counts is None or not (counts.stale or counts.failed or counts.refused):
            return ""
        return (
            f"the tracer carried out {counts.served} of {counts.requests} writes "
            f"(too late {counts.stale}, failed {counts.failed}, refused {counts.refused})"
        )


def why_not() -> str:
    """Why the stop writer cannot work, or empty."""
    return "" if TRACER.exists() else f"its tracer is missing at {TRACER}: build it with `make build`"
