"""What a probe is: data that says where a BPF program goes, and what is made of its events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from spanweld.bpf.clock import Clock
from spanweld.bpf.events import EventKind
from spanweld.bpf.libbpf import BpfObject, Link
from spanweld.model import Span, SpanContext, SpanId


class Place(Enum):
    """Where in a function, or that the program's own section names a tracepoint, or what sockets do.

    ``NEW_TASK``: wherever a task of tokio's gets its id; the program is told in which register it is.
    """

    ENTRY = "entry"
    RETURNS = "returns"
    NEW_TASK = "new task"
    TRACEPOINT = "tracepoint"
    SOCKETS = "sockets"


class Seen(Enum):
    """Where spans are seen: the first way for which every probe has a place is taken."""

    BUILT = "as the SDK builds them"
    RETURNED = "when the SDK has built them"
    EXPORTED = "when the SDK exports them"


class Release(NamedTuple):
    """A crate's version as far as it decides on code: major and minor."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


def release_of(version: str) -> Release | None:
    """The release of a version such as ``0.31.0-beta.1``; None for what is no version."""
    parts = version.split(".")
    if len(parts) < 3 or not (parts[0].isascii() and parts[0].isdigit() and parts[1].isdigit()):
        return None
    return Release(int(parts[0]), int(parts[1]))


@dataclass(frozen=True, slots=True)
class Probe:
    """One BPF program and its place.

    ``symbol`` is the demangled path of a function, without hash, as ``image.find_functions`` takes it;
    None for a tracepoint and for sockets. ``since`` and ``before`` bound the releases of the crate that have
    the function under this path. ``seen`` are the ways of seeing spans that need it; none: always.
    ``returned_early``: the stop writer makes the function return at its first
    instruction, which must allow it. ``until_verified``: taken off once the layout is verified, unless
    spans are built late. ``for_stop_writer``: a tracepoint that only the stop writer needs.
    ``system_calls``: the tracepoint is that of their entries, where the program's section does not say it.
    ``when_asked``: attached to a target once a program has said that it is needed (``WakesWanted``).
    """

    program: str
    place: Place
    symbol: str | None = None
    since: Release | None = None
    before: Release | None = None
    seen: tuple[Seen, ...] = ()
    returned_early: bool = False
    until_verified: bool = False
    for_stop_writer: bool = False
    system_calls: tuple[str, ...] = ()
    when_asked: bool = False

    def fits(self, release: Release, seen: Seen) -> bool:
        """Whether it is needed with this release of the crate, where spans are seen so."""
        return (
            (self.since is None or release >= self.since)
            and (self.before is None or release < self.before)
            and (not self.seen or seen in self.seen)
        )

    def attach_tracepoint(self, bpf: BpfObject) -> list[Link]:
        """Attaches its program to its tracepoint, or to each one that it has."""
        if not self.system_calls:
            return [bpf.attach(self.program)]
        return [bpf.attach_entry(self.program, system_call) for system_call in self.system_calls]


@dataclass(frozen=True, slots=True)
class ConnectionOpaque:
    """A connection is not followed any more; ``peer`` is its address, with its port if it is the server."""

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


@dataclass(frozen=True, slots=True)
class SpanSample:
    """A span of the SDK as it was built, to learn the layout by.

    The ids are those that the generator returned for it; None where it was not asked. ``number`` counts
    the samples of the target, from 0.
    """

    number: int
    root: bool
    trace_id: int | None
    span_id: int | None
    unix_ns: int
    memory: bytes


@dataclass(frozen=True, slots=True)
class SocketLetGo:
    """A socket of the target needs no headers any more; ``cookie`` is the kernel's number of it."""

    cookie: int


@dataclass(frozen=True, slots=True)
class OldConnection:
    """A request went out on a connection that is older than the agent, without a header."""


@dataclass(frozen=True, slots=True)
class RequestCarried:
    """What a request brought besides its parent; its server span has just begun."""

    server_span_id: SpanId
    trace_state: str
    baggage: str


@dataclass(frozen=True, slots=True)
class WakesWanted:
    """Who wakes which task is needed from now on, to tell what causes the target's requests out."""


Decoded = (
    Span
    | ConnectionOpaque
    | ManualRoot
    | AdoptionChanged
    | SpanSample
    | RequestCarried
    | SocketLetGo
    | OldConnection
    | WakesWanted
)
Decoder = Callable[[bytes, Clock, Mapping[int, int]], Decoded]
"""Takes an event's bytes, the clock, and the target's table from stored span kind to SpanKind."""


@dataclass(frozen=True, slots=True)
class Instrumentation:
    """Probes that attach all or none, and the decoders of their events."""

    name: str
    probes: tuple[Probe, ...]
    decoders: Mapping[EventKind, Decoder]
