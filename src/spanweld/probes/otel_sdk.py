"""OpenTelemetry SDK: manual spans, and the adoption of those that are roots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from spanweld.bpf.clock import Clock
from spanweld.bpf.events import (
    ADOPTION_EVENT,
    MANUAL_ROOT_EVENT,
    MANUAL_SPAN_EVENT,
    SPAN_SAMPLE_EVENT,
    AdoptionEvent,
    EventKind,
    LayoutCheck,
    ManualRelation,
    ManualRootEvent,
    ManualSpanEvent,
    ManualStatus,
    SpanSampleEvent,
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
    Release,
    Seen,
    SpanSample,
    release_of,
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
    LayoutCheck.CONTEXT: "a span's own context",
    LayoutCheck.DATA: "whether a span has ended",
    LayoutCheck.ARGUMENTS: "what build_recording_span is called with",
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


def decode_span_sample(data: bytes, clock: Clock, span_kinds: Mapping[int, int]) -> Decoded:  # noqa: ARG001
    """EVENT_SPAN_SAMPLE -> a span as it was built, with the ids that were generated for it."""
    event = SpanSampleEvent._make(SPAN_SAMPLE_EVENT.unpack(data))
    return SpanSample(
        number=event.number,
        root=bool(event.began),
        trace_id=event.trace_id_high << 64 | event.trace_id_low if event.trace_noted else None,
        span_id=event.span_id if event.span_noted else None,
        unix_ns=clock.unix_ns(event.head_at),
        memory=event.memory,
    )


OLDEST = Release(0, 17)
"""Older releases of the SDK are not known."""
_OWN_CRATE = Release(0, 18)
"""Before, the SDK was a module of the crate opentelemetry."""
BUILDS_APART = Release(0, 22)
"""Since then spans that are recorded are built by a function of their own, build_recording_span."""
_SDK_TRACER = Release(0, 28)
"""Since then Tracer is called SdkTracer."""
_API_CRATE = Release(0, 21)
"""Before, from 0.18 on, the traits were in the crate opentelemetry_api."""
_BUILDS_EARLY = Release(0, 32)
"""Since then tracing-opentelemetry has the SDK build a span when it starts, not when it ends."""


def builds_late(crates: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether ``tracing`` spans get their ids when they start, and are built when they end."""
    return any(
        (release := release_of(version)) is not None and release < _BUILDS_EARLY
        for version in crates.get("tracing-opentelemetry", ())
    )


_Path = tuple[str, Release | None, Release | None]
"""A function's path, since which release it has it, and before which."""


def _probes(
    program: str, place: Place, paths: Iterable[_Path], *, seen: tuple[Seen, ...] = (), early: bool = False
) -> tuple[Probe, ...]:
    """One program's probes, of a function whose path changed from release to release."""
    return tuple(
        Probe(program, place, symbol, since=since, before=before, seen=seen, returned_early=early)
        for symbol, since, before in paths
    )


def _generator(function: str) -> tuple[_Path, ...]:
    """A method of every id generator in the image, the SDK's or the service's own."""
    return (
        (f"<* as opentelemetry::trace::IdGenerator>::{function}", None, _OWN_CRATE),
        (f"<* as opentelemetry_sdk::trace::id_generator::IdGenerator>::{function}", _OWN_CRATE, None),
    )


def _noted(program: str, function: str) -> tuple[Probe, ...]:
    """What a generator returns, until that is where the layout says."""
    probes = _probes(program, Place.RETURNS, _generator(function))
    return tuple(replace(probe, until_verified=True) for probe in probes)


_BUILD_WITH_CONTEXT: tuple[_Path, ...] = tuple(
    (f"<{tracer} as {api}::trace::tracer::Tracer>::build_with_context", since, before)
    for tracer, api, since, before in (
        ("opentelemetry::sdk::trace::tracer::Tracer", "opentelemetry", None, _OWN_CRATE),
        ("opentelemetry_sdk::trace::tracer::Tracer", "opentelemetry_api", _OWN_CRATE, _API_CRATE),
        ("opentelemetry_sdk::trace::tracer::Tracer", "opentelemetry", _API_CRATE, _SDK_TRACER),
        ("opentelemetry_sdk::trace::tracer::SdkTracer", "opentelemetry", _SDK_TRACER, None),
    )
)
_BUILD_RECORDING_SPAN: tuple[_Path, ...] = (
    ("opentelemetry_sdk::trace::tracer::Tracer::build_recording_span", BUILDS_APART, _SDK_TRACER),
    ("opentelemetry_sdk::trace::tracer::SdkTracer::build_recording_span", _SDK_TRACER, None),
)
_ENSURE_ENDED: tuple[_Path, ...] = (
    ("opentelemetry::sdk::trace::span::Span::ensure_ended_and_exported", None, _OWN_CRATE),
    ("opentelemetry_sdk::trace::span::Span::ensure_ended_and_exported", _OWN_CRATE, None),
)
_ON_END: tuple[_Path, ...] = (
    ("<* as opentelemetry::sdk::trace::span_processor::SpanProcessor>::on_end", None, _OWN_CRATE),
    ("<* as opentelemetry_sdk::trace::span_processor::SpanProcessor>::on_end", _OWN_CRATE, None),
)
_STOP_GUARDS = (
    Probe("otel_wait_interrupted", Place.TRACEPOINT, for_stop_writer=True),
    Probe("otel_signal_merged", Place.TRACEPOINT, for_stop_writer=True),
)

INSTRUMENTATION = Instrumentation(
    name="otel_sdk",
    probes=(
        *_probes("otel_new_trace_id", Place.ENTRY, _generator("new_trace_id"), early=True),
        *_noted("otel_new_trace_id_returns", "new_trace_id"),
        *_noted("otel_new_span_id_returns", "new_span_id"),
        *_probes("otel_build_with_context", Place.ENTRY, _BUILD_WITH_CONTEXT, seen=(Seen.RETURNED,)),
        *_probes(
            "otel_build_with_context_returns", Place.RETURNS, _BUILD_WITH_CONTEXT, seen=(Seen.RETURNED,)
        ),
        *_probes("otel_build_recording_span", Place.ENTRY, _BUILD_RECORDING_SPAN, seen=(Seen.BUILT,)),
        *_probes(
            "otel_ensure_ended_and_exported", Place.ENTRY, _ENSURE_ENDED, seen=(Seen.BUILT, Seen.RETURNED)
        ),
        *_probes("otel_on_end", Place.ENTRY, _ON_END, seen=(Seen.EXPORTED,)),
        *_STOP_GUARDS,
    ),
    decoders={
        EventKind.MANUAL_SPAN: decode_manual_span,
        EventKind.MANUAL_ROOT: decode_manual_root,
        EventKind.ADOPTION: decode_adoption,
        EventKind.SPAN_SAMPLE: decode_span_sample,
    },
)
