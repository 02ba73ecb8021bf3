"""Automatic spans to a file, one OTLP/JSON ``ExportTraceServiceRequest`` a line.

The format is OTLP's JSON mapping (ids as hexadecimal digits, enums as numbers, 64-bit integers as
strings, lowerCamelCase names) in JSON lines, as the OpenTelemetry file exporter specification says.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spanweld.errors import UsageError
from spanweld.exporters import ExportCounts, Say
from spanweld.exporters.batching import BatchWorker, Outcome, exportable
from spanweld.exporters.encode import (
    SCALARS,
    SCOPE_NAME,
    SCOPE_VERSION,
    Parts,
    clean_text,
    fits_int64,
    link_flags,
    span_flags,
)
from spanweld.model import AttributeValue, Link, Resource, Span, StatusCode
from spanweld.settings import BatchSettings

_Json = dict[str, Any]


class JsonFileExporter:
    """Appends spans to a file, batch by batch, in a thread of its own.

    A new file is readable by its owner only: spans tell of clients and paths. Raises UsageError
    when the file cannot be opened. A failed write drops its batch, is counted, and said once until
    a write succeeds again.
    """

    def __init__(self, path: Path, batch: BatchSettings, say: Say) -> None:
        self._path = path
        self._say = say
        self._trouble_said = False
        self._in_line = False
        self._encoder = JsonEncoder()
        self._file = _open(path)
        self._worker = BatchWorker("spanweld-json", self._write, batch, say)

    def export(self, resource: Resource, spans: Sequence[Span]) -> None:
        """Queues the automatic spans."""
        self._worker.put(exportable(resource, spans))

    def poll(self, now: float) -> None:
        """Nothing is due by time: the worker has its own thread."""

    def close(self, timeout: float) -> None:
        """Flushes within ``timeout`` seconds and closes the file."""
        self._worker.close(timeout)
        # A write that outlives the close must not meet a descriptor that has become another file.
        if self._file >= 0 and self._worker.idle:
            file, self._file = self._file, -1
            os.close(file)

    def counts(self) -> ExportCounts:
        """The state of the counters now."""
        return self._worker.counts()

    def _write(self, batch: Sequence[tuple[Resource, Span]], _time_left: float) -> Outcome:
        line = (self._encoder.request(batch) + "\n").encode()
        try:
            # What a failed write left of a line must not spoil the next one.
            self._write_all(b"\n" + line if self._in_line else line)
        except OSError as error:
            reason = f"{self._path}: {error.strerror}"
            if not self._trouble_said:
                self._trouble_said = True
                self._say(f"spans cannot be written to {reason}; they are dropped until they can")
            return Outcome(error=reason)
        if self._trouble_said:
            self._trouble_said = False
            self._say(f"spans are written to {self._path} again")
        return Outcome(delivered=len(batch))

    def _write_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(self._file, view)
            self._in_line = True
            view = view[written:]
        self._in_line = False


def _open(path: Path) -> int:
    try:
        # Not blocking, since to open a FIFO that nobody reads would wait for ever.
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        os.set_blocking(file, True)
    except OSError as error:
        raise UsageError(
            f"--export json:{path}: the file cannot be opened: {error.strerror}",
            "name a file in a folder that exists and that you may write to",
        ) from error
    return file


class JsonEncoder:
    """Encodes requests as JSON and keeps what repeats; for one thread at a time."""

    def __init__(self) -> None:
        self._text = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
        self._parts: Parts[str] = Parts()

    def request(self, items: Iterable[tuple[Resource, Span]]) -> str:
        """The request without a line end: one ``resourceSpans`` for each resource object."""
        groups: dict[int, tuple[Resource, list[str]]] = {}
        for resource, span in items:
            groups.setdefault(id(resource), (resource, []))[1].append(self._span(span))
        scope = self._text({"name": SCOPE_NAME, "version": SCOPE_VERSION})
        resource_spans = (
            f'{{"resource":{{"attributes":[{self._attributes(resource.attributes)}]}},'
            f'"scopeSpans":[{{"scope":{scope},"spans":[{",".join(spans)}]}}]}}'
            for resource, spans in groups.values()
        )
        return f'{{"resourceSpans":[{",".join(resource_spans)}]}}'

    def _span(self, span: Span) -> str:
        context = span.context
        # In proto3's mapping what has its default value is left out.
        rest = ""
        if span.parent_span_id is not None:
            rest += f',"parentSpanId":"{span.parent_span_id:016x}"'
        if span.trace_state:
            rest += f',"traceState":{self._text(clean_text(span.trace_state))}'
        if span.links:
            rest += f',"links":[{",".join(map(self._link, span.links))}]'
        if span.status is not StatusCode.UNSET:
            message = (
                f',"message":{self._text(clean_text(span.status_message))}' if span.status_message else ""
            )
            rest += f',"status":{{"code":{span.status.value}{message}}}'
        return (
            f'{{"traceId":"{context.trace_id:032x}","spanId":"{context.span_id:016x}",'
            f'"flags":{span_flags(span)},"name":{self._text(clean_text(span.name))},'
            f'"kind":{span.kind.value},"startTimeUnixNano":"{span.start_ns}",'
            f'"endTimeUnixNano":"{span.end_ns}","attributes":[{self._attributes(span.attributes)}]{rest}}}'
        )

    def _link(self, link: Link) -> str:
        return (
            f'{{"traceId":"{link.context.trace_id:032x}","spanId":"{link.context.span_id:016x}",'
            f'"flags":{link_flags(link)},"attributes":[{self._attributes(link.attributes)}]}}'
        )

    def _attributes(self, attributes: Mapping[str, AttributeValue]) -> str:
        return ",".join([self._attribute(key, value) for key, value in attributes.items()])

    def _attribute(self, key: str, value: AttributeValue) -> str:
        # The type is part of the key, since 1, 1.0 and True are equal.
        cache_key = (key, value, value.__class__) if value.__class__ in SCALARS else None
        part = self._parts.get(cache_key) if cache_key else None
        if part is None:
            part = self._text({"key": clean_text(key), "value": _any_value(value)})
            if cache_key:
                self._parts.keep(cache_key, part)
        return part


def _any_value(value: AttributeValue) -> _Json:
    if isinstance(value, str):
        return {"stringValue": clean_text(value)}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue" if fits_int64(value) else "stringValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else _not_finite(value)}
    return {"arrayValue": {"values": [_any_value(item) for item in value]}}


def _not_finite(value: float) -> str:
    """What the protobuf JSON mapping writes for numbers that JSON lacks."""
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
