"""Services in a chain, all under the agent: every span's parent is the one of their own record."""

from __future__ import annotations

import hashlib
import random
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from tests.support.agent import run
from tests.support.chain import MOST_UNKNOWN, How, Middle, check
from tests.support.client import Connection, split_address
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.support.services import binary
from tests.support.traced import Traced
from tests.support.traces import client_spans, server_spans

pytestmark = [pytest.mark.root]

PARENT = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"

# As recorded by hand, with what differs from request to request taken out. No browser runs here.
CHROME = """\
GET {target} HTTP/1.1
Host: {host}
Connection: keep-alive
Cache-Control: max-age=0
sec-ch-ua: "Chromium";v="142", "Google Chrome";v="142", "Not_A Brand";v="99"
sec-ch-ua-mobile: ?0
sec-ch-ua-platform: "Linux"
Upgrade-Insecure-Requests: 1
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7
Sec-Fetch-Site: none
Sec-Fetch-Mode: navigate
Sec-Fetch-User: ?1
Sec-Fetch-Dest: document
Accept-Encoding: gzip, deflate, br, zstd
Accept-Language: en-US,en;q=0.9,de;q=0.8
Cookie: session=2c1f0b7e9d8a4f63b5e7a1c09d3f8e24; theme=dark; _ga=GA1.1.1234567890.1700000000

"""  # noqa: E501
FIREFOX = """\
GET {target} HTTP/1.1
Host: {host}
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8
Accept-Language: en-US,en;q=0.5
Accept-Encoding: gzip, deflate, br, zstd
Connection: keep-alive
Cookie: session=2c1f0b7e9d8a4f63b5e7a1c09d3f8e24
Upgrade-Insecure-Requests: 1
Sec-Fetch-Dest: document
Sec-Fetch-Mode: navigate
Sec-Fetch-Site: none
Sec-Fetch-User: ?1
Priority: u=0, i

"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "middle", "write", "requests"),
    [
        ("run", "plain", "inline", 500),
        ("attach", "relay", "stop", 300),
        ("run", "propagating", "stop", 300),
    ],
)
def test_every_span_has_the_parent_of_the_record(how: How, middle: Middle, write: str, requests: int) -> None:
    outcome = check(requests=requests, how=how, middle=middle, options=("--write", write))
    assert outcome.ok, outcome.report()
    assert outcome.verdict.most_unknown <= MOST_UNKNOWN, outcome.report()
    kinds = {kind for kind, count in outcome.verdict.spans.items() if count}
    assert kinds == {"server", "client", "manual"}


@pytest.mark.slow
def test_answers_that_are_not_read_never_lead_to_a_wrong_parent() -> None:
    outcome = check(requests=300, unread=50)
    assert outcome.ok, outcome.report()


@pytest.fixture(scope="module")
def lab() -> Iterator[Traced]:
    with Traced("lab") as entered:
        yield entered


def curl(lab: Traced, target: str, *options: str, body: bytes = b"") -> bytes:
    """What curl got; AssertionError if it failed. ``body`` is its standard input."""
    command = ["curl", "--silent", "--show-error", "--fail", "--http1.1", "--noproxy", "*", *options]
    done = subprocess.run(
        [*command, f"http://{lab.address}{target}"], input=body, capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def root_of(lab: Traced, number: int, path: str) -> tuple[ReceivedSpan, ReceivedSpan]:
    """The server span of a path, and the one root below it."""
    server, manual = lab.expect(number, path, "root")
    root = manual["root"]
    assert (root.trace_id, root.parent_span_id) == (server.trace_id, server.span_id)
    return server, root


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="length"),
        pytest.param(("--header", "Expect: 100-continue"), id="expect"),
        pytest.param(("--header", "Transfer-Encoding: chunked"), id="chunked"),
    ],
)
def test_curl_sends_a_body(lab: Traced, options: tuple[str, ...]) -> None:
    number = lab.next_number()
    path = f"/echo/{number}"
    body = b"0123456789abcdef" * 20_000
    assert curl(lab, path, *options, "--data-binary", "@-", body=body) == body
    server, _ = root_of(lab, number, path)
    assert server.attributes["http.request.method"] == "POST"
    assert server.attributes["http.response.status_code"] == 200


def test_curl_keeps_a_connection(lab: Traced) -> None:
    first, second = lab.next_number(), lab.next_number()
    header = ("--header", f"traceparent: 00-{PARENT}-01")
    curl(lab, f"/nested/{first}", *header, f"http://{lab.address}/drop/{second}")
    servers = []
    for number, path, names in (
        (first, f"/nested/{first}", ("root", "child", "grandchild")),
        (second, f"/drop/{second}", ("root",)),
    ):
        server, manual = lab.expect(number, path, *names)
        assert f"{server.trace_id}-{server.parent_span_id}" == PARENT
        assert manual["root"].parent_span_id == server.span_id
        servers.append(server)
    ports = {server.attributes["network.peer.port"] for server in servers}
    assert len(ports) == 1


@pytest.mark.parametrize("head", [pytest.param(CHROME, id="chrome"), pytest.param(FIREFOX, id="firefox")])
def test_what_a_browser_sends(lab: Traced, head: str) -> None:
    with Connection(lab.address) as connection:
        for _ in range(3):
            number = lab.next_number()
            path = f"/drop/{number}"
            text = head.format(target=f"{path}?q=spanweld+%C3%A4", host=lab.address)
            connection.send(text.replace("\n", "\r\n").encode())
            assert connection.read_response().status == 200
            server, _ = root_of(lab, number, path)
            assert server.attributes["url.query"] == "q=spanweld+%C3%A4"
            assert server.attributes["server.address"] == split_address(lab.address)[0]
            assert server.parent_span_id == ""


def test_wrk(tmp_path: Path) -> None:
    script = tmp_path / "post.lua"
    script.write_text('wrk.method = "POST"\n')
    with OtlpReceiver() as receiver:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint}
        # Answers that take their time: wrk's rate has no other bound, and what the agent keeps has one.
        with run([str(binary("store", "release")), "--delay-ms", "5"], environ=environ) as agent:
            output = subprocess.run(
                ["wrk", "-t1", "-c8", "-d1", "-s", str(script), f"http://{agent.service_address}/store"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            assert agent.stop(timeout=30) == 0
        answered = int(output.partition(" requests in ")[0].split()[-1])
        spans = server_spans(receiver.spans, "/store")
        assert "Socket errors" not in output
        # At its end wrk leaves what is under way.
        assert answered <= len(spans) <= answered + 8, agent.messages.text
        assert len({span.trace_id for span in spans}) == len(spans)
        statuses = [span.attributes.get("http.response.status_code") for span in spans]
        assert statuses.count(201) >= answered


SIZE = 100 << 20


class Echo(BaseHTTPRequestHandler):
    """Answers a POST with its body, and keeps the headers."""

    protocol_version = "HTTP/1.1"
    came: ClassVar[list[dict[str, str]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.came.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.mark.slow
def test_100_mib_up_and_down_through_a_service_that_gets_headers() -> None:
    text = random.Random(1).randbytes(SIZE // 2).hex().encode()
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server, OtlpReceiver() as receiver:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint}
        with run([str(binary("relay", "release"))], environ=environ) as agent:
            url = f"http://127.0.0.1:{server.server_port}/echo"
            errand = b'[{"url": "%s", "arguments": "%s"}]' % (url.encode(), text)
            with Connection(agent.service_address) as connection:
                response = connection.request(
                    "POST", "/transfer", {"Content-Type": "application/json"}, errand
                )
            assert agent.stop(timeout=30) == 0
        server.shutdown()
    assert response.status == 200
    assert hashlib.sha256(response.body[1:-1]).digest() == hashlib.sha256(text).digest()
    (span,) = [span for span in client_spans(receiver.spans) if span.attributes["url.full"] == url]
    (headers,) = Echo.came
    assert headers["traceparent"] == f"00-{span.trace_id}-{span.span_id}-01"
    (request,) = server_spans(receiver.spans, "/transfer")
    assert (span.trace_id, span.parent_span_id) == (request.trace_id, request.span_id)
