"""Server spans: attributes, remote parents, and every way in which requests and responses come and go.

The lab is run once with two excluded paths, and many tests use it; what must not leave a span has a
path of its own, and is looked for at the end (``Traced.finish``).
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import AgentProcess
from tests.support.client import Connection, get, head
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.support.services import Service, binary
from tests.support.traced import SOON, Traced
from tests.support.traces import (
    ERROR,
    HAS_IS_REMOTE,
    IS_REMOTE,
    SERVER_KIND,
    assert_child,
    assert_left_alone,
    manual_spans,
    server_spans,
    wrong,
)

pytestmark = [pytest.mark.root]

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
OK = f"00-{TRACE}-{PARENT}-01"
EXCLUDED = ("/healthz", "/status/1000000", "/drop/*")


@pytest.fixture(scope="module")
def lab() -> Iterator[Traced]:
    options = ["--write", "stop"]
    for path in EXCLUDED:
        options += ["--exclude-path", path]
    with Traced("lab", options=options) as traced:
        yield traced


def attributes_of(span: ReceivedSpan, *names: str) -> tuple[object, ...]:
    return tuple(span.attributes.get(name) for name in names)


# Attributes


def test_the_attributes_of_a_request(lab: Traced) -> None:
    """https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span"""
    with Connection(lab.address) as connection:
        headers = {"User-Agent": "tests/1.0 (by hand)"}
        seen = lab.see("/roots/{n}?a=1&b=%20", "a", "b", "c", headers=headers, connection=connection)
        port = connection.port
    host, _, own_port = lab.address.rpartition(":")
    server = seen.server
    assert (server.name, server.kind, server.status_code) == ("GET", SERVER_KIND, 0)
    assert (server.parent_span_id, server.links) == ("", ())
    wanted = {
        "http.request.method": "GET",
        "url.path": f"/roots/{seen.number}",
        "url.query": "a=1&b=%20",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "server.address": "test",
        "client.address": "127.0.0.1",
        "network.peer.address": "127.0.0.1",
        "network.peer.port": port,
        "network.local.address": host,
        "network.local.port": int(own_port),
        "network.protocol.version": "1.1",
        "user_agent.original": "tests/1.0 (by hand)",
    }
    assert {name: server.attributes.get(name) for name in wanted} == wanted
    assert "error.type" not in server.attributes
    assert server.start_ns < server.end_ns
    for root in seen.manual.values():
        assert_child(root, server)
        # The agent's clock and the service's are one: within a millisecond or two.
        assert server.start_ns - 2_000_000 <= root.start_ns
        assert root.end_ns <= server.end_ns + 2_000_000


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        ("example.test:8081", "example.test", 8081),
        ("[2001:db8::1]:8082", "2001:db8::1", 8082),
        ("192.0.2.7:8083", "192.0.2.7", 8083),
    ],
)
def test_the_address_that_the_client_meant(lab: Traced, host: str, address: str, port: int) -> None:
    number = lab.next_number()
    with Connection(lab.address) as connection:
        connection.send(head("GET", f"/none/{number}", host=host))
        assert connection.read_response().status == 200
    server, _ = lab.expect(number, f"/none/{number}")
    assert attributes_of(server, "server.address", "server.port") == (address, port)


def test_http_1_0_without_a_host(lab: Traced) -> None:
    """The answer to such a request, of unknown length, lasts until the connection is closed."""
    number = lab.next_number()
    with Connection(lab.address) as connection:
        connection.send(head("GET", f"/stream/{number}", version="1.0", host=None))
        response = connection.read_response()
    assert "content-length" not in response.headers
    assert "transfer-encoding" not in response.headers
    assert response.body.endswith(b"chunk 4\n")
    server, manual = lab.expect(number, f"/stream/{number}", "root")
    assert_child(manual["root"], server)
    host, _, port = lab.address.rpartition(":")
    assert attributes_of(server, "network.protocol.version", "server.address", "server.port") == (
        *("1.0", host),
        int(port),
    )
    assert attributes_of(server, "http.response.status_code", "error.type") == (200, None)
    assert manual["root"].end_ns <= server.end_ns + 2_000_000


def test_credentials_in_a_query_are_redacted(lab: Traced) -> None:
    query = "x=1&sig=secret&AWSAccessKeyId=secret&Signature=secret&X-Goog-Signature=secret&signal=2"
    seen = lab.see("/none/{n}?" + query)
    assert seen.server.attributes["url.query"] == (
        "x=1&sig=REDACTED&AWSAccessKeyId=REDACTED&Signature=REDACTED&X-Goog-Signature=REDACTED&signal=2"
    )


@pytest.mark.parametrize(("code", "fails"), [(404, False), (499, False), (500, True), (503, True)])
def test_error_statuses(lab: Traced, code: int, fails: bool) -> None:
    seen = lab.see(f"/status-code/{{n}}?code={code}", "root", status=code)
    server = seen.server
    assert_child(seen.manual["root"], server)
    assert server.attributes["http.response.status_code"] == code
    assert server.attributes.get("error.type") == (str(code) if fails else None)
    assert server.status_code == (ERROR if fails else 0)
    assert seen.manual["root"].status_code == 0


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_methods(lab: Traced, method: str) -> None:
    seen = lab.see("/none/{n}", method=method, status=405)
    assert (seen.server.name, seen.server.attributes["http.request.method"]) == (method, method)


def test_a_method_of_the_clients_own(lab: Traced) -> None:
    seen = lab.see("/none/{n}", method="BREW", status=405)
    assert seen.server.name == "HTTP"
    assert attributes_of(seen.server, "http.request.method", "http.request.method_original") == (
        "_OTHER",
        "BREW",
    )


def test_the_resource_is_the_service(lab: Traced) -> None:
    seen = lab.see("/none/{n}")
    assert seen.server.resource["service.name"] == "lab"
    assert seen.server.resource["process.pid"] == lab.pid


# Remote parents


@pytest.mark.parametrize(
    "header",
    [OK, f"00-{TRACE}-{PARENT}-03", f"01-{TRACE}-{PARENT}-01-what-comes-later", f"cc-{TRACE}-{PARENT}-01"],
)
def test_a_remote_parent(lab: Traced, header: str) -> None:
    seen = lab.see("/nested/{n}", "root", "child", "grandchild", headers={"TraceParent": header})
    assert (seen.server.trace_id, seen.server.parent_span_id) == (TRACE, PARENT)
    assert seen.server.flags & (HAS_IS_REMOTE | IS_REMOTE) == HAS_IS_REMOTE | IS_REMOTE
    assert_child(seen.manual["root"], seen.server)
    assert_child(seen.manual["child"], seen.manual["root"])


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        OK[:-1],
        OK + "0",
        OK + "-extra",  # version 00 has nothing after its flags
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}g-{PARENT}-01",
        f"00_{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01.later",
    ],
)
def test_what_is_no_traceparent_is_no_parent(lab: Traced, header: str) -> None:
    seen = lab.see("/roots/{n}", "a", "b", "c", headers={"traceparent": header})
    assert seen.server.parent_span_id == ""
    assert seen.server.trace_id not in (TRACE, TRACE.upper(), "0" * 32)
    for root in seen.manual.values():
        assert_child(root, seen.server)


def test_two_traceparents_are_none(lab: Traced) -> None:
    number = lab.next_number()
    with Connection(lab.address) as connection:
        connection.send(head("GET", f"/none/{number}", f"traceparent: {OK}", f"traceparent: {OK}"))
        assert connection.read_response().status == 200
    server, _ = lab.expect(number, f"/none/{number}")
    assert (server.parent_span_id, server.trace_id == TRACE) == ("", False)


# --exclude-path


@pytest.mark.parametrize("target", ["/healthz", "/healthz?deep=1"])
def test_an_excluded_path(lab: Traced, target: str) -> None:
    with Connection(lab.address) as connection:
        assert connection.request("GET", target).status == 200
        seen = lab.see("/roots/{n}", "a", "b", "c", connection=connection)
    for root in seen.manual.values():
        assert_child(root, seen.server)
    assert not server_spans(lab.spans, "/healthz")


@pytest.mark.parametrize(("path", "number"), [("/drop/2000001", 2000001), ("/status/1000000", 1000000)])
def test_manual_roots_of_an_excluded_path_are_left_alone(lab: Traced, path: str, number: int) -> None:
    with Connection(lab.address) as connection:
        assert connection.request("GET", path).status == 200
        manual = lab.expect_manual_only(number, path, "root")
        assert_left_alone(manual["root"], lab.spans)
        # The same task again.
        seen = lab.see("/nested/{n}", "root", "child", "grandchild", connection=connection)
    assert_child(seen.manual["root"], seen.server)


def test_an_excluded_path_is_meant_exactly(lab: Traced) -> None:
    for number in (10000000, 100000):
        path = f"/status/{number}"
        assert get(lab.address, path).status == 200
        server, manual = lab.expect(number, path, "root")
        assert_child(manual["root"], server)


# Messages on a connection


def test_keep_alive(lab: Traced) -> None:
    traces = set()
    with Connection(lab.address) as connection:
        for _ in range(30):
            seen = lab.see("/roots/{n}", "a", "b", "c", connection=connection)
            for root in seen.manual.values():
                assert_child(root, seen.server)
            assert seen.server.attributes["network.peer.port"] == connection.port
            traces.add(seen.server.trace_id)
    assert len(traces) == 30


def test_a_chunked_answer(lab: Traced) -> None:
    """The root is open until the last chunk, after the head of the answer has gone out."""
    with Connection(lab.address) as connection:
        for _ in range(3):
            seen = lab.see("/stream/{n}", "root", connection=connection)
            assert_child(seen.manual["root"], seen.server)
            assert seen.server.end_ns - seen.server.start_ns > 8_000_000


def test_a_chunked_request(lab: Traced) -> None:
    number = lab.next_number()
    with Connection(lab.address) as connection:
        connection.send_in_pieces(
            [
                head("POST", f"/echo/{number}", "Transfer-Encoding: chunked"),
                b"5;extension=1\r\nGET /",
                b"\r\n",
                b"A\r\n HTTP/1.1\r\r\n0",
                b"\r\nTrailer: x\r\n",
                b"\r\n",
            ]
        )
        assert connection.read_response().body == b"GET / HTTP/1.1\r"
        server, manual = lab.expect(number, f"/echo/{number}", "root")
        assert_child(manual["root"], server)
        seen = lab.see("/nested/{n}", "root", "child", "grandchild", connection=connection)
    assert_child(seen.manual["root"], seen.server)


@pytest.mark.parametrize("size", [0, 1, 100, 65_536, 3_000_000])
def test_bodies_of_any_size(lab: Traced, size: int) -> None:
    with Connection(lab.address) as connection:
        body = b"GET /roots/1 HTTP/1.1\r\n\r\n" * (size // 26 + 1)
        seen = lab.see("/echo/{n}", "root", method="POST", body=body[:size], connection=connection)
        assert seen.response.body == body[:size]
        assert_child(seen.manual["root"], seen.server)
        after = lab.see("/roots/{n}", "a", "b", "c", connection=connection)
    assert_child(after.manual["a"], after.server)


def test_answers_without_a_body(lab: Traced) -> None:
    """HEAD, 204 and 304 end with their head, whatever Content-Length says."""
    with Connection(lab.address) as connection:
        for _ in range(2):
            seen = lab.see("/nested/{n}", "root", "child", "grandchild", method="HEAD", connection=connection)
            assert seen.response.headers["content-length"] == str(len("nested"))
            assert_child(seen.manual["root"], seen.server)
            assert seen.server.name == "HEAD"
            for code in (204, 304):
                target = f"/status-code/{{n}}?code={code}"
                seen = lab.see(target, "root", status=code, connection=connection)
                assert_child(seen.manual["root"], seen.server)
                assert seen.server.attributes["http.response.status_code"] == code


def test_100_continue(lab: Traced) -> None:
    with Connection(lab.address) as connection:
        for _ in range(2):
            number = lab.next_number()
            connection.send(head("POST", f"/echo/{number}", "Content-Length: 4", "Expect: 100-continue"))
            assert connection.read_response().status == 100
            connection.send(b"body")
            assert connection.read_response().body == b"body"
            server, manual = lab.expect(number, f"/echo/{number}", "root")
            assert_child(manual["root"], server)
            assert server.attributes["http.response.status_code"] == 200


def test_an_answer_before_the_request_has_ended(lab: Traced) -> None:
    number = lab.next_number()
    with Connection(lab.address) as connection:
        connection.send(head("POST", f"/early/{number}", "Content-Length: 1000000") + b"x" * 1000)
        assert connection.read_response().status == 202
        server, manual = lab.expect(number, f"/early/{number}", "root")
    assert_child(manual["root"], server)
    assert attributes_of(server, "http.response.status_code", "error.type") == (202, None)


def test_pipelined_requests_of_tasks(lab: Traced) -> None:
    with Connection(lab.address) as connection:
        for count in (2, 5, 12):
            numbers = [lab.next_number() for _ in range(count)]
            connection.send(b"".join(head("GET", f"/open-roots/{number}") for number in numbers))
            for _ in numbers:
                assert connection.read_response().status == 200
            for number in numbers:
                server, manual = lab.expect(number, f"/open-roots/{number}", "a", "b", "c")
                assert_child(manual["a"], server)
                assert_child(manual["b"], manual["a"])
                assert_child(manual["c"], manual["a"])


def test_a_websocket(lab: Traced) -> None:
    """The upgrade is the end of the request: what is done for messages belongs to none."""
    number = lab.next_number()
    with Connection(lab.address) as connection:
        key = base64.b64encode(os.urandom(16)).decode()
        connection.send(
            head(
                *("GET", f"/ws/{number}", "Connection: Upgrade", "Upgrade: websocket"),
                *("Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"),
            )
        )
        assert connection.read_response().status == 101
        for text in (b"hello", b"GET / HTTP/1.1\r\n\r\n"):
            # A masked text frame; the mask is zero. RFC 6455, section 5.2
            connection.send(bytes((0x81, 0x80 | len(text))) + bytes(4) + text)
            assert connection.read_exactly(2 + len(text))[2:] == text
    spans = lab.receiver.wait_for(
        lambda spans: len(manual_spans(spans, number)) == 3 and server_spans(spans, f"/ws/{number}")
    )
    (server,) = server_spans(spans, f"/ws/{number}")
    assert attributes_of(server, "http.response.status_code", "error.type") == (101, None)
    names = {"root": 0, "message": 0}
    for span in manual_spans(spans, number):
        names[span.name] += 1
        if span.name == "root":
            assert_child(span, server)
        else:
            assert_left_alone(span, spans)
    assert names == {"root": 1, "message": 2}


def test_a_client_that_closes_in_the_middle(lab: Traced) -> None:
    number = lab.next_number()
    with Connection(lab.address) as connection:
        connection.send_in_pieces([head("GET", f"/slow/{number}?ms=60000")])
    server, manual = lab.expect(number, f"/slow/{number}", "root")
    assert_child(manual["root"], server)
    assert attributes_of(server, "http.response.status_code", "error.type") == (None, "connection_closed")
    assert server.status_code == ERROR


def test_a_client_that_closes_in_the_middle_of_the_answer(lab: Traced) -> None:
    """The answer is larger than the sockets' buffers: it cannot be complete."""
    number = lab.next_number()
    body = b"x" * 30_000_000
    with Connection(lab.address) as connection:
        connection.send(head("POST", f"/echo/{number}", f"Content-Length: {len(body)}") + body)
        connection.read_exactly(100)
    server, manual = lab.expect(number, f"/echo/{number}", "root")
    assert_child(manual["root"], server)
    assert attributes_of(server, "http.response.status_code", "error.type") == (200, "connection_closed")


def test_a_client_that_closes_before_its_head_is_complete(lab: Traced) -> None:
    """There was no request; and a descriptor whose number comes back starts clean."""
    for _ in range(3):
        with Connection(lab.address) as connection:
            connection.send_in_pieces([b"GET /none/77777777 HTTP/1.1\r\nHost: x\r\n"])
        seen = lab.see("/roots/{n}", "a", "b", "c")
        assert_child(seen.manual["a"], seen.server)
    assert not server_spans(lab.spans, "/none/77777777")


@pytest.mark.parametrize("size", [1, 3, 24, 25])
def test_heads_in_pieces(lab: Traced, size: int) -> None:
    number = lab.next_number()
    data = head("GET", f"/nested/{number}", "User-Agent: in pieces", f"traceparent: {OK}")
    with Connection(lab.address) as connection:
        connection.send_in_pieces(data[at : at + size] for at in range(0, len(data), size))
        assert connection.read_response().status == 200
    server, manual = lab.expect(number, f"/nested/{number}", "root", "child", "grandchild")
    assert_child(manual["root"], server)
    assert (server.trace_id, server.parent_span_id) == (TRACE, PARENT)
    assert attributes_of(server, "user_agent.original", "server.address") == ("in pieces", "test")


@pytest.mark.parametrize("lines", [1, 15, 90])
def test_a_head_of_15_kib(lab: Traced, lines: int) -> None:
    filler = [f"X-Filler-{at}: {'x' * (15 * 1024 // lines - 16)}" for at in range(lines)]
    number = lab.next_number()
    data = head("GET", f"/nested/{number}", *filler, f"traceparent: {OK}")
    assert 13_000 < len(data) < 16_000
    with Connection(lab.address) as connection:
        connection.send(data)
        assert connection.read_response().status == 200
        server, manual = lab.expect(number, f"/nested/{number}", "root", "child", "grandchild")
        assert_child(manual["root"], server)
        assert (server.trace_id, server.parent_span_id) == (TRACE, PARENT)
        seen = lab.see("/roots/{n}", "a", "b", "c", connection=connection)
        assert_child(seen.manual["a"], seen.server)


def test_a_path_longer_than_what_is_kept(lab: Traced) -> None:
    number = lab.next_number()
    query = "q=" + "x" * 1000
    with Connection(lab.address) as connection:
        assert connection.request("GET", f"/nested/{number}?{query}").status == 200
    server, manual = lab.expect(number, f"/nested/{number}", "root", "child", "grandchild")
    assert_child(manual["root"], server)
    assert query.startswith(server.attributes["url.query"])


def test_the_absolute_form_of_a_target(lab: Traced) -> None:
    number = lab.next_number()
    with Connection(lab.address) as connection:
        connection.send(head("GET", f"http://test/none/{number}?x=/y"))
        assert connection.read_response().status == 200
    server, _ = lab.expect(number, f"/none/{number}")
    assert server.attributes["url.query"] == "x=/y"


# What is not followed

# A ClientHello as far as anybody looks: record type 22, version 3.1, a length, a handshake.
TLS_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(64)
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)


@pytest.fixture(scope="module")
def messy() -> Iterator[Traced]:
    """The lab, which gets what is not well-formed."""
    says = [
        "a connection with 127.0.0.1 speaks TLS, which is opaque",
        "3 connections spoke TLS",
        "a connection with 127.0.0.1 speaks HTTP/2, which is not followed",
        "1 connections spoke HTTP/2",
        "sent or was sent what is not well-formed HTTP/1.1: it is not traced",
        "connections were not well-formed HTTP/1.1",
        "has a head of more than 16 KiB: it is not traced",
        "1 connections had a head of more than 16 KiB",
        # The service refuses some by their first bytes, before there was a line.
        "was sent a response without a request: it is not traced",
        "connections had a response without a request",
    ]
    with Traced("lab", says=says) as traced:
        yield traced


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\x03" * 50 + b"\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /none/1 HTTP/9.9\r\n\r\n",
        b"get /none/1 HTTP/1.1\r\n\r\n",
        random.Random(3).randbytes(4000),
    ],
    ids=["zeros", "hello", "version", "small", "random"],
)
def test_garbage(messy: Traced, data: bytes) -> None:
    before = len(server_spans(messy.spans))
    with Connection(messy.address) as connection:
        connection.send(data)
    seen = messy.see("/roots/{n}", "a", "b", "c")
    for root in seen.manual.values():
        assert_child(root, seen.server)
    assert len(server_spans(messy.spans)) == before + 1


def test_tls_is_said_once_for_each_peer(messy: Traced) -> None:
    before = len(server_spans(messy.spans))
    for _ in range(3):
        with Connection(messy.address) as connection:
            connection.send(TLS_HELLO)
            connection.read_to_end()
    seen = messy.see("/roots/{n}", "a", "b", "c")
    assert_child(seen.manual["a"], seen.server)
    messy.agent.messages.wait_for("speaks TLS")
    assert len(server_spans(messy.spans)) == before + 1


def test_http_2_is_said(messy: Traced) -> None:
    before = len(server_spans(messy.spans))
    with Connection(messy.address) as connection:
        connection.send_in_pieces([HTTP2_PREFACE])
        messy.agent.messages.wait_for("speaks HTTP/2")
    seen = messy.see("/roots/{n}", "a", "b", "c")
    assert_child(seen.manual["a"], seen.server)
    assert len(server_spans(messy.spans)) == before + 1


def test_what_two_parsers_could_read_in_two_ways(messy: Traced) -> None:
    """Content-Length with Transfer-Encoding: not followed, so no root is adopted there either."""
    number = messy.next_number()
    with Connection(messy.address) as connection:
        connection.send(
            head("POST", f"/echo/{number}", "Content-Length: 3", "Transfer-Encoding: chunked")
            + b"3\r\nabc\r\n0\r\n\r\n"
        )
        status = connection.read_response().status
        if status == 200:
            manual = messy.expect_manual_only(number, f"/echo/{number}", "root")
            assert_left_alone(manual["root"], messy.spans)
    seen = messy.see("/roots/{n}", "a", "b", "c")
    assert_child(seen.manual["a"], seen.server)
    assert not server_spans(messy.spans, f"/echo/{number}")


def test_a_head_over_16_kib(messy: Traced) -> None:
    number = messy.next_number()
    with Connection(messy.address) as connection:
        connection.send(head("GET", f"/drop/{number}", *(f"X-{at}: {'x' * 1000}" for at in range(20))))
        assert connection.read_response().status == 200
        manual = messy.expect_manual_only(number, f"/drop/{number}", "root")
        assert_left_alone(manual["root"], messy.spans)
    seen = messy.see("/roots/{n}", "a", "b", "c")
    assert_child(seen.manual["a"], seen.server)


# Attach, other services


class WithOpenConnections(Traced):
    """Connections are there, and were used, before the agent comes."""

    def _before_attach(self) -> None:
        self.open = [Connection(self.address) for _ in range(4)]
        self.numbers_before = [self.next_number() for _ in self.open]
        for connection, number in zip(self.open, self.numbers_before, strict=True):
            assert connection.request("GET", f"/roots/{number}").status == 200
        # One is in the middle of a request, and one of them of a head.
        self.in_request = Connection(self.address)
        self.in_request.send_in_pieces([head("POST", "/echo/900001", "Content-Length: 4") + b"ab"])
        self.in_head = Connection(self.address)
        self.in_head.send_in_pieces([b"GET /drop/900002 HTTP/1.1\r\n"])


def test_attach_with_connections_that_are_open() -> None:
    with WithOpenConnections("lab", how="attach") as lab:
        for number in lab.numbers_before:
            roots = lab.expect_manual_only(number, f"/roots/{number}", "a", "b", "c")
            for root in roots.values():
                assert_left_alone(root, lab.spans)
        for _ in range(3):
            for connection in lab.open:
                seen = lab.see("/open-roots/{n}", "a", "b", "c", connection=connection)
                assert_child(seen.manual["a"], seen.server)
                assert_child(seen.manual["b"], seen.manual["a"])
                assert seen.server.attributes["network.peer.port"] == connection.port
        # What had begun is not followed; the next request on the same connection is.
        lab.in_request.send(b"cd")
        assert lab.in_request.read_response().body == b"abcd"
        lab.in_head.send(b"Host: x\r\n\r\n")
        assert lab.in_head.read_response().status == 200
        for number, path in ((900001, "/echo/900001"), (900002, "/drop/900002")):
            roots = lab.expect_manual_only(number, path, "root")
            assert_left_alone(roots["root"], lab.spans)
        for connection in (lab.in_request, lab.in_head):
            seen = lab.see("/nested/{n}", "root", "child", "grandchild", connection=connection)
            assert_child(seen.manual["root"], seen.server)
        for connection in (*lab.open, lab.in_request, lab.in_head):
            connection.close()


def test_services_of_other_kinds_under_one_agent(tmp_path: Path) -> None:
    """IPv6; no SDK in the executable; a stripped executable: each is traced as if it were alone."""
    stripped = tmp_path / "stripped-lab"
    shutil.copy(binary("lab", "release"), stripped)
    subprocess.run(["strip", str(stripped)], check=True)
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(OtlpReceiver())
        environ = {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint}
        by_ipv6 = stack.enter_context(Service(binary("lab", "release"), ["--listen", "[::1]:0"], environ))
        both = stack.enter_context(Service(binary("lab", "release"), ["--listen", "[::]:0"], environ))
        minimal = stack.enter_context(Service(binary("minimal", "release"), [], environ))
        without_symbols = stack.enter_context(Service(stripped, [], environ))
        services = (by_ipv6, both, minimal, without_symbols)
        arguments = ["attach", "--export", "otlp", "--write", "stop"]
        for service in services:
            arguments += ["--pid", str(service.pid)]
        agent = stack.enter_context(AgentProcess(arguments, environ))
        ready = [agent.messages.wait_for(f" ready (pid {service.pid},") for service in services]
        assert "are adopted (write stop)" in ready[0]
        assert "manual spans are left alone: the service has no opentelemetry_sdk in it" in ready[2]
        assert "are adopted (write stop)" in ready[3]

        port = both.address.rpartition(":")[2]
        addresses = {
            1: by_ipv6.address,
            2: f"127.0.0.1:{port}",
            3: f"[::1]:{port}",
            4: without_symbols.address,
        }
        for number, address in addresses.items():
            assert get(address, f"/nested/{number}").status == 200
        assert get(minimal.address, "/anything/5", {"traceparent": OK}).status == 200
        spans = receiver.wait_for(
            lambda spans: (
                len(server_spans(spans)) == 5
                and all(len(manual_spans(spans, number)) == 3 for number in addresses)
            )
        )
        peers = {1: "::1", 2: "127.0.0.1", 3: "::1", 4: "127.0.0.1"}
        for number, peer in peers.items():
            (server,) = server_spans(spans, f"/nested/{number}")
            assert attributes_of(server, "client.address", "network.peer.address") == (peer, peer)
            manual = {span.name: span for span in manual_spans(spans, number)}
            assert_child(manual["root"], server)
            assert server.resource["service.name"] == ("stripped-lab" if number == 4 else "lab")
        (server,) = server_spans(spans, "/anything/5")
        assert (server.trace_id, server.parent_span_id) == (TRACE, PARENT)
        assert server.resource["service.name"] == "minimal"
        assert agent.stop() == 0
        for service in services:
            assert service.stop() == 0
        assert not wrong(receiver.spans)
