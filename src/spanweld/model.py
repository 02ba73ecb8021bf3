"""The project's nouns: identifiers, span contexts, spans. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NewType

Pid = NewType("Pid", int)
Tid = NewType("Tid", int)
FileOffset = NewType("FileOffset", int)
VirtAddr = NewType("VirtAddr", int)
TraceId = NewType("TraceId", int)
"""128 bits; its 32 hexadecimal digits, most significant first, are the W3C form."""
SpanId = NewType("SpanId", int)
"""64 bits, never 0 for a span that exists."""

AttributeValue = str | bool | int | float | Sequence[str] | Sequence[int]


class SpanKind(IntEnum):
    """Numbers as in OTLP's ``Span.SpanKind``."""

    INTERNAL = 1
    SERVER = 2
    CLIENT = 3
    PRODUCER = 4
    CONSUMER = 5


class StatusCode(IntEnum):
    """Numbers as in OTLP's ``Status.StatusCode``."""

    UNSET = 0
    OK = 1
    ERROR = 2


class Origin(Enum):
    """Who made a span: the agent, or the service with the OpenTelemetry SDK."""

    AUTOMATIC = "auto"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class SpanContext:
    """What is passed on of a span: its trace, itself, and the W3C trace flags (bit 0: sampled)."""

    trace_id: TraceId
    span_id: SpanId
    flags: int = 1
    is_remote: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """A relation to a span that is not the parent."""

    context: SpanContext
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """A finished span. Times are nanoseconds since the Unix epoch.

    ``server_span_id`` is of the request that it belongs to, as far as that is known of an automatic span.
    """

    name: str
    context: SpanContext
    parent_span_id: SpanId | None
    parent_is_remote: bool
    kind: SpanKind
    start_ns: int
    end_ns: int
    origin: Origin
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    status: StatusCode = StatusCode.UNSET
    status_message: str = ""
    links: tuple[Link, ...] = ()
    trace_state: str = ""
    server_span_id: SpanId | None = None


@dataclass(frozen=True, slots=True)
class Resource:
    """What a target is, as OpenTelemetry resource attributes."""

    attributes: Mapping[str, AttributeValue]

    @property
    def service_name(self) -> str:
        """The value of ``service.name``."""
        return str(self.attributes.get("service.name", "unknown_service"))
