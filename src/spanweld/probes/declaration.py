"""What a probe is: data that says where a BPF program goes, and what is made of its events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from spanweld.bpf.clock import Clock
from spanweld.bpf.events import EventKind
from spanweld.model import Span, SpanContext, SpanId


class Place(Enum):
    """Where in a function, or that the program's own section names a tracepoint."""

    ENTRY = "entry"
    RETURNS = "returns"
    TRACEPOINT = "tracepoint"


@dataclass(frozen=True, slots=True)
class Probe:
    """One BPF program and its place.

    ``symbol`` is the demangled path of a function, without hash, as ``image.find_functions`` takes it;
    None for a tracepoint. ``returned_early``: the stop writer makes the function return at its first
    instruction, which must allow it. ``until_verified``: taken off once the layout is verified.
    ``for_stop_writer``: a tracepoint that only the stop writer needs.
    """

    program: str
    place: Place
    symbol: str | None = None
    returned_early: bool = False
    until_verified: bool = False
    for_stop_writer: bool = False


@dataclass(frozen=True, slots=True)
class ConnectionOpaque:
    """A connection is not followed any more; ``peer`` is ``address:port``."""

    reason: str
    peer: str


@dataclass(frozen=True, slots=True)
class ManualRoot:
    """With nothing written: a root that the service began while a server span was active."""

    server_span_id: SpanId
    context: SpanContext


@dataclass(frozen=True, slots=True)
class AdoptionChanged:
    """The layout was verified in the process (``mismatch`` is empty), or did not fit."""

    mismatch: str


Decoded = Span | ConnectionOpaque | ManualRoot | AdoptionChanged
Decoder = Callable[[bytes, Clock, Mapping[int, int]], Decoded]
"""Takes an event's bytes, the clock, and the target's table from stored span kind to SpanKind."""


@dataclass(frozen=True, slots=True)
class Instrumentation:
    """Probes that attach all or none, and the decoders of their events.

    ``crate`` is the crate whose functions are probed and ``releases`` the versions (major.minor) that
    the programs know; None where no symbol is needed.
    """

    name: str
    probes: tuple[Probe, ...]
    decoders: Mapping[EventKind, Decoder]
    crate: str | None = None
    releases: tuple[str, ...] = ()
