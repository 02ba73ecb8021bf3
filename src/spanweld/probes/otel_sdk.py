"""OpenTelemetry SDK: manual spans, and the adoption of those that are roots."""

from __future__ import annotations

from collections.abc import Mapping

from spanweld.bpf.clock import Clock
from spanweld.bpf.events import (
    ADOPTION_EVENT,
    MANUAL_ROOT_EVENT,
    MANUAL_SPAN_EVENT,
    AdoptionEvent,
    EventKind,
    LayoutCheck,
    ManualRelation,
    ManualRootEvent,
    ManualSpanEvent,
    ManualStatus,
)
from spanweld.bpf.events import Adoption as AdoptionState
from spanweld.model import (
    Origin,
    Span,
    SpanContext,
    SpanId,
    SpanKind,
    StatusCode,
    TraceId,
)
from spanweld.probes.declaration import (
    AdoptionChanged,
    Decoded,
    Instrumentation,
    ManualRoot,
    Place,
    Probe,
)

_NANOSECONDS = 1_000_000_000
_PAD = bytes(MANUAL_SPAN_EVENT.size)
_STATUS = {
    ManualStatus.UNSET: StatusCode.UNSET,
    ManualStatus.OK: StatusCode.OK,
    ManualStatus.ERROR: StatusCode.ERROR,
}
_MISMATCH = {
    LayoutCheck.TRACE_ID: "the trace id that the SDK had just made",
    LayoutCheck.SPAN_ID: "the span id that the SDK had just made",
    LayoutCheck.PARENT_ID: "a child's parent id",
    LayoutCheck.PLAUSIBLE: "a root's parent id and start time",
}


def decode_manual_span(data: bytes, clock: Clock, span_kinds: Mapping[int, int]) -> Decoded:
    """EVENT_MANUAL_SPAN -> a manual span, with its name, times, kind and status."""
    event = ManualSpanEvent._make(MANUAL_SPAN_EVENT.unpack(data + _PAD[len(data) :]))
    end_ns = clock.unix_ns(event.head_at)
    if event.end_seconds:
        end_ns = event.end_seconds * _NANOSECONDS + event.end_nanos
    return Span(
        name=event.name[: event.name_length].decode("utf-8", "replace"),
        context=SpanContext(
            TraceId(event.trace_id_high << 64 | event.trace_id_low), SpanId(event.span_id), event.flags
        ),
        parent_span_id=SpanId(event.parent_span_id) if event.parent_span_id else None,
        parent_is_remote=False,
        kind=SpanKind(span_kinds.get(event.kind, SpanKind.INTERNAL)),
        start_ns=event.start_seconds * _NANOSECONDS + event.start_nanos,
        end_ns=end_ns,
        origin=Origin.MANUAL,
        attributes={"spanweld.adopted": True} if event.relation == ManualRelation.ADOPTED else {},
        status=_STATUS[ManualStatus(event.status)],
    )


def decode_manual_root(data: bytes, clock: Clock, span_kinds: Mapping[int, int]) -> Decoded:  # noqa: ARG001
    """EVENT_MANUAL_ROOT -> the root, and the server span that will link to it."""
    event = ManualRootEvent._make(MANUAL_ROOT_EVENT.unpack(data))
    trace_id = TraceId(event.trace_id_high << 64 | event.trace_id_low)
    return ManualRoot(
        SpanId(event.server_span_id), SpanContext(trace_id, SpanId(event.span_id), event.flags & 0xFF)
    )


def decode_adoption(data: bytes, clock: Clock, span_kinds: Mapping[int, int]) -> Decoded:  # noqa: ARG001
    """EVENT_ADOPTION -> whether adoption goes on, and what did not fit if not."""
    event = AdoptionEvent._make(ADOPTION_EVENT.unpack(data))
    if event.adoption == AdoptionState.VERIFIED:
        return AdoptionChanged("")
    return AdoptionChanged(f"{_MISMATCH[LayoutCheck(event.what)]} is not where the layout says")


_GENERATORS = "opentelemetry_sdk::trace::id_generator"
_GENERATOR = f"<{_GENERATORS}::RandomIdGenerator as {_GENERATORS}::IdGenerator>"

INSTRUMENTATION = Instrumentation(
    name="otel_sdk",
    crate="opentelemetry_sdk",
    releases=("0.31",),
    probes=(
        Probe("otel_new_trace_id", Place.ENTRY, f"{_GENERATOR}::new_trace_id", returned_early=True),
        Probe("otel_new_trace_id_returns", Place.RETURNS, f"{_GENERATOR}::new_trace_id", until_verified=True),
        Probe("otel_new_span_id_returns", Place.RETURNS, f"{_GENERATOR}::new_span_id", until_verified=True),
        Probe(
            "otel_build_recording_span",
            Place.ENTRY,
            "opentelemetry_sdk::trace::tracer::SdkTracer::build_recording_span",
        ),
        Probe(
            "otel_ensure_ended_and_exported",
            Place.ENTRY,
            "opentelemetry_sdk::trace::span::Span::ensure_ended_and_exported",
        ),
        Probe("otel_epoll_wait_interrupted", Place.TRACEPOINT, for_stop_writer=True),
        Probe("otel_epoll_pwait_interrupted", Place.TRACEPOINT, for_stop_writer=True),
        Probe("otel_signal_merged", Place.TRACEPOINT, for_stop_writer=True),
    ),
    decoders={
        EventKind.MANUAL_SPAN: decode_manual_span,
        EventKind.MANUAL_ROOT: decode_manual_root,
        EventKind.ADOPTION: decode_adoption,
    },
)
