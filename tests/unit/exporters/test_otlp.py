"""The OTLP exporter against a real receiver, by HTTP and by gRPC."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from spanweld.errors import UsageError
from spanweld.exporters.otlp import OtlpExporter
from spanweld.exporters.otlp_grpc import grpc_target
from spanweld.model import Origin
from spanweld.settings import BatchSettings, OtlpProtocol, OtlpSettings
from tests.support.otlp_receiver import UNAVAILABLE, Answer, OtlpReceiver, TlsFiles
from tests.unit.exporters.support import (
    QUICK,
    RESOURCE,
    SERVER_ATTRIBUTES,
    SOON,
    Messages,
    server_span,
    span,
    wait_until,
)

HTTP = OtlpProtocol.HTTP_PROTOBUF
GRPC = OtlpProtocol.GRPC
both = pytest.mark.parametrize("protocol", [HTTP, GRPC], ids=["http", "grpc"])


def settings_for(receiver: OtlpReceiver, protocol: OtlpProtocol) -> OtlpSettings:
    endpoint = receiver.grpc_endpoint if protocol is GRPC else f"{receiver.http_endpoint}/v1/traces"
    return OtlpSettings(endpoint=endpoint, protocol=protocol, insecure=endpoint.startswith("http:"))


@both
def test_spans_arrive_whole(receiver: OtlpReceiver, protocol: OtlpProtocol, messages: Messages) -> None:
    exporter = OtlpExporter(settings_for(receiver, protocol), SOON, messages)
    exporter.export(
        RESOURCE, [server_span(1, parent=9, remote=True), span(2, parent=1, origin=Origin.MANUAL)]
    )
    received = receiver.wait_for(lambda spans: spans)
    exporter.close(5.0)
    assert [item.span_id for item in received] == ["0000000000000001"]
    assert received[0].attributes == dict(SERVER_ATTRIBUTES)
    assert received[0].resource["service.name"] == "users"
    assert received[0].scope_name == "spanweld"
    assert received[0].protocol == ("grpc" if protocol is GRPC else "http")
    assert "spanweld-OTLP-Exporter-Python/" in receiver.requests[0].headers["user-agent"]
    assert (exporter.counts().exported, exporter.counts().dropped) == (1, 0)
    assert messages.said == []


@both
@pytest.mark.parametrize("compressed", [False, True])
def test_headers_and_compression(
    receiver: OtlpReceiver, protocol: OtlpProtocol, compressed: bool, messages: Messages
) -> None:
    settings = replace(
        settings_for(receiver, protocol), gzip=compressed, headers={"Authorization": "Bearer abc=def"}
    )
    exporter = OtlpExporter(settings, SOON, messages)
    exporter.export(RESOURCE, [server_span(number) for number in range(1, 101)])
    receiver.wait_for(lambda spans: len(spans) == 100)
    exporter.close(5.0)
    headers = receiver.requests[0].headers
    assert headers["authorization"] == "Bearer abc=def"
    if protocol is HTTP:
        assert headers.get("content-encoding") == ("gzip" if compressed else None)


@both
def test_20_000_spans_arrive_in_seconds(
    receiver: OtlpReceiver, protocol: OtlpProtocol, messages: Messages
) -> None:
    exporter = OtlpExporter(settings_for(receiver, protocol), BatchSettings(), messages)
    start = time.monotonic()
    for first in range(1, 20_001, 1000):
        exporter.export(RESOURCE, [server_span(number) for number in range(first, first + 1000)])
    exporter.close(30.0)
    assert time.monotonic() - start < 30.0
    assert len({item.span_id for item in receiver.spans}) == 20_000
    assert exporter.counts().exported == 20_000
    assert max(request.span_count for request in receiver.requests) == 512


@both
@pytest.mark.parametrize(
    "answer",
    [
        UNAVAILABLE,
        Answer(http_status=429, grpc_code=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after=0.0),
        Answer(http_status=502, grpc_code=grpc.StatusCode.DEADLINE_EXCEEDED),
        Answer(http_status=504, grpc_code=grpc.StatusCode.ABORTED),
    ],
    ids=["unavailable", "throttled", "bad gateway", "gateway timeout"],
)
def test_what_may_pass_is_sent_again(
    receiver: OtlpReceiver, protocol: OtlpProtocol, answer: Answer, messages: Messages
) -> None:
    receiver.answer(answer, answer)
    exporter = OtlpExporter(settings_for(receiver, protocol), SOON, messages, QUICK)
    exporter.export(RESOURCE, [server_span(1)])
    receiver.wait_for(lambda spans: spans)
    exporter.close(5.0)
    assert len(receiver.requests) == 3
    counts = exporter.counts()
    assert (counts.exported, counts.dropped, counts.retried) == (1, 0, 2)
    assert [message.partition("\n")[0].split(" to ")[0] for message in messages.said] == [
        "no spans can be sent",
        "spans are sent",
    ]


@both
@pytest.mark.parametrize(
    "answer",
    [
        Answer(http_status=400, grpc_code=grpc.StatusCode.INVALID_ARGUMENT, message="bad data"),
        Answer(http_status=401, grpc_code=grpc.StatusCode.UNAUTHENTICATED, message="who are you"),
        Answer(http_status=500, grpc_code=grpc.StatusCode.RESOURCE_EXHAUSTED, message="full"),
        Answer(http_status=307, grpc_code=grpc.StatusCode.INTERNAL, message="elsewhere"),
    ],
    ids=["bad data", "unauthenticated", "server error", "redirect"],
)
def test_what_will_not_pass_is_dropped_and_said_once(
    receiver: OtlpReceiver, protocol: OtlpProtocol, answer: Answer, messages: Messages
) -> None:
    receiver.answer(then=answer)
    exporter = OtlpExporter(
        settings_for(receiver, protocol), replace(SOON, max_export_batch_size=2), messages, QUICK
    )
    exporter.export(RESOURCE, [server_span(number) for number in range(1, 7)])
    receiver.wait_for_requests(lambda requests: len(requests) == 3)
    exporter.close(5.0)
    counts = exporter.counts()
    assert (counts.exported, counts.dropped, counts.retried) == (0, 6, 0)
    assert answer.message in counts.last_error
    assert len(messages.said) == 1
    assert "refused" in messages.said[0]
    assert len(receiver.requests) == 3


@both
def test_the_receivers_wish_when_to_come_back_is_honoured(
    receiver: OtlpReceiver, protocol: OtlpProtocol, messages: Messages
) -> None:
    receiver.answer(replace(UNAVAILABLE, retry_after=1.0))
    exporter = OtlpExporter(
        settings_for(receiver, protocol), SOON, messages, replace(QUICK, most_asked_for=5)
    )
    exporter.export(RESOURCE, [server_span(1)])
    receiver.wait_for_requests(lambda requests: len(requests) == 1)
    start = time.monotonic()
    receiver.wait_for(lambda spans: spans)
    assert time.monotonic() - start > 0.8
    exporter.close(5.0)


@both
def test_partial_success_is_counted_and_said_once(
    receiver: OtlpReceiver, protocol: OtlpProtocol, messages: Messages
) -> None:
    receiver.answer(then=Answer(rejected=1, message="one is too old"))
    exporter = OtlpExporter(
        settings_for(receiver, protocol), replace(SOON, max_export_batch_size=3), messages, QUICK
    )
    exporter.export(RESOURCE, [server_span(number) for number in range(1, 7)])
    exporter.close(5.0)
    counts = exporter.counts()
    assert (counts.exported, counts.dropped, counts.retried) == (4, 2, 0)
    assert messages.said == [
        f"{settings_for(receiver, protocol).endpoint} rejected 1 of 3 spans: one is too old"
    ]


@both
def test_an_endpoint_that_is_down_is_said_once_and_once_when_it_is_back(
    receiver: OtlpReceiver, protocol: OtlpProtocol, messages: Messages
) -> None:
    receiver.refuse()
    batch = BatchSettings(schedule_delay=0.01, max_queue_size=100, max_export_batch_size=10)
    exporter = OtlpExporter(settings_for(receiver, protocol), batch, messages, QUICK)
    exporter.export(RESOURCE, [server_span(number) for number in range(1, 61)])
    messages.wait_for("no spans can be sent")
    exporter.export(RESOURCE, [server_span(number) for number in range(61, 151)])
    wait_until(lambda: exporter.counts().retried >= 3)
    assert len(messages.said) == 1
    assert "up to 100 spans are kept" in messages.said[0]
    receiver.listen()
    received = receiver.wait_for(lambda spans: len(spans) >= 100)
    messages.wait_for("again; 50 were dropped meanwhile")
    exporter.close(5.0)
    assert sorted(int(item.span_id, 16) for item in received) == list(range(1, 101))
    counts = exporter.counts()
    assert (counts.exported, counts.dropped) == (100, 50)
    assert len(messages.said) == 2


@both
def test_close_flushes_what_waits(receiver: OtlpReceiver, protocol: OtlpProtocol, messages: Messages) -> None:
    exporter = OtlpExporter(settings_for(receiver, protocol), BatchSettings(schedule_delay=3600), messages)
    exporter.export(RESOURCE, [server_span(1), server_span(2)])
    exporter.close(5.0)
    assert len(receiver.spans) == 2
    exporter.export(RESOURCE, [server_span(3)])
    assert exporter.counts().dropped == 1


@both
def test_close_gives_up_in_time_when_the_endpoint_is_down(
    receiver: OtlpReceiver, protocol: OtlpProtocol, messages: Messages
) -> None:
    receiver.refuse()
    exporter = OtlpExporter(settings_for(receiver, protocol), SOON, messages)
    exporter.export(RESOURCE, [server_span(1), server_span(2)])
    start = time.monotonic()
    exporter.close(0.5)
    assert time.monotonic() - start < 2.0
    assert exporter.counts().dropped == 2


@both
def test_close_gives_up_in_time_when_the_endpoint_hangs(
    receiver: OtlpReceiver, protocol: OtlpProtocol, messages: Messages
) -> None:
    receiver.answer(then=Answer(delay=3600.0))
    exporter = OtlpExporter(settings_for(receiver, protocol), BatchSettings(schedule_delay=3600), messages)
    exporter.export(RESOURCE, [server_span(1)])
    start = time.monotonic()
    exporter.close(0.5)
    assert time.monotonic() - start < 2.0
    assert exporter.counts().dropped == 1
    receiver.refuse()


@both
def test_an_answer_that_comes_too_late_is_retried(
    receiver: OtlpReceiver, protocol: OtlpProtocol, messages: Messages
) -> None:
    receiver.answer(Answer(delay=3600.0))
    settings = replace(settings_for(receiver, protocol), timeout=2.0)
    exporter = OtlpExporter(settings, SOON, messages, QUICK)
    exporter.export(RESOURCE, [server_span(1)])
    receiver.wait_for(lambda spans: spans)
    exporter.close(5.0)
    assert exporter.counts().retried == 1
    receiver.refuse()


def test_an_endpoint_that_does_not_speak_http(messages: Messages) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        exporter = OtlpExporter(
            OtlpSettings(endpoint=f"http://127.0.0.1:{port}/v1/traces"), SOON, messages, QUICK
        )
        exporter.export(RESOURCE, [server_span(1)])
        connection = server.accept()[0]
        connection.sendall(b"220 mail.example ESMTP\r\n")
        connection.close()
        messages.wait_for("no spans can be sent")
    exporter.close(0.5)


def test_a_wrong_path_is_said_with_its_status(receiver: OtlpReceiver, messages: Messages) -> None:
    exporter = OtlpExporter(OtlpSettings(endpoint=f"{receiver.http_endpoint}/wrong"), SOON, messages)
    exporter.export(RESOURCE, [server_span(1)])
    messages.wait_for("HTTP 404 Not Found")
    exporter.close(5.0)
    assert exporter.counts().dropped == 1


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        (OtlpSettings(endpoint="http://127.0.0.1:4317/v1/traces"), "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"),
        (OtlpSettings(endpoint="http://127.0.0.1:4318", protocol=GRPC), "PROTOCOL=http/protobuf"),
        (OtlpSettings(endpoint="http://127.0.0.1:1/v1/traces"), "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_the_message_says_what_to_do(settings: OtlpSettings, hint: str, messages: Messages) -> None:
    exporter = OtlpExporter(settings, SOON, messages)
    exporter.export(RESOURCE, [server_span(1)])
    messages.wait_for(hint)
    exporter.close(0.0)


@pytest.mark.parametrize(
    "headers", [{"a b": "secret"}, {"a": "secret\r\nc: d"}, {"a": "secret-ü"}, {"": "secret"}]
)
def test_headers_that_cannot_be_sent_are_refused_without_their_value(
    headers: dict[str, str], messages: Messages
) -> None:
    with pytest.raises(UsageError, match="OTEL_EXPORTER_OTLP_HEADERS") as caught:
        OtlpExporter(OtlpSettings(headers=headers), SOON, messages)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "target"),
    [
        ("http://localhost:4317", "localhost:4317"),
        ("https://collector:4317/path", "collector:4317"),
        ("https://collector", "collector:443"),
        ("http://collector", "collector:80"),
        ("http://[::1]:4317", "[::1]:4317"),
        ("https://user:password@collector:1", "collector:1"),
        ("collector:4317", "collector:4317"),
        ("unix:///run/otel.sock", "unix:///run/otel.sock"),
        ("dns:///collector:4317", "dns:///collector:4317"),
    ],
)
def test_grpc_targets(endpoint: str, target: str) -> None:
    assert grpc_target(endpoint) == target


class Authority:
    """A certificate authority in a folder, by the openssl command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "ca.pem"
        self._openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=ca "
            "-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign "
            "-keyout ca.key -out ca.pem"
        )

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key for 127.0.0.1."""
        self._openssl(
            f"req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} "
            f"-addext subjectAltName=IP:127.0.0.1 -keyout {name}.key -out {name}.csr"
        )
        self._openssl(
            f"x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 "
            f"-copy_extensions copy -out {name}.pem"
        )
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def _openssl(self, arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], cwd=self.folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@both
def test_mutual_tls(authority: Authority, protocol: OtlpProtocol, messages: Messages) -> None:
    certificate, key = authority.issue("server")
    client_certificate, client_key = authority.issue("client")
    with OtlpReceiver(tls=TlsFiles(certificate, key, authority.certificate)) as receiver:
        settings = replace(
            settings_for(receiver, protocol),
            certificate=authority.certificate,
            client_certificate=client_certificate,
            client_key=client_key,
        )
        exporter = OtlpExporter(settings, SOON, messages)
        exporter.export(RESOURCE, [server_span(1)])
        receiver.wait_for(lambda spans: spans)
        exporter.close(5.0)
    assert messages.said == []


@both
def test_a_server_that_is_not_trusted_gets_nothing(
    authority: Authority, protocol: OtlpProtocol, messages: Messages
) -> None:
    certificate, key = authority.issue("stranger")
    with OtlpReceiver(tls=TlsFiles(certificate, key)) as receiver:
        exporter = OtlpExporter(settings_for(receiver, protocol), SOON, messages, QUICK)
        exporter.export(RESOURCE, [server_span(1)])
        messages.wait_for("no spans can be sent")
        exporter.close(0.3)
        assert receiver.requests == []
    assert exporter.counts().dropped == 1


def _nothing(folder: Path) -> Path:
    return folder / "missing.pem"


def _rubbish(folder: Path) -> Path:
    path = folder / "rubbish.pem"
    path.write_text("this is no certificate")
    return path


@pytest.mark.parametrize(("protocol", "make"), [(HTTP, _nothing), (HTTP, _rubbish), (GRPC, _nothing)])
@pytest.mark.parametrize("which", ["certificate", "client_certificate"])
def test_certificates_that_cannot_be_loaded_are_refused_at_the_start(
    tmp_path: Path, protocol: OtlpProtocol, make: Callable[[Path], Path], which: str, messages: Messages
) -> None:
    path = make(tmp_path)
    settings = OtlpSettings(endpoint="https://127.0.0.1:1/v1/traces", protocol=protocol, insecure=False)
    if which == "certificate":
        settings = replace(settings, certificate=path)
    else:
        settings = replace(settings, client_certificate=path)
    with pytest.raises(UsageError, match=which.upper()) as caught:
        OtlpExporter(settings, SOON, messages)
    assert str(path) in caught.value.message
    assert caught.value.remedy
