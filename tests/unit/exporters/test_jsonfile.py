"""The JSON file, read back by the rules of OTLP's JSON mapping and by protobuf's own parser."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from spanweld import __version__
from spanweld.errors import UsageError
from spanweld.exporters.encode import Encoder
from spanweld.exporters.jsonfile import JsonEncoder, JsonFileExporter
from spanweld.model import (
    AttributeValue,
    Link,
    Origin,
    Resource,
    SpanContext,
    SpanId,
    SpanKind,
    StatusCode,
    TraceId,
)
from spanweld.settings import BatchSettings
from tests.unit.exporters.support import (
    RESOURCE,
    SERVER_ATTRIBUTES,
    SOON,
    START_NS,
    Messages,
    server_span,
    span,
    wait_until,
)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_line_is_otlp_json(tmp_path: Path, messages: Messages) -> None:
    path = tmp_path / "spans.jsonl"
    exporter = JsonFileExporter(path, SOON, messages)
    exporter.export(
        RESOURCE,
        [
            span(
                0x00F067AA0BA902B7,
                "GET",
                parent=5,
                remote=True,
                kind=SpanKind.SERVER,
                origin=Origin.AUTOMATIC,
                ms=2.0,
                attributes={
                    "url.path": "/grüße",
                    "http.response.status_code": 500,
                    "ok": False,
                    "ratio": 0.5,
                },
                status=StatusCode.ERROR,
                message="broken",
                links=(Link(SpanContext(TraceId(7), SpanId(8))),),
                trace_state="vendor=value",
            )
        ],
    )
    exporter.close(5.0)
    assert lines_of(path) == [
        {
            "resourceSpans": [
                {
                    "resource": {
                        "attributes": [
                            {"key": "service.name", "value": {"stringValue": "users"}},
                            {"key": "process.pid", "value": {"intValue": "42"}},
                        ]
                    },
                    "scopeSpans": [
                        {
                            "scope": {"name": "spanweld", "version": __version__},
                            "spans": [
                                {
                                    "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
                                    "spanId": "00f067aa0ba902b7",
                                    "parentSpanId": "0000000000000005",
                                    "traceState": "vendor=value",
                                    "flags": 0x301,
                                    "name": "GET",
                                    "kind": 2,
                                    "startTimeUnixNano": str(START_NS),
                                    "endTimeUnixNano": str(START_NS + 2_000_000),
                                    "attributes": [
                                        {"key": "url.path", "value": {"stringValue": "/grüße"}},
                                        {"key": "http.response.status_code", "value": {"intValue": "500"}},
                                        {"key": "ok", "value": {"boolValue": False}},
                                        {"key": "ratio", "value": {"doubleValue": 0.5}},
                                    ],
                                    "links": [
                                        {
                                            "traceId": "0" * 31 + "7",
                                            "spanId": "0" * 15 + "8",
                                            "flags": 0x101,
                                            "attributes": [],
                                        }
                                    ],
                                    "status": {"code": 2, "message": "broken"},
                                }
                            ],
                        }
                    ],
                }
            ]
        }
    ]


def with_base64_ids(value: Any) -> Any:
    """OTLP/JSON to protobuf's JSON, which differs in the ids alone."""
    if isinstance(value, list):
        return [with_base64_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: base64.b64encode(bytes.fromhex(item)).decode()
        if key in ("traceId", "spanId", "parentSpanId")
        else with_base64_ids(item)
        for key, item in value.items()
    }


def test_json_and_protobuf_say_the_same() -> None:
    values: dict[str, AttributeValue] = {
        **SERVER_ATTRIBUTES,
        "strings": ["a", "b"],
        "numbers": (1, 2),
        "large": 1 << 63,
        "small": -(1 << 63),
        "infinite": float("inf"),
        "minus": float("-inf"),
        "broken": "a\udc80b",
    }
    items = [
        (RESOURCE, server_span(1, attributes=values)),
        (Resource({"service.name": "store"}), server_span(2, parent=1, remote=True)),
        (RESOURCE, server_span(3, parent=1)),
    ]
    parsed = json_format.ParseDict(
        with_base64_ids(json.loads(JsonEncoder().request(items))), ExportTraceServiceRequest()
    )
    assert parsed == ExportTraceServiceRequest.FromString(Encoder().request(items))


def test_a_file_is_appended_to_and_manual_spans_are_left_out(tmp_path: Path, messages: Messages) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_text('{"resourceSpans":[]}\n')
    for number in (1, 2):
        exporter = JsonFileExporter(path, SOON, messages)
        exporter.export(RESOURCE, [server_span(number), span(9, origin=Origin.MANUAL)])
        exporter.close(5.0)
        assert exporter.counts().exported == 1
    ids = [
        item["spanId"]
        for line in lines_of(path)
        for group in line["resourceSpans"]
        for item in group["scopeSpans"][0]["spans"]
    ]
    assert ids == ["0" * 15 + "1", "0" * 15 + "2"]


def test_a_batch_is_in_the_file_before_the_exporter_closes(tmp_path: Path, messages: Messages) -> None:
    path = tmp_path / "spans.jsonl"
    exporter = JsonFileExporter(path, SOON, messages)
    exporter.export(RESOURCE, [server_span(1)])
    wait_until(lambda: path.read_bytes().endswith(b"\n"))
    exporter.close(5.0)


def test_only_the_owner_may_read_a_new_file_and_an_old_ones_mode_stays(
    tmp_path: Path, messages: Messages
) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.touch()
    old.chmod(0o644)
    umask = os.umask(0)
    try:
        for path in (new, old):
            JsonFileExporter(path, SOON, messages).close(1.0)
    finally:
        os.umask(umask)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (new, old)] == [0o600, 0o644]


def test_files_that_cannot_be_opened_are_refused_at_the_start(tmp_path: Path, messages: Messages) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path, tmp_path / "missing" / "spans.jsonl", fifo):
        with pytest.raises(UsageError, match="cannot be opened") as caught:
            JsonFileExporter(path, SOON, messages)
        assert str(path) in caught.value.message
        assert caught.value.remedy


def test_a_full_disk_is_said_once_and_counted(messages: Messages) -> None:
    batch = BatchSettings(schedule_delay=0.0, max_export_batch_size=1)
    exporter = JsonFileExporter(Path("/dev/full"), batch, messages)
    exporter.export(RESOURCE, [server_span(1), server_span(2), server_span(3)])
    exporter.close(5.0)
    counts = exporter.counts()
    assert (counts.exported, counts.dropped) == (0, 3)
    assert counts.last_error == "/dev/full: No space left on device"
    assert len(messages.said) == 1
    assert "No space left on device" in messages.said[0]


def test_a_write_that_stops_in_the_middle_does_not_spoil_the_next_line(
    tmp_path: Path, messages: Messages, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spans.jsonl"
    exporter = JsonFileExporter(path, BatchSettings(schedule_delay=0.0, max_export_batch_size=1), messages)
    write, failing = os.write, [True]

    def write_a_part(file: int, data: bytes) -> int:
        if not failing:
            return write(file, data)
        if len(data) < 100:
            failing.clear()
            raise OSError(28, "No space left on device")
        return write(file, data[:-50])

    monkeypatch.setattr(os, "write", write_a_part)
    exporter.export(RESOURCE, [server_span(1), server_span(2)])
    exporter.close(5.0)
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1])["resourceSpans"]
    assert (exporter.counts().exported, exporter.counts().dropped) == (1, 1)
    assert [message.split(" to ")[0] for message in messages.said] == [
        "spans cannot be written",
        "spans are written",
    ]
