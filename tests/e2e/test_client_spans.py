"""Client spans: what they are, whose they are, and what gets none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import Connection, load
from tests.support.otlp_receiver import ReceivedSpan
from tests.support.peer import Peer
from tests.support.services import Service, binary
from tests.support.traced import Traced
from tests.support.traces import ERROR, assert_child, client_spans, manual_spans, server_spans

pytestmark = [pytest.mark.root]


class Asking:
    """The service by hand, and the peer that it asks."""

    def __init__(self, traced: Traced, peer: Peer) -> None:
        self.traced = traced
        self.peer = peer

    def ask(self, what: str, connection: Connection | None = None, status: int = 200) -> ReceivedSpan:
        """The client span of a request for ``what``, which is in its place in the trace."""
        seen = self.traced.see(
            f"/ask/{what}/{{n}}", "work", "meanwhile", connection=connection, status=status
        )
        client = asked(self.traced, f"/{what}/{seen.number}")
        assert_child(seen.manual["work"], seen.server)
        assert_child(client, seen.manual["work"])
        # What the task did before the answer came is below the request.
        assert_child(seen.manual["meanwhile"], client)
        assert seen.server.start_ns < client.start_ns < client.end_ns < seen.server.end_ns
        return client


def asked(traced: Traced, path: str) -> ReceivedSpan:
    """The one client span of a path, once it came."""
    (client,) = client_spans(traced.receiver.wait_for(lambda spans: client_spans(spans, path)), path)
    return client


@contextlib.contextmanager
def asking(*arguments: str, path: Path | None = None) -> Iterator[Asking]:
    """The service asks a peer, at a Unix socket if ``path`` says where; its own sockets block."""
    with Peer(path) as peer, Traced("sockets", "--peer", peer.address, *arguments) as traced:
        traced.expect_said("requests out got no headers")
        yield Asking(traced, peer)


@pytest.fixture(scope="module")
def sockets() -> Iterator[Asking]:
    with asking() as entered:
        yield entered


def test_a_client_span_follows_the_conventions(sockets: Asking) -> None:
    client = sockets.ask("any")
    number = int(str(client.attributes["url.full"]).rpartition("/")[2])
    assert (client.name, client.kind, client.status_code) == ("GET", 3, 0)
    assert client.attributes == {
        "http.request.method": "GET",
        "url.full": f"http://{sockets.peer.address}/any/{number}",
        "server.address": "127.0.0.1",
        "server.port": sockets.peer.port,
        "network.protocol.version": "1.1",
        "network.peer.address": "127.0.0.1",
        "network.peer.port": sockets.peer.port,
        "http.response.status_code": 200,
    }


@pytest.mark.parametrize(
    ("what", "status", "error"),
    [
        ("head", 200, None),
        ("continue", 201, None),
        ("empty", 204, None),
        ("unchanged", 304, None),
        ("missing", 404, "404"),
        ("broken", 503, "503"),
        ("chunked", 200, None),
        ("until-close", 200, None),
        ("pieces", 200, None),
        ("close", None, "connection_closed"),
        ("half", 200, "connection_closed"),
        ("reset", None, "connection_reset"),
    ],
)
def test_answers_and_failures(sockets: Asking, what: str, status: int | None, error: str | None) -> None:
    failed = error is not None and error.startswith("connection")
    client = sockets.ask(what, status=502 if failed else 200)
    assert client.attributes.get("http.response.status_code") == status
    assert client.attributes.get("error.type") == error
    assert client.status_code == (ERROR if error else 0)
    # The next one is not mistaken for it.
    assert sockets.ask("any").attributes["http.response.status_code"] == 200


def test_it_ends_with_the_head_of_the_answer(sockets: Asking) -> None:
    client = sockets.ask("slow-body")
    assert client.end_ns < sockets.peer.body_sent_ns


def test_requests_one_after_the_other_on_one_connection(sockets: Asking) -> None:
    sockets.ask("any")
    before = sockets.peer.connections
    with Connection(sockets.traced.address) as connection:
        for what in ("any", "missing", "head", "continue", "empty", "any"):
            sockets.ask(what, connection)
    assert sockets.peer.connections == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--in", reads, "--out", writes)
        for reads, writes in (
            ("read", "write"),
            ("readv", "writev"),
            ("recvfrom", "sendto"),
            ("recvmsg", "sendmsg"),
        )
    ]
    + [("--mode", "epoll")],
    ids=" ".join,
)
def test_every_system_call(arguments: tuple[str, ...]) -> None:
    with asking(*arguments) as sockets:
        for what in ("any", "continue", "close", "any"):
            sockets.ask(what, status=502 if what == "close" else 200)


def test_a_unix_socket(tmp_path: Path) -> None:
    with asking(path=tmp_path / "peer") as sockets:
        client = sockets.ask("any")
        assert client.attributes["network.transport"] == "unix"
        assert client.attributes["server.address"] == "localhost"
        assert not {"network.peer.address", "server.port"} & client.attributes.keys()


def test_a_connection_that_is_older_than_the_agent() -> None:
    with Peer() as peer, Older(peer) as traced:
        sockets = Asking(traced, peer)
        traced.expect_said("requests on connections that it opened before spanweld came carry no headers")
        traced.expect_said("1 requests out got no headers")
        assert peer.connections == 1
        sockets.ask("any")
        assert peer.connections == 1


class Older(Traced):
    """The service asked its peer once before the agent came."""

    def __init__(self, peer: Peer) -> None:
        super().__init__("sockets", "--peer", peer.address, how="attach")

    def _before_attach(self) -> None:
        with Connection(self.address) as connection:
            assert connection.request("GET", f"/ask/any/{self.next_number()}").status == 200


def test_an_asynchronous_client_in_the_task_of_the_handler() -> None:
    """Two requests at once are siblings; what comes after them is not below them."""
    with Peer() as peer, Traced("lab") as lab:
        for _ in range(5):
            seen = lab.see(f"/ask/{{n}}?to={peer.address}", "before", "after")
            first, second, last = (asked(lab, f"/{name}/{seen.number}") for name in "abc")
            for child in (seen.manual["before"], first, second, seen.manual["after"]):
                assert_child(child, seen.server)
            assert_child(last, seen.manual["after"])


def test_a_pooled_client_of_hyper() -> None:
    """Each connection is a task of its own, which writes for others: the right one is known, or counted."""
    with Service(binary("store", "release")) as store, Traced("users", "--store", store.url) as users:
        numbers = range(1_000, 1_100)
        result = load(
            users.address, numbers, 4, lambda number: f"/api/users/{number}", method="POST", status=201
        )
        assert not result.failures
        spans = users.receiver.wait_for(
            lambda spans: (
                len(server_spans(spans)) == len(client_spans(spans)) == len(numbers)
                and len(manual_spans(spans)) == 3 * len(numbers)
            )
        )
        saving = {span.span_id for span in manual_spans(spans) if span.name == "save_to_database"}
        for client in client_spans(spans):
            assert client.attributes["url.full"] == f"{store.url}/store"
            assert client.attributes["http.response.status_code"] == 201
            assert not client.parent_span_id or client.parent_span_id in saving
        known = [client.parent_span_id for client in client_spans(spans) if client.parent_span_id]
        assert len(set(known)) == len(known) >= 0.9 * len(numbers)
        if len(known) < len(numbers):
            users.expect_said(f"{len(numbers) - len(known)} requests out have no parent")


@pytest.mark.parametrize("grpc", [False, True], ids=["http", "grpc"])
def test_the_services_own_exporter_is_not_traced(grpc: bool) -> None:
    """Nor is it said of gRPC that it is not followed."""
    with Traced("lab", "--otlp-protocol", "grpc" if grpc else "http", grpc=grpc) as lab:
        for _ in range(3):
            lab.see("/nested/{n}", "root", "child", "grandchild")
        lab.finish()
        assert not client_spans(lab.spans)
