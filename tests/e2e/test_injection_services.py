"""Headers in the requests of a real service: `users` calls a store, which is this process."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.agent import attach
from tests.support.client import Connection, load
from tests.support.otlp_receiver import OtlpReceiver
from tests.support.remains import KernelObjects, assert_untouched
from tests.support.services import Service, binary
from tests.support.traced import SOON, How, Traced

pytestmark = [pytest.mark.root]

CLIENT_KIND = 3


@dataclass
class Store:
    """What the store was sent: of each request the lines of its head, and the size of its body."""

    url: str
    heads: list[list[str]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def headers(self, name: str) -> list[list[str]]:
        """Of each request, the values of a header."""
        return [
            [line.partition(":")[2].strip() for line in head if line.lower().startswith(name + ":")]
            for head in self.heads
        ]


@contextlib.contextmanager
def store() -> Iterator[Store]:
    """A server that keeps connections open."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            size = len(self.rfile.read(int(self.headers["Content-Length"])))
            found.heads.append([f"{name}: {value}" for name, value in self.headers.items()])
            found.sizes.append(size)
            self.send_response(201)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        found = Store(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


def contexts(traced: Traced) -> set[str]:
    """The contexts of the service's client spans, as headers say them."""
    return {f"00-{span.trace_id}-{span.span_id}-01" for span in traced.spans if span.kind == CLIENT_KIND}


@pytest.mark.parametrize("how", ["run", "attach"])
def test_each_request_carries_the_context_of_its_client_span(how: How) -> None:
    with store() as downstream, Traced("users", "--store", downstream.url, how=how) as traced:
        result = load(
            traced.address, range(1, 201), 8, lambda number: f"/api/users/{number}", method="POST", status=201
        )
        assert not result.failures
        carried = downstream.headers("traceparent")
        assert len(carried) == 200
        assert all(len(values) == 1 for values in carried)
        assert len({values[0] for values in carried}) == 200
        traced.receiver.wait_for(lambda _: {values[0] for values in carried} <= contexts(traced))
        assert not any(
            "traceparent" in {name.lower() for name in request.headers}
            for request in traced.receiver.requests
        )


def test_what_a_request_brought_goes_on() -> None:
    """Its trace, and its tracestate and baggage as they came, of any length that is kept."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    cases = [
        ("a=b", "k=v"),
        ("a=b,c=d", ""),
        ("", "k=v;p=1,l=%20"),
        (",".join(f"k{n}={'v' * 50}" for n in range(30)), ",".join(f"k{n}={'v' * 90}" for n in range(80))),
    ]
    with store() as downstream, Traced("users", "--store", downstream.url) as traced:
        for number, (state, baggage) in enumerate(cases, start=1):
            headers = {"traceparent": f"00-{trace}-{number:016x}-01", "tracestate": state, "baggage": baggage}
            with Connection(traced.address) as connection:
                given = {name: value for name, value in headers.items() if value}
                assert connection.request("POST", f"/api/users/{number}", given).status == 201
        assert [values[0][:36] for values in downstream.headers("traceparent")] == [f"00-{trace}-"] * len(
            cases
        )
        assert downstream.headers("tracestate") == [[state] if state else [] for state, _ in cases]
        assert downstream.headers("baggage") == [[baggage] if baggage else [] for _, baggage in cases]


def test_propagators() -> None:
    """Without tracecontext, no headers."""
    with (
        store() as downstream,
        Traced("users", "--store", downstream.url, agent_environ={"OTEL_PROPAGATORS": "b3"}) as traced,
        Connection(traced.address) as connection,
    ):
        assert connection.request("POST", "/api/users/1").status == 201
        assert downstream.headers("traceparent") == [[]]


def test_large_bodies() -> None:
    body = b'"' + b"x" * (1 << 20) + b'"'
    with store() as downstream, Traced("users", "--store", downstream.url) as traced:
        with Connection(traced.address) as connection:
            for number in range(1, 6):
                assert connection.request("POST", f"/api/users/{number}", body=body).status == 201
        assert all(size > len(body) for size in downstream.sizes)
        assert [len(values) for values in downstream.headers("traceparent")] == [1] * 5


def test_off() -> None:
    options = ("--write", "stop", "--inject", "off")
    with store() as downstream, Traced("users", "--store", downstream.url, options=options) as traced:
        with Connection(traced.address) as connection:
            assert connection.request("POST", "/api/users/1").status == 201
        assert downstream.headers("traceparent") == [[]]


def test_older_connections_carry_none_and_that_is_said() -> None:
    with store() as downstream, OtlpReceiver() as receiver:
        environ = {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint}
        with (
            Service(binary("users", "release"), ["--store", downstream.url], environ) as users,
            Connection(users.address) as connection,
        ):
            assert connection.request("POST", "/api/users/1").status == 201
            with attach(users.pid, "--export", "json:/dev/null", environ=environ) as agent:
                objects = KernelObjects.of(agent.process.pid)
                for number in range(2, 5):
                    assert connection.request("POST", f"/api/users/{number}").status == 201
                agent.messages.wait_for("opened before spanweld came carry no headers")
                assert agent.stop() == 0
                messages = agent.messages.join()
            assert messages.count("opened before") == 1
            # Some may be counted as those whose cause is not known.
            assert "requests out got no headers" in messages or "requests out have no parent" in messages
            assert_untouched(users.pid, users.executable, objects)
            assert downstream.headers("traceparent") == [[]] * 4


@pytest.mark.parametrize("killed", [True, False])
def test_after_the_agent(killed: bool) -> None:
    """A connection that was given headers goes on without."""
    with store() as downstream, OtlpReceiver() as receiver:
        environ = {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint}
        with (
            Service(binary("users", "release"), ["--store", downstream.url], environ) as users,
            Connection(users.address) as connection,
        ):
            # Of one that is killed, probes inside the target would leave their mappings, and so the maps.
            with attach(users.pid, "--write", "stop", "--export", "json:/dev/null", environ=environ) as agent:
                objects = KernelObjects.of(agent.process.pid)
                assert connection.request("POST", "/api/users/1").status == 201
                if killed:
                    agent.process.kill()
                    agent.process.wait()
                else:
                    assert agent.stop() == 0
            assert_untouched(users.pid, users.executable, objects)
            for number in range(2, 5):
                assert connection.request("POST", f"/api/users/{number}").status == 201
            assert [len(values) for values in downstream.headers("traceparent")] == [1, 0, 0, 0]
            assert users.stop() == 0
