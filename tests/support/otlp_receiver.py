"""A real OTLP receiver for tests and the demo: gRPC and HTTP/protobuf, spans kept as plain data.

Run it by itself with ``python -m tests.support.otlp_receiver --output FILE.jsonl``: it writes one
JSON object a span and prints a line with its endpoints when it is ready.
"""

from __future__ import annotations

import argparse
import gzip
import json
import signal
import socket
import ssl
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as service
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

T = TypeVar("T")
Value = Any
"""A Python value of an OTLP ``AnyValue``: str, bool, int, float, bytes, list, dict or None."""

MOST_SECONDS = 30.0
MOST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReceivedLink:
    """A link of a span; ids in hexadecimal digits."""

    trace_id: str
    span_id: str
    flags: int
    attributes: dict[str, Value]


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """An event of a span; the time in nanoseconds since the Unix epoch."""

    name: str
    time_ns: int
    attributes: dict[str, Value]


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span as it came over the wire; ids in hexadecimal digits, '' where there is no parent."""

    name: str
    trace_id: str
    span_id: str
    parent_span_id: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Value]
    resource: dict[str, Value]
    scope_name: str
    scope_version: str
    status_code: int
    status_message: str
    flags: int
    trace_state: str
    links: tuple[ReceivedLink, ...]
    events: tuple[ReceivedEvent, ...]
    protocol: str
    dropped: tuple[int, int, int] = (0, 0, 0)
    """How many attributes, events and links there were no room for."""


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request, whatever was answered: ``protocol`` is grpc or http, header names are in small letters."""

    protocol: str
    headers: dict[str, str]
    span_count: int
    answered: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver answers: by default that it took all spans.

    ``http_status`` and ``grpc_code`` other than 200 and OK refuse the request; ``retry_after``
    (seconds) is then said in the Retry-After header and in RetryInfo. ``rejected`` and ``message``
    make a partial success. ``delay`` seconds pass before the answer.
    """

    http_status: int = 200
    grpc_code: grpc.StatusCode = grpc.StatusCode.OK
    retry_after: float | None = None
    rejected: int = 0
    message: str = ""
    delay: float = 0.0

    @property
    def takes(self) -> bool:
        """Whether the spans of such a request are kept."""
        return self.http_status == 200 and self.grpc_code is grpc.StatusCode.OK


TAKE = Answer()
UNAVAILABLE = Answer(http_status=503, grpc_code=grpc.StatusCode.UNAVAILABLE, message="not now")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a server; with ``client_authority`` a client must show a certificate of it."""

    certificate: Path
    key: Path
    client_authority: Path | None = None


class OtlpReceiver:
    """Listens while it is entered; all methods may be called from any thread.

    Ports of 0 are chosen by the system and kept over ``refuse`` and ``listen``.
    """

    def __init__(
        self,
        http_port: int = 0,
        grpc_port: int = 0,
        host: str = "127.0.0.1",
        tls: TlsFiles | None = None,
        on_spans: Callable[[Sequence[ReceivedSpan]], None] | None = None,
    ) -> None:
        self.host = host
        self.http_port = http_port
        self.grpc_port = grpc_port
        self._tls = tls
        self._on_spans = on_spans
        self._changed = threading.Condition()
        self._spans: list[ReceivedSpan] = []
        self._requests: list[ReceivedRequest] = []
        self._answers: list[Answer] = []
        self._always = TAKE
        self._stopping = threading.Event()
        self._http: _HttpServer | None = None
        self._http_thread: threading.Thread | None = None
        self._grpc: grpc.Server | None = None

    def __enter__(self) -> OtlpReceiver:
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()

    @property
    def http_endpoint(self) -> str:
        """The base URL for OTEL_EXPORTER_OTLP_ENDPOINT with http/protobuf."""
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.http_port}"

    @property
    def grpc_endpoint(self) -> str:
        """The URL for OTEL_EXPORTER_OTLP_ENDPOINT with grpc."""
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.grpc_port}"

    @property
    def spans(self) -> list[ReceivedSpan]:
        """All spans taken until now, in the order of their coming."""
        with self._changed:
            return list(self._spans)

    @property
    def requests(self) -> list[ReceivedRequest]:
        """All requests until now."""
        with self._changed:
            return list(self._requests)

    def answer(self, *answers: Answer, then: Answer = TAKE) -> None:
        """Answers the next requests with ``answers``, one each, and all after them with ``then``."""
        with self._changed:
            self._answers = list(answers)
            self._always = then

    def listen(self) -> None:
        """Begins to listen; returns when connections are accepted."""
        self._stopping.clear()
        self._http = _HttpServer((self.host, self.http_port), self, self._tls)
        self.http_port = self._http.server_address[1]
        self._http_thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._http_thread.start()
        self._grpc = grpc.server(
            ThreadPoolExecutor(max_workers=8),
            options=(("grpc.max_receive_message_length", MOST_BYTES),),
        )
        service_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _TraceService(self), self._grpc
        )
        address = f"{self.host}:{self.grpc_port}"
        if self._tls:
            self.grpc_port = self._grpc.add_secure_port(address, _grpc_credentials(self._tls))
        else:
            self.grpc_port = self._grpc.add_insecure_port(address)
        self._grpc.start()

    def refuse(self) -> None:
        """Ends all connections and listens no more, until ``listen``."""
        self._stopping.set()
        if self._http is not None and self._http_thread is not None:
            self._http.shutdown()
            self._http_thread.join()
            self._http.server_close()
            self._http.close_connections()
            self._http = None
        if self._grpc is not None:
            self._grpc.stop(grace=None).wait()
            self._grpc = None

    def wait_for(
        self, predicate: Callable[[list[ReceivedSpan]], object], timeout: float = MOST_SECONDS
    ) -> list[ReceivedSpan]:
        """The spans as soon as ``predicate`` holds for them; AssertionError after ``timeout`` seconds."""
        return self._wait(self._spans, predicate, timeout)

    def wait_for_requests(
        self, predicate: Callable[[list[ReceivedRequest]], object], timeout: float = MOST_SECONDS
    ) -> list[ReceivedRequest]:
        """The requests, refused ones too, as soon as ``predicate`` holds for them."""
        return self._wait(self._requests, predicate, timeout)

    def _wait(self, kept: list[T], predicate: Callable[[list[T]], object], timeout: float) -> list[T]:
        deadline = time.monotonic() + timeout
        with self._changed:
            while not predicate(list(kept)):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"not within {timeout} s; {len(kept)} came, the last: {kept[-3:]}")
                self._changed.wait(left)
            return list(kept)

    def take(
        self, protocol: str, headers: dict[str, str], request: service.ExportTraceServiceRequest
    ) -> Answer:
        """Decides what is answered to a request, and keeps its spans where they are taken."""
        with self._changed:
            answer = self._answers.pop(0) if self._answers else self._always
        spans = list(received_spans(request, protocol))
        if answer.delay:
            self._stopping.wait(answer.delay)
        kept = spans[answer.rejected :] if answer.takes else []
        if kept and self._on_spans is not None:
            self._on_spans(kept)
        said = "200" if answer.takes else f"{answer.http_status}/{answer.grpc_code.name}"
        with self._changed:
            self._spans.extend(kept)
            self._requests.append(ReceivedRequest(protocol, headers, len(spans), said))
            self._changed.notify_all()
        return answer


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], receiver: OtlpReceiver, tls: TlsFiles | None) -> None:
        super().__init__(address, _HttpHandler)
        self.receiver = receiver
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key)
            if tls.client_authority is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(tls.client_authority)
            # The handshake belongs into the connection's thread, not into the one that accepts.
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that ends in the middle, or a refused handshake, is a part of the tests.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def close_connections(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # closed already by its peer


class _HttpHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _HttpServer

    def do_POST(self) -> None:
        body = self._body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        if self.path != "/v1/traces":
            self._answer(404, b"no such path", "text/plain")
            return
        if headers.get("content-type") != "application/x-protobuf":
            self._answer(415, b"only application/x-protobuf is taken", "text/plain")
            return
        try:
            if headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            request = service.ExportTraceServiceRequest.FromString(body)
        except (DecodeError, OSError, EOFError, zlib.error) as error:
            self._answer(400, str(error).encode(), "text/plain")
            return
        answer = self.server.receiver.take("http", headers, request)
        if answer.http_status == 200:
            self._answer(200, _response(answer).SerializeToString(), "application/x-protobuf")
        else:
            self._answer(
                answer.http_status, _rpc_status(answer), "application/x-protobuf", answer.retry_after
            )

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue  # trailers
        return b"".join(chunks)

    def _answer(self, status: int, body: bytes, content_type: str, retry_after: float | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if retry_after is not None:
            self.send_header("Retry-After", str(int(retry_after)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: what came is kept as data."""


class _TraceService(service_grpc.TraceServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(  # noqa: N802
        self, request: service.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> service.ExportTraceServiceResponse:
        headers = {
            str(key).lower(): value.decode("latin-1") if isinstance(value, bytes) else str(value)
            for key, value in context.invocation_metadata()
        }
        answer = self._receiver.take("grpc", headers, request)
        if answer.grpc_code is not grpc.StatusCode.OK:
            context.set_trailing_metadata((("grpc-status-details-bin", _rpc_status(answer)),))
            context.abort(answer.grpc_code, answer.message)
        return _response(answer)


def _grpc_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    authority = tls.client_authority
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.certificate.read_bytes())],
        root_certificates=authority.read_bytes() if authority else None,
        require_client_auth=authority is not None,
    )


def _response(answer: Answer) -> service.ExportTraceServiceResponse:
    if not answer.rejected and not answer.message:
        return service.ExportTraceServiceResponse()
    return service.ExportTraceServiceResponse(
        partial_success=service.ExportTracePartialSuccess(
            rejected_spans=answer.rejected, error_message=answer.message
        )
    )


def _rpc_status(answer: Answer) -> bytes:
    """A google.rpc.Status by hand (fields under 128 bytes), so that the parser is not tested by itself."""

    def field_of(number: int, body: bytes) -> bytes:
        return bytes((number << 3 | 2, len(body))) + body

    code = int(answer.grpc_code.value[0])
    status = bytes((1 << 3, code)) + field_of(2, answer.message.encode())
    if answer.retry_after is not None:
        seconds = int(answer.retry_after)
        nanos = int((answer.retry_after - seconds) * 1e9)
        duration = b"\x08" + _varint(seconds) + b"\x10" + _varint(nanos)
        retry_info = field_of(1, duration)
        status += field_of(
            3, field_of(1, b"type.googleapis.com/google.rpc.RetryInfo") + field_of(2, retry_info)
        )
    return status


def _varint(number: int) -> bytes:
    result = bytearray()
    while number >= 0x80:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(result) + bytes((number,))


def received_spans(request: service.ExportTraceServiceRequest, protocol: str) -> Iterable[ReceivedSpan]:
    """The spans of a request in their order."""
    for resource_spans in request.resource_spans:
        resource = _attributes(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield _received_span(span, resource, scope_spans.scope, protocol)


def _received_span(
    span: trace_pb2.Span, resource: dict[str, Value], scope: Any, protocol: str
) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        kind=span.kind,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        resource=resource,
        scope_name=scope.name,
        scope_version=scope.version,
        status_code=span.status.code,
        status_message=span.status.message,
        flags=span.flags,
        trace_state=span.trace_state,
        links=tuple(
            ReceivedLink(link.trace_id.hex(), link.span_id.hex(), link.flags, _attributes(link.attributes))
            for link in span.links
        ),
        events=tuple(
            ReceivedEvent(event.name, event.time_unix_nano, _attributes(event.attributes))
            for event in span.events
        ),
        dropped=(span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count),
        protocol=protocol,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind)


@dataclass(slots=True)
class _JsonLines:
    path: Path
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, spans: Sequence[ReceivedSpan]) -> None:
        text = "".join(json.dumps(asdict(span), default=bytes.hex) + "\n" for span in spans)
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            file.write(text)


def main() -> NoReturn:
    """Runs until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="an OTLP receiver that writes spans as JSON lines")
    parser.add_argument("--http-port", type=int, default=4318)
    parser.add_argument("--grpc-port", type=int, default=4317)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    # Blocked before any thread starts, so that only sigwait gets them.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    arguments.output.touch()
    lines = _JsonLines(arguments.output)
    with OtlpReceiver(
        arguments.http_port, arguments.grpc_port, arguments.host, on_spans=lines.write
    ) as receiver:
        print(
            f"otlp_receiver: ready (http {receiver.http_endpoint}, grpc {receiver.grpc_endpoint})", flush=True
        )
        signal.sigwait((signal.SIGTERM, signal.SIGINT))
    sys.exit(0)


if __name__ == "__main__":
    main()
