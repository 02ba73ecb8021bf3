"""A layout that nobody knows, learned in the live process.

Whenever the SDK has built a span, the programs send its memory and the ids that its generator returned
within that very call. A place is where each id was found in every span, and the only such place. What
is learned is enough to adopt spans, not to show them: name, kind and status are not looked for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

SPANS_WANTED = 8
"""So many roots with their trace ids, and so many children of known spans, at least."""
SAMPLES_MAX = 2000
"""When so many samples told no more, nothing will."""

T = TypeVar("T")

_U64 = 8
_CONTEXT_SIZE = 64
"""No SpanContext was ever larger; all of its fields lie so near to each other."""
# A start time set by hand may be any since 1973; of most spans it is the present.
_ERA = range(100_000_000, 1 << 32)
_DAY = 86_400
_NANOSECONDS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """A ``Span`` as it was built. Ids are None where the generator was not asked for them.

    ``root``: the generator was asked for a trace id. ``unix_seconds``: when that was.
    """

    root: bool
    trace_id: int | None
    span_id: int | None
    unix_seconds: int
    memory: bytes


@dataclass(frozen=True, slots=True)
class LearnedLayout:
    """The fields of ``SdkLayout`` that were learned; ``span_context`` is 0, so all are relative to the Span.

    A new span ends when it starts: ``span_start_*`` may be the place of its end time.
    """

    span_context: int
    context_trace_id: int
    context_span_id: int
    context_flags: int
    span_parent_id: int
    span_start_seconds: int
    span_start_nanos: int

    def __str__(self) -> str:
        places = {
            "trace id": self.context_trace_id,
            "span id": self.context_span_id,
            "flags": self.context_flags,
            "parent": self.span_parent_id,
            "time": self.span_start_seconds,
        }
        return ", ".join(f"{name} at {place:#x}" for name, place in places.items())


class Learner:
    """Takes samples until the layout is certain, or certainly not to be had."""

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._look_at = 2 * SPANS_WANTED

    def add(self, sample: Sample) -> LearnedLayout | str | None:
        """The layout; None while more samples are needed; a sentence when there were enough of them."""
        self._samples.append(sample)
        number = len(self._samples)
        if number < self._look_at and number < SAMPLES_MAX:
            return None
        # A look takes as long as there are samples: the more, the rarer.
        self._look_at = number + max(SPANS_WANTED, number // 4)
        found = solve(self._samples)
        return found if isinstance(found, LearnedLayout) or number >= SAMPLES_MAX else None


@dataclass(frozen=True, slots=True)
class _Span:
    """A sample with its memory as integers, and what its context says."""

    sample: Sample
    words: tuple[int, ...]
    trace_id: int
    span_id: int


def solve(samples: Sequence[Sample]) -> LearnedLayout | str:
    """The layout that is the only one for all the samples, or a sentence that says what is not certain."""
    memories = [struct.unpack(f"<{len(sample.memory) // _U64}Q", sample.memory) for sample in samples]
    pairs = list(zip(samples, memories, strict=True))
    size = min(map(len, memories), default=0)
    roots = [(sample, words) for sample, words in pairs if sample.trace_id is not None]
    named = [(sample, words) for sample, words in pairs if sample.span_id is not None]
    if len(roots) < SPANS_WANTED or len(named) < SPANS_WANTED:
        return f"{len(roots)} root spans were seen to get ids, of {len(samples)}"
    trace_at = _only(
        (at for at in range(size - 1) if all(_wide(words, at) == s.trace_id for s, words in roots)),
        "the trace id",
    )
    span_at = _only(
        (at for at in range(size) if all(words[at] == sample.span_id for sample, words in named)),
        "the span id",
    )
    if isinstance(trace_at, str):
        return trace_at
    if isinstance(span_at, str):
        return span_at
    spans = [_Span(s, words, _wide(words, trace_at), words[span_at]) for s, words in pairs]
    found: list[LearnedLayout] = []
    why = ""
    flags = _flags_places(samples, trace_at * _U64, span_at * _U64)
    for flags_at in flags:
        # What is sampled is recorded; of the others only the ids need be there.
        recorded = [number for number, span in enumerate(spans) if span.sample.memory[flags_at]]
        parent_at = _parent_place(spans, recorded, size)
        start_at = _start_place([spans[number] for number in recorded], size)
        if isinstance(parent_at, str) or isinstance(start_at, str):
            why = next(text for text in (parent_at, start_at) if isinstance(text, str))
            continue
        found.append(
            LearnedLayout(
                0,
                trace_at * _U64,
                span_at * _U64,
                flags_at,
                parent_at * _U64,
                start_at * _U64,
                (start_at + 1) * _U64,
            )
        )
    if not found:
        return why or "no place has the trace flags in every span"
    return _only(found, "the trace flags")


def _wide(words: Sequence[int], at: int) -> int:
    return words[at] | words[at + 1] << 64


def _only(places: Iterable[T], what: str) -> T | str:
    found = list(places)
    if len(found) == 1:
        return found[0]
    return f"{len(found) or 'no'} places have {what} in every span"


def _flags_places(samples: Sequence[Sample], trace_at: int, span_at: int) -> list[int]:
    """Bytes in the reach of a SpanContext that are 1 or 0, beside one, is_remote, that is always 0."""
    first = max(0, max(trace_at + 2 * _U64, span_at + _U64) - _CONTEXT_SIZE)
    last = min(min(trace_at, span_at) + _CONTEXT_SIZE, *(len(sample.memory) for sample in samples))

    def values(at: int) -> set[int]:
        return {sample.memory[at] for sample in samples} if first <= at < last else {1}

    return [
        at
        for at in range(first, last)
        if 1 in (found := values(at)) and found <= {0, 1} and (values(at - 1) == {0} or values(at + 1) == {0})
    ]


def _parent_place(spans: Sequence[_Span], recorded: Sequence[int], size: int) -> int | str:
    """0 in every root; in children of traces that are known the id of a span that was there before.

    A remote parent is not known, whose trace may be known by another child: it is not 0 either.
    """
    first_of_trace: dict[int, int] = {}
    numbers: dict[tuple[int, int], int] = {}
    for number, span in enumerate(spans):
        first_of_trace.setdefault(span.trace_id, number)
        numbers.setdefault((span.trace_id, span.span_id), number)
    roots = [spans[number].words for number in recorded if spans[number].sample.root]
    children = [
        (number, spans[number])
        for number in recorded
        if not spans[number].sample.root and first_of_trace[spans[number].trace_id] < number
    ]
    if len(roots) < SPANS_WANTED:
        return f"{len(roots)} root spans were sampled, of {len(spans)} spans"
    if len(children) < SPANS_WANTED:
        return f"{len(children)} children of local spans were seen, of {len(spans)} spans"

    def has_parents(at: int) -> bool:
        return (
            not any(words[at] for words in roots)
            and all(span.words[at] for _, span in children)
            and sum(
                numbers.get((span.trace_id, span.words[at]), number) < number for number, span in children
            )
            >= SPANS_WANTED
        )

    return _only(filter(has_parents, range(size)), "the parent")


def _start_place(recorded: Sequence[_Span], size: int) -> int | str:
    """The first of the one or two places, for start and end, that are times in every span."""

    def is_time(at: int) -> bool:
        return all(
            span.words[at] in _ERA and span.words[at + 1] & 0xFFFF_FFFF < _NANOSECONDS for span in recorded
        ) and 2 * sum(abs(span.words[at] - span.sample.unix_seconds) < _DAY for span in recorded) >= len(
            recorded
        )

    places = list(filter(is_time, range(size - 1)))
    if len(places) in (1, 2):
        return places[0]
    return f"{len(places) or 'no'} places have the times in every span"
