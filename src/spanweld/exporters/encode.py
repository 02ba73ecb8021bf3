"""Spans to the bytes of an OTLP ``ExportTraceServiceRequest``, fast enough for every request.

Protobuf messages are concatenable: fields may come in any order, each with its own tag. So a span
is put together from parts that repeat between spans (name, kind, status, each attribute), which
are encoded once with the generated messages and kept, and a part of fixed size (ids, times, flags)
that one ``struct`` call writes. Filling in the generated ``Span`` takes two to three times as long.
Source of the field numbers: opentelemetry/proto/trace/v1/trace.proto.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from struct import Struct
from typing import TypeVar

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Status
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

from spanweld import __version__
from spanweld.model import AttributeValue, Link, Resource, Span, StatusCode

SCOPE_NAME = "spanweld"
SCOPE_VERSION = __version__

_HAS_IS_REMOTE = 0x100
_IS_REMOTE = 0x200

# Tags and lengths of: trace_id (1), span_id (2), start (7) and end (8) in ns, flags (16).
_FIXED = Struct("<BB16sBB8sBQBQHI").pack
_PARENT_TAG = b"\x22\x08"
_ATTRIBUTE_TAG = b"\x4a"
_KEY_TAG = b"\x0a"
_VALUE_TAG = b"\x12"
_STRING_VALUE_TAG = b"\x0a"
_INT_VALUE_TAG = b"\x18"
_ONE_BYTE = tuple(bytes((number,)) for number in range(0x80))
_SPANS_TAG = b"\x12"
_SCOPE_SPANS_TAG = b"\x12"
_RESOURCE_SPANS_TAG = b"\x0a"

# A value that seldom comes again (a path with an id, a port) may push out the others: all are then
# encoded once more. Long ones are not kept, so that the cache stays below a few megabytes.
_CACHE_ENTRIES = 4096
_CACHED_BYTES = 256


SCALARS = frozenset((str, int, bool, float))
"""The types of attribute values whose encoded form is worth keeping."""

P = TypeVar("P", bytes, str)


def span_flags(span: Span) -> int:
    """OTLP's ``Span.flags``: W3C trace flags, and whether the parent is remote (which is always known)."""
    return span.context.flags & 0xFF | _HAS_IS_REMOTE | (_IS_REMOTE if span.parent_is_remote else 0)


def link_flags(link: Link) -> int:
    """OTLP's ``Span.Link.flags``: W3C trace flags, and whether the linked span context is remote."""
    return link.context.flags & 0xFF | _HAS_IS_REMOTE | (_IS_REMOTE if link.context.is_remote else 0)


def clean_text(text: str) -> str:
    """The text with what UTF-8 cannot carry (lone surrogates, from bytes of a peer) replaced by ``?``."""
    return text.encode("utf-8", "replace").decode("utf-8")


def fits_int64(number: int) -> bool:
    """Whether OTLP's ``int_value`` can hold the number."""
    return -(1 << 63) <= number < 1 << 63


class Parts(dict[Hashable, P]):
    """Encoded parts that may come again: short ones only, and only so many."""

    def keep(self, key: Hashable, part: P) -> P:
        """Remembers the part where it is worth it, and returns it."""
        if len(part) <= _CACHED_BYTES:
            if len(self) >= _CACHE_ENTRIES:
                self.clear()
            self[key] = part
        return part


class Encoder:
    """Encodes requests and keeps what repeats; for one thread at a time."""

    def __init__(self) -> None:
        self._attributes: Parts[bytes] = Parts()
        self._heads: Parts[bytes] = Parts()

    def request(self, items: Iterable[tuple[Resource, Span]]) -> bytes:
        """The serialized request: one ``ResourceSpans`` for each resource object, spans in their order."""
        groups: dict[int, tuple[Resource, list[bytes]]] = {}
        for resource, span in items:
            group = groups.get(id(resource))
            if group is None:
                group = groups[id(resource)] = (resource, [])
            group[1].append(self.span(span))
        return b"".join(self._resource_spans(resource, spans) for resource, spans in groups.values())

    def span(self, span: Span) -> bytes:
        """The span as the field ``spans`` of a serialized ``ScopeSpans``: tag, length, message."""
        context = span.context
        parts = [
            _FIXED(
                0x0A,
                16,
                context.trace_id.to_bytes(16, "big"),
                0x12,
                8,
                context.span_id.to_bytes(8, "big"),
                0x39,
                span.start_ns,
                0x41,
                span.end_ns,
                0x0185,
                span_flags(span),
            ),
            self._head(span),
        ]
        if span.parent_span_id is not None:
            parts.append(_PARENT_TAG + span.parent_span_id.to_bytes(8, "big"))
        cached = self._attributes
        for key, value in span.attributes.items():
            if value.__class__ in SCALARS:
                # The type is part of the key, since 1, 1.0 and True are equal.
                cache_key = (key, value, value.__class__)
                part = cached.get(cache_key)
                parts.append(cached.keep(cache_key, _attribute(key, value)) if part is None else part)
            else:
                parts.append(_attribute(key, value))
        if span.links or span.trace_state:
            parts.append(_rest(span))
        return _delimited(_SPANS_TAG, b"".join(parts))

    def _head(self, span: Span) -> bytes:
        key = (span.name, span.kind, span.status, span.status_message)
        head = self._heads.get(key)
        if head is None:
            message = SpanMessage(name=clean_text(span.name), kind=span.kind.value)  # type: ignore[arg-type]
            if span.status is not StatusCode.UNSET:
                status = Status(
                    code=span.status.value,  # type: ignore[arg-type]
                    message=clean_text(span.status_message),
                )
                message.status.CopyFrom(status)
            head = self._heads.keep(key, message.SerializeToString())
        return head

    def _resource_spans(self, resource: Resource, spans: list[bytes]) -> bytes:
        head = ResourceSpans(resource=ResourceMessage(attributes=_key_values(resource.attributes)))
        scope = ScopeSpans(scope=InstrumentationScope(name=SCOPE_NAME, version=SCOPE_VERSION))
        body = scope.SerializeToString() + b"".join(spans)
        return _delimited(_RESOURCE_SPANS_TAG, head.SerializeToString() + _delimited(_SCOPE_SPANS_TAG, body))


def _rest(span: Span) -> bytes:
    message = SpanMessage(trace_state=clean_text(span.trace_state))
    for link in span.links:
        message.links.add(
            trace_id=link.context.trace_id.to_bytes(16, "big"),
            span_id=link.context.span_id.to_bytes(8, "big"),
            attributes=_key_values(link.attributes),
            flags=link_flags(link),
        )
    return message.SerializeToString()


def _key_values(attributes: Mapping[str, AttributeValue]) -> list[KeyValue]:
    return [_key_value(key, value) for key, value in attributes.items()]


def _attribute(key: str, value: AttributeValue) -> bytes:
    # Texts and counts by hand, in a third of the time: they are what varies (paths, ports) most.
    if isinstance(value, str):
        any_value = _delimited(_STRING_VALUE_TAG, value.encode("utf-8", "replace"))
    elif value.__class__ is int and 0 <= value < 1 << 63:
        any_value = _INT_VALUE_TAG + _varint(value)
    else:
        any_value = _any_value(value).SerializeToString()
    return _delimited(
        _ATTRIBUTE_TAG,
        _delimited(_KEY_TAG, key.encode("utf-8", "replace")) + _delimited(_VALUE_TAG, any_value),
    )


def _key_value(key: str, value: AttributeValue) -> KeyValue:
    return KeyValue(key=clean_text(key), value=_any_value(value))


def _any_value(value: AttributeValue) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=clean_text(value))
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value) if fits_int64(value) else AnyValue(string_value=str(value))
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(array_value=ArrayValue(values=[_any_value(item) for item in value]))


def _delimited(tag: bytes, body: bytes) -> bytes:
    return tag + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _ONE_BYTE[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    result = bytearray()
    while number >= 0x80:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    result.append(number)
    return bytes(result)
