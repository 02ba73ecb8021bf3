"""A service under the agent, with one OTLP receiver for the spans of both."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.support.agent import AgentProcess, attach, run
from tests.support.client import Connection, Response
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.support.services import Service, binary
from tests.support.traces import manual_spans, server_spans, wrong

How = Literal["run", "attach"]

ROOTS_DROPPED = "manual roots were not sampled by the service: their request is"
ROOTS_UNSAMPLED = "manual roots were left alone: their request is not sampled"

# Both exporters send soon: tests wait for what comes.
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_BSP_MAX_QUEUE_SIZE": "100000"}


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of one request; ``manual`` by name."""

    number: int
    response: Response
    server: ReceivedSpan
    manual: Mapping[str, ReceivedSpan]


class Traced:
    """Service, agent and receiver, for the time of a ``with`` block.

    What ``see`` was told to expect is looked at once more at the end, when both exporters have sent
    all they had: nothing may have come on top of it, nothing may be wrong (``traces.wrong``), and the
    agent must have said just what ``says`` holds (fragments of lines), besides that it was ready.
    ``executable`` is for one that is built in another way than the rest.
    """

    def __init__(
        self,
        service: str,
        *arguments: str,
        profile: str = "release",
        executable: Path | None = None,
        how: How = "run",
        options: Sequence[str] = ("--write", "stop"),
        environ: Mapping[str, str] | None = None,
        agent_environ: Mapping[str, str] | None = None,
        says: Sequence[str] = (),
        grpc: bool = False,
    ) -> None:
        self._executable = executable or binary(service, profile)
        self._arguments = arguments
        self._how = how
        self._options = options
        self._environ = {**SOON, **(environ or {})}
        self._agent_environ = agent_environ or {}
        self._says = list(says)
        self._roots_dropped = 0
        self._grpc = grpc
        self._numbers = iter(range(1, 1_000_000))
        self._expected: list[tuple[int, str, int, Counter[str]]] = []
        self._stack = contextlib.ExitStack()
        self._finished = False
        self.receiver = OtlpReceiver()
        self.service: Service | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.receiver)
            environ = {**self._environ, "OTEL_EXPORTER_OTLP_ENDPOINT": self.receiver.http_endpoint}
            if self._grpc:
                environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = self.receiver.grpc_endpoint
                environ["OTEL_EXPORTER_OTLP_PROTOCOL"] = "grpc"
            agent_environ = {**environ, **self._agent_environ}
            options = ("--export", "otlp", *self._options)
            command = [str(self._executable), *self._arguments]
            if self._how == "run":
                self.agent: AgentProcess = stack.enter_context(run(command, *options, environ=agent_environ))
                self.address = self.agent.service_address
                self.pid = self.agent.service_pid
            else:
                self.service = stack.enter_context(Service(self._executable, self._arguments, environ))
                self.address, self.pid = self.service.address, self.service.pid
                self._before_attach()
                self.agent = stack.enter_context(attach(self.pid, *options, environ=agent_environ))
            self._stack = stack.pop_all()
        return self

    def _before_attach(self) -> None:
        """For a test that needs something to be open when the agent comes."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is None:
                self.finish()

    @property
    def spans(self) -> list[ReceivedSpan]:
        """All that the receiver got until now."""
        return self.receiver.spans

    def next_number(self) -> int:
        """A number that no request had."""
        return next(self._numbers)

    def see(
        self,
        target: str,
        *names: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        connection: Connection | None = None,
        status: int = 200,
    ) -> Seen:
        """Sends a request; returns what came of it once the server span and manual spans ``names`` are there.

        ``{n}`` in the target becomes the request's number.
        """
        number = self.next_number()
        target = target.format(n=number)
        with contextlib.ExitStack() as stack:
            if connection is None:
                connection = stack.enter_context(Connection(self.address))
            response = connection.request(method, target, headers, body)
            assert response.status == status, response
            server, manual = self.expect(number, target.partition("?")[0], *names)
        return Seen(number, response, server, manual)

    def expect(
        self, number: int, path: str, *names: str, timeout: float = 20.0
    ) -> tuple[ReceivedSpan, Mapping[str, ReceivedSpan]]:
        """The server span of a path and the manual spans of a number, exactly these, once they came."""
        self._expected.append((number, path, 1, Counter(names)))
        spans = self.receiver.wait_for(
            lambda spans: server_spans(spans, path) and len(manual_spans(spans, number)) >= len(names),
            timeout,
        )
        manual = {span.name: span for span in manual_spans(spans, number)}
        assert sorted(manual) == sorted(names)
        (server,) = server_spans(spans, path)
        return server, manual

    def expect_said(self, fragment: str) -> None:
        """The agent must say one line more, when it ends, that holds this."""
        self._says.append(fragment)

    def expect_dropped_roots(self, count: int) -> None:
        """In sampled requests the service's sampler drops so many roots more: the agent must count them."""
        self._roots_dropped += count

    def expect_manual_only(self, number: int, path: str, *names: str) -> Mapping[str, ReceivedSpan]:
        """The manual spans of a number, once they came; a server span of the path must never come."""
        self._expected.append((number, path, 0, Counter(names)))
        spans = self.receiver.wait_for(lambda spans: len(manual_spans(spans, number)) >= len(names))
        return {span.name: span for span in manual_spans(spans, number)}

    def finish(self) -> str:
        """Ends agent and service and checks all that came; returns what the agent said."""
        if self._finished:
            return self.agent.messages.text
        self._finished = True
        code = self.agent.stop()
        if self.service is not None:
            assert self.service.stop() == 0
        messages = self.agent.messages.join()
        assert code == 0, messages
        assert not wrong(self.spans)
        for number, path, servers, names in self._expected:
            assert len(server_spans(self.spans, path)) == servers, path
            assert Counter(span.name for span in manual_spans(self.spans, number)) == names, path
        self._check_messages(messages)
        return messages

    def _check_messages(self, messages: str) -> None:
        # A service's own messages, of its panics say, are on the same standard error.
        lines = [
            line
            for line in messages.splitlines()
            if line.startswith("spanweld: ") and " ready (pid " not in line
        ]
        if self.service is not None:
            lines.remove("spanweld: detached")
        dropped = [f"{self._roots_dropped} {ROOTS_DROPPED}"] if self._roots_dropped else []
        for fragment in (*self._says, *dropped):
            said = [line for line in lines if fragment in line]
            assert len(said) == 1, f"{len(said)} lines with {fragment!r} in:\n{messages}"
            lines.remove(said[0])
        assert not lines, messages
