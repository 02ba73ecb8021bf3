"""The service by hand, without tokio: every system call that reads or writes, and threads as task keys."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import islice, product
from types import TracebackType

import pytest

from tests.support.agent import AgentProcess
from tests.support.client import Connection, head, load
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.support.services import Service, binary
from tests.support.traced import SOON, Traced
from tests.support.traces import assert_child, assert_left_alone, manual_spans, server_spans, wrong

pytestmark = [pytest.mark.root]

INPUTS = ("read", "readv", "recvfrom", "recvmsg")
OUTPUTS = ("write", "writev", "sendto", "sendmsg", "sendfile")
CALLS = [("--in", reads, "--out", writes) for reads, writes in product(INPUTS, OUTPUTS)]
PLAIN = CALLS[0]
# --dup: the connection outlives the descriptor that accept4 returned.
OTHERS = [("--peek",), ("--dup",), ("--peek", "--dup")]


class Many:
    """A service for each choice of options, all under one agent, with one receiver."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self._numbers = iter(range(1, 1_000_000))
        self._sent: list[int] = []

    def __enter__(self) -> Many:
        with contextlib.ExitStack() as stack:
            self.receiver = stack.enter_context(OtlpReceiver())
            environ = {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": self.receiver.http_endpoint}
            executable = binary("sockets", "release")
            self.services = {
                options: stack.enter_context(Service(executable, ["--mode", self.mode, *options], environ))
                for options in (*CALLS, *OTHERS)
            }
            pids = [str(service.pid) for service in self.services.values()]
            arguments = ["attach", "--export", "otlp", "--write", "stop"]
            for pid in pids:
                arguments += ["--pid", pid]
            self.agent = stack.enter_context(AgentProcess(arguments, environ))
            for pid in pids:
                self.agent.messages.wait_for(f" ready (pid {pid},")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if error is None:
                self._finish()

    def _finish(self) -> None:
        assert self.agent.stop() == 0
        messages = self.agent.messages.join()
        assert len(messages.splitlines()) == len(self.services) + 1, messages  # and "detached"
        for service in self.services.values():
            assert service.stop() == 0
        spans = self.receiver.spans
        assert not wrong(spans)
        for number in self._sent:
            assert len(server_spans(spans, f"/n/{number}")) == len(manual_spans(spans, number)) == 1

    def numbers(self, count: int) -> list[int]:
        """So many that no request had."""
        taken = list(islice(self._numbers, count))
        self._sent += taken
        return taken

    def spans_of(self, numbers: Sequence[int]) -> list[tuple[ReceivedSpan, ReceivedSpan]]:
        """Server span and manual root of each number, once all are there."""
        spans = self.receiver.wait_for(
            lambda spans: all(
                server_spans(spans, f"/n/{number}") and manual_spans(spans, number) for number in numbers
            )
        )
        return [
            (server_spans(spans, f"/n/{number}")[0], manual_spans(spans, number)[0]) for number in numbers
        ]


@pytest.fixture(scope="module", params=["thread", "epoll"])
def many(request: pytest.FixtureRequest) -> Iterator[Many]:
    with Many(request.param) as entered:
        yield entered


@pytest.mark.parametrize("options", [*CALLS, *OTHERS], ids=" ".join)
def test_every_system_call(many: Many, options: tuple[str, ...]) -> None:
    service = many.services[options]
    numbers = many.numbers(12)
    with Connection(service.address) as connection:
        for number in numbers[:4]:
            assert connection.request("GET", f"/n/{number}").body == f"{number}\n".encode()
        # The first buffer of readv and recvmsg ends in the middle of a request line.
        connection.send_in_pieces(
            (b"GET /n", f"/{numbers[4]} HTTP/1.1\r\n".encode(), b"Host: x\r\n\r", b"\n")
        )
        assert connection.read_response().status == 200
        assert connection.request("POST", f"/n/{numbers[5]}", body=b"x" * 50_000).status == 200
    # Descriptors' numbers are used again.
    assert not load(service.address, numbers[6:], 3, lambda number: f"/n/{number}").failures
    with Connection(service.address) as connection:
        assert connection.request("GET", "/interrupted").body == b"0\n"
    for number, (server, work) in zip(numbers, many.spans_of(numbers), strict=True):
        assert server.resource["process.pid"] == service.pid
        if many.mode == "epoll" and number == numbers[5]:
            # Its body takes several reads: the thread waited for events between head and work.
            assert_left_alone(work, many.receiver.spans)
        else:
            assert_child(work, server)


@pytest.mark.parametrize("count", [2, 8, 16])
def test_pipelined_requests(many: Many, count: int) -> None:
    """All heads come in one read; each becomes active when the answer before it is complete."""
    numbers = many.numbers(count)
    with Connection(many.services[PLAIN].address) as connection:
        connection.send(b"".join(head("GET", f"/n/{number}") for number in numbers))
        for number in numbers:
            assert connection.read_response().body == f"{number}\n".encode()
        seen = many.spans_of(numbers)
    for server, work in seen:
        assert_child(work, server)
    assert len({server.trace_id for server, _ in seen}) == count


def test_pipelined_requests_with_a_body_and_a_head_cut_in_two(many: Many) -> None:
    numbers = many.numbers(3)
    data = head("POST", f"/n/{numbers[0]}", "Content-Length: 5") + b"GET /"
    data += head("GET", f"/n/{numbers[1]}") + head("GET", f"/n/{numbers[2]}")
    with Connection(many.services[PLAIN].address) as connection:
        connection.send_in_pieces((data[:-10], data[-10:]))
        for number in numbers:
            assert connection.read_response().body == f"{number}\n".encode()
    for server, work in many.spans_of(numbers):
        assert_child(work, server)


def test_connections_in_turn(many: Many) -> None:
    """Heads in pieces, those of several connections mixed: each root gets its own request."""
    with contextlib.ExitStack() as stack:
        address = many.services[PLAIN].address
        connections = [stack.enter_context(Connection(address)) for _ in range(6)]
        for _ in range(3):
            numbers = many.numbers(len(connections))
            for connection in connections:
                connection.send_in_pieces([b"GET "])
            for connection, number in reversed(list(zip(connections, numbers, strict=True))):
                connection.send_in_pieces([f"/n/{number} HTTP/1.1\r\nHost:".encode()])
            for connection in connections:
                connection.send(b" x\r\n\r\n")
            for connection, number in zip(connections, numbers, strict=True):
                assert connection.read_response().body == f"{number}\n".encode()
            for server, work in many.spans_of(numbers):
                assert_child(work, server)


def test_a_request_that_waits_while_another_is_handled(many: Many) -> None:
    """By a thread's key nothing tells whose the work is, after epoll: left alone, never wrong."""
    with contextlib.ExitStack() as stack:
        address = many.services[PLAIN].address
        slow, quick = (stack.enter_context(Connection(address)) for _ in range(2))
        (waits,) = many.numbers(1)
        slow.send_in_pieces([head("POST", f"/n/{waits}", "Content-Length: 4") + b"ab"])
        for number in many.numbers(3):
            assert quick.request("GET", f"/n/{number}").status == 200
            ((server, work),) = many.spans_of([number])
            assert_child(work, server)
        slow.send(b"cd")
        assert slow.read_response().status == 200
    ((server, work),) = many.spans_of([waits])
    assert server.attributes["http.response.status_code"] == 200
    if many.mode == "thread":
        assert_child(work, server)
    else:
        assert_left_alone(work, many.receiver.spans)


def test_100_continue(many: Many) -> None:
    with Connection(many.services[PLAIN].address) as connection:
        for number in many.numbers(2):
            connection.send(head("POST", f"/n/{number}", "Content-Length: 3", "Expect: 100-continue"))
            assert connection.read_response().status == 100
            connection.send(b"abc")
            assert connection.read_response().status == 200
            ((server, work),) = many.spans_of([number])
            assert server.attributes["http.response.status_code"] == 200
            if many.mode == "thread":
                assert_child(work, server)
            else:  # the thread has waited for events meanwhile
                assert_left_alone(work, many.receiver.spans)


def test_threads_that_block_the_signal_are_left_alone() -> None:
    """The stop writer needs SIGURG: such roots are counted, and nothing is interrupted."""
    says = ["4 manual roots were left alone: their thread blocks SIGURG"]
    with (
        Traced("sockets", "--block-sigurg", says=says) as sockets,
        Connection(sockets.address) as connection,
    ):
        for _ in range(4):
            seen = sockets.see("/n/{n}", "work", connection=connection)
            assert_left_alone(seen.manual["work"], sockets.spans)
        assert connection.request("GET", "/interrupted").body == b"0\n"
