"""The layout of the SDK's ``Span``, from the machine code of the SDK's own functions.

What is looked for is what the code must do, whatever the compiler made of it (``image/flow``):

- ``build_with_context`` makes the new span's context: what ``new_trace_id`` and ``new_span_id`` return goes
  into it, a byte with its lowest bit set (sampled), and a byte that is always 0 (not remote).
- ``build_recording_span`` (0.22 and newer; before, the same function) makes the Span: it copies that context,
  the parent's span id and whether it is remote, and takes kind and start time of the builder, with "internal"
  and the present time where the builder has none.
- ``ensure_ended_and_exported`` takes the data, puts the end time into it, and knows how it is handed on.
- The methods of ``dyn ObjectSafeSpan``, by which an active span is reached: ``span_context`` and
  ``is_recording`` are called, ``update_name`` is followed, and ``set_status`` is tried with one status over
  another.

A field is there only if one place alone has all of its signs; what two functions show must agree, or there
is no layout. Source: opentelemetry_sdk ``src/trace/{span,tracer}.rs``, opentelemetry
``src/trace/span_context.rs``, ``src/global/trace.rs``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from spanweld.image import Function, Image, locate
from spanweld.image.code import jumped_to
from spanweld.image.emulator import ARENA, EmulationError, Machine
from spanweld.image.flow import (
    STACK,
    Access,
    Bits,
    Call,
    Called,
    Flow,
    Loaded,
    Number,
    Pointer,
    Value,
    follow_all,
    options,
)
from spanweld.image.pointers import Pointers
from spanweld.model import SpanKind

SPAN_KINDS = (SpanKind.CLIENT, SpanKind.SERVER, SpanKind.PRODUCER, SpanKind.CONSUMER, SpanKind.INTERNAL)
"""In the order of their numbers, as ``SpanKind`` declares them in every version."""

BUILDER = "build_with_context"
RECORDER = "build_recording_span"
ENDER = "ensure_ended_and_exported"
SPAN_CONTEXT, IS_RECORDING = "span_context", "is_recording"
UPDATE_NAME, SET_STATUS = "update_name", "set_status"

_METHOD = (
    "<* as opentelemetry*::trace::ObjectSafeSpan>::{}",
    "<opentelemetry*::trace::span::Span as opentelemetry*::trace::span::Span>::{}",
)
_PATHS = {
    BUILDER: ("<opentelemetry*::trace::tracer::*Tracer as opentelemetry*::Tracer>::build_with_context",),
    RECORDER: ("opentelemetry*::trace::tracer::*Tracer::build_recording_span",),
    ENDER: ("opentelemetry*::trace::span::Span::ensure_ended_and_exported",),
    **{
        name: tuple(path.format(name) for path in _METHOD)
        for name in (SPAN_CONTEXT, IS_RECORDING, UPDATE_NAME, SET_STATUS)
    },
}
# Copies of one function, for other types or codegen units, say the same or nothing.
_MAX_COPIES = 8
# What the SDK's functions come nowhere near, so that a hostile file costs a second: bytes of code that are
# followed, functions that are tried.
_MAX_FOLLOWED = 1 << 17
_MAX_TRIED = 100
# What tells a span that has ended must be seen in two functions.
_ENOUGH = 2
_SPAN = Pointer(0, 0)
_WORD, _NANOS_SIZE = 8, 4
_INTEGERS = (1, 2, 4, 8)
# Slots of `dyn IdGenerator`, two in a row: after drop, size, alignment and Debug::fmt; with rustc 1.70 two
# words further on.
_NEW_TRACE_ID = (0x20, 0x30)
_CONTEXT_MAX = 64
# Of should_sample: after the place of its result, the sampler, the parent's context and the trace id.
_NAME_ARGUMENT = 5
_SAMPLED = Bits(ones=1, zeros=0)
_INTERNAL = SPAN_KINDS.index(SpanKind.INTERNAL)
# The end time is handed on in two registers, seconds and nanoseconds.
_NANOS_ARGUMENT = Pointer(2, 0)
_BILLION, _MASK_32 = 1_000_000_000, (1 << 32) - 1
_TOP_BIT = 1 << 63
_TEXT_SIZE = 3 * _WORD
# No Span comes near to it.
_MAX_SPAN = 0xF00
_NEW_STATUS = ARENA + 0x1000
# Fields that are no places.
_NUMBERS = frozenset(
    (
        "span_data_size",
        "span_data_none",
        "span_status_size",
        "status_unset",
        "status_ok",
        "end_argument_none_nanos",
    )
)
# Bytes of what lies in a Span besides its context. Where data is told to be none, other fields may lie.
_SIZES = {
    "span_parent_id": _WORD,
    "span_parent_is_remote": 1,
    "span_name_pointer": _WORD,
    "span_name_length": _WORD,
    "span_kind": 1,
    "span_start_seconds": _WORD,
    "span_start_nanos": _NANOS_SIZE,
    "span_end_seconds": _WORD,
    "span_end_nanos": _NANOS_SIZE,
    "span_status": _WORD,
}
_MAX_STEPS, _MAX_SMALL_STEPS = 400, 20
_SOME_FLAGS = (0, 1, 0x42, 0xFF)
_OLD, _NEW = 1, 2
# A status is told by the capacity of the text that an error has: an owned text of none, or no capacity.
_ERROR = 0
_TAGS = tuple(_TOP_BIT + number for number in range(6))
_ANY_DATA = (0, 1, 7, 1 << 32, _TOP_BIT - 1, (1 << 64) - 1)


class CodeError(Exception):
    """What the code says contradicts itself, or a field that is needed is not there; the text says which."""


@dataclass(slots=True)
class CodeLayout:
    """The fields of ``SdkLayout`` that the code shows, and for each the functions that do."""

    values: dict[str, Any] = field(default_factory=dict)
    read_from: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def put(self, name: str, value: Any, *functions: str) -> None:
        """Note a field; a CodeError if another function says otherwise, or for a place beyond any Span."""
        if name not in _NUMBERS and not 0 <= value < _MAX_SPAN:
            raise CodeError(f"{name} would be at {value:#x}")
        before = self.values.setdefault(name, value)
        if before != value:
            others = ", ".join(self.read_from[name])
            raise CodeError(f"{name} is {before:#x} by {others}, and {value:#x} by {', '.join(functions)}")
        self.read_from[name] = tuple(dict.fromkeys((*self.read_from.get(name, ()), *functions)))


def derive(image: Image) -> CodeLayout:
    """What the code of an image says; a CodeError if that is less than what adoption needs."""
    return _Reader(image).run()


@dataclass(frozen=True, slots=True)
class _Generated:
    """The calls of ``new_trace_id`` and ``new_span_id`` in a function, by address."""

    trace_ids: frozenset[int]
    span_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Context:
    """Where fields are in a span context, and the argument that points to it (0: the Span itself)."""

    argument: int
    trace_id: int
    span_id: int
    flags: int
    is_remote: int


class _Reader:
    def __init__(self, image: Image) -> None:
        self._image = image
        self._pointers = Pointers(image)
        self._functions = locate(image, [path for paths in _PATHS.values() for path in paths])
        self._layout = CodeLayout()
        self._may_follow = _MAX_FOLLOWED

    def run(self) -> CodeLayout:
        builder = self._only(BUILDER)
        recorder = self._functions[_PATHS[RECORDER][0]]
        built = self._follow(builder)
        stores = _stores(built)
        where = BUILDER
        if isinstance(recorder, str):
            context = self._context_of(built, {0: stores})
        else:
            function = self._only(RECORDER)
            where = RECORDER
            stores = _stores(self._follow(function))
            context = self._context_of(built, _handed_to(function, built, stores))
        self._read_place_of_context(context, stores)
        self._read_parent(context, stores, where)
        self._read_ender()
        self._read_times(stores, where)
        self._read_kind(stores, where)
        self._read_data(built)
        self._read_name(built, stores)
        self._read_status()
        _require_room(self._layout)
        return self._layout

    def _only(self, name: str) -> Function:
        [path] = _PATHS[name]
        found = self._functions[path]
        if isinstance(found, str):
            raise CodeError(found)
        if len(found) != 1:
            raise CodeError(f"it has {len(found)} functions {name}")
        return found[0]

    def _copies(self, name: str) -> list[Function]:
        """All functions of a name, and what they do nothing but jump to."""
        copies: dict[int, Function] = {}
        for path in _PATHS[name]:
            found = self._functions[path]
            for function in found if not isinstance(found, str) else ():
                body = jumped_to(self._image, function) or function
                copies[body.address] = body
        return list(copies.values())[:_MAX_COPIES]

    def _follow(self, function: Function) -> Flow:
        self._may_follow -= function.size
        if self._may_follow < 0:
            raise CodeError("its functions are longer than the SDK's are")
        return follow_all(self._image, function, self._pointers.word)

    def _context_of(self, built: Flow, places: Mapping[int, list[Access]]) -> _Context:
        """The one of some structs that is the new span's context."""
        generated = _generated(built)
        if generated is None:
            raise CodeError("build_with_context is not seen to ask for a trace id and a span id")
        tried = {
            call.target: None
            for call in built.calls
            if call.target and isinstance(call.arguments[0], Pointer)
        }
        setters = {target for target in list(tried)[:_MAX_TRIED] if self._sets_sampled(target)}
        sampled = {Called(call.address, 0) for call in built.calls if call.target in setters} | {_SAMPLED}
        found = [
            context
            for argument, stores in places.items()
            if (context := _context(argument, stores, generated, sampled)) is not None
        ]
        if len(found) != 1:
            raise CodeError(f"{len(found) or 'no'} places of build_with_context are a new span's context")
        return found[0]

    def _sets_sampled(self, function: int) -> bool:
        """Whether it is ``TraceFlags::with_sampled``, tried on some flags."""
        for flags in _SOME_FLAGS:
            for sampled in (0, 1):
                machine = Machine(self._image, 0, 0, 0)
                machine.write(ARENA, flags, 1)
                try:
                    result = machine.call(function, (ARENA, sampled), _MAX_SMALL_STEPS) & 0xFF
                except EmulationError:
                    return False
                if result != flags & ~1 | sampled:
                    return False
        return True

    def _read_place_of_context(self, context: _Context, stores: list[Access]) -> None:
        layout = self._layout
        starts = {
            start
            for function in self._copies(SPAN_CONTEXT)
            if (start := self._returned_place(function)) is not None
        }
        if context.argument:
            distances = {
                access.offset - access.value.offset
                for access in stores
                if isinstance(access.value, Loaded)
                and access.value.base == Pointer(context.argument, 0)
                and access.value.offset <= context.span_id < access.value.offset + access.size
            }
            if len(distances) != 1:
                raise CodeError("build_recording_span is not seen to copy the new span's context")
            [start] = distances
            layout.put("span_context", start, RECORDER)
            # Other types of spans have a span_context, too.
            if starts and start not in starts:
                raise CodeError(
                    f"span_context is {start:#x} by {RECORDER}, and no {SPAN_CONTEXT} returns that"
                )
        elif len(starts) != 1:
            raise CodeError("no function shows where a Span has its context")
        if starts:
            layout.put("span_context", layout.values.get("span_context", min(starts)), SPAN_CONTEXT)
        base = 0 if context.argument else layout.values["span_context"]
        for name in ("trace_id", "span_id", "flags", "is_remote"):
            layout.put(f"context_{name}", getattr(context, name) - base, BUILDER)

    def _returned_place(self, function: Function) -> int | None:
        """What a function of a Span returns: the distance of the address from the Span's."""
        machine = Machine(self._image, 0, 0, 0)
        try:
            returned = machine.call(function.address, (ARENA,), _MAX_STEPS)
        except EmulationError:
            return None
        return returned - ARENA if 0 <= returned - ARENA < _NEW_STATUS - ARENA else None

    def _read_parent(self, context: _Context, stores: list[Access], where: str) -> None:
        layout = self._layout
        span_id, is_remote = layout.values["context_span_id"], layout.values["context_is_remote"]
        if not context.argument:
            self._read_parent_of_builder(context, stores)
            return
        parent = Pointer(context.argument - 1, 0)
        values = {parent, Loaded(parent, span_id, _WORD)}
        places = {access.offset for access in stores if options(access.value) & values}
        wrong = {
            value.offset
            for access in stores
            for value in options(access.value)
            if isinstance(value, Loaded) and value.base == parent and access.size == _WORD
        } - {span_id}
        if len(places) != 1 or wrong:
            raise CodeError("build_recording_span is not seen to keep the parent's span id")
        layout.put("span_parent_id", places.pop(), where)
        if any(Loaded(parent, span_id, _WORD) in options(access.value) for access in stores):
            layout.put("context_span_id", span_id, where)
        flags = {
            access.offset
            for access in stores
            if access.size == 1 and any(_is_load(value, parent, is_remote) for value in options(access.value))
        }
        if len(flags) == 1:
            layout.put("span_parent_is_remote", flags.pop(), where)
            layout.put("context_is_remote", is_remote, where)

    def _read_parent_of_builder(self, context: _Context, stores: list[Access]) -> None:
        """A root's is 0, a child's comes from the same context as its trace id."""
        between = context.span_id - context.trace_id
        parents = {
            Loaded(value.base, value.offset + between, _WORD)
            for access in stores
            if access.offset == context.trace_id
            for value in options(access.value)
            if isinstance(value, Loaded) and not isinstance(value.base, Pointer)
        }
        places = {
            access.offset for access in stores if access.size == _WORD and options(access.value) & parents
        }
        if len(places) != 1:
            raise CodeError("build_with_context is not seen to keep the parent's span id")
        self._layout.put("span_parent_id", places.pop(), BUILDER)

    def _read_ender(self) -> None:
        """What is taken out of a Span at its end, and where the end time is put."""
        layout = self._layout
        for function in self._copies(ENDER):
            flow = self._follow(function)
            # Nanoseconds are below a billion: what else they are compared with means that there is no time.
            no_time = {
                constant & _MASK_32
                for value, constant in flow.compares
                if value == _NANOS_ARGUMENT and constant & _MASK_32 >= _BILLION
            }
            if len(no_time) == 1:
                layout.put("end_argument_none_nanos", no_time.pop(), ENDER)
            reads = {(access.offset, access.size) for access in flow.reads if access.base == _SPAN}
            taken = {
                (access.offset, access.size, access.value.value)
                for access in flow.writes
                if access.base == _SPAN
                and isinstance(access.value, Number)
                and (access.offset, access.size) in reads
                and access.size in _INTEGERS
            }
            if len(taken) == 1:
                [(offset, size, none)] = taken
                layout.put("span_data", offset, ENDER)
                layout.put("span_data_size", size, ENDER)
                layout.put("span_data_none", none & (1 << 8 * size) - 1, ENDER)
            seconds, nanos = _end_times(flow)
            ends = {place for place in seconds if place + _WORD in nanos}
            if len(ends) == 1:
                layout.put("span_end_seconds", min(ends), ENDER)
                layout.put("span_end_nanos", min(ends) + _WORD, ENDER)

    def _read_times(self, stores: list[Access], where: str) -> None:
        """A time of the builder's, or else what a call returned: the start, and the end with one more."""
        layout = self._layout
        times: dict[int, int] = {}
        for access in stores:
            beside = [other for other in stores if other.offset == access.offset + _WORD]
            if access.size != _WORD or not any(other.size == _NANOS_SIZE for other in beside):
                continue
            halves = [options(access.value), *(options(other.value) for other in beside)]
            taken = [_loads_and_calls(half) for half in halves]
            if all(loads and calls for loads, calls in taken) and len(taken) == 2:
                (loads, calls), (loads_of_nanos, calls_of_nanos) = taken
                same = {place + _WORD for place in loads} == loads_of_nanos
                if same and calls == {(call, 0) for call, _ in calls_of_nanos}:
                    times[access.offset] = len(loads)
        first = {place for place, loads in times.items() if loads == 1}
        later = {place for place, loads in times.items() if loads == 2}
        if len(first) == 2 and not later and layout.values.get("span_end_seconds") in first:
            later = {layout.values["span_end_seconds"]}
            first -= later
        if len(first) != 1 or len(later) > 1:
            raise CodeError(f"{len(first) or 'no'} places of a Span are seen to get its start time")
        start = first.pop()
        layout.put("span_start_seconds", start, where)
        layout.put("span_start_nanos", start + _WORD, where)
        for end in later:
            layout.put("span_end_seconds", end, where)
            layout.put("span_end_nanos", end + _WORD, where)

    def _read_kind(self, stores: list[Access], where: str) -> None:
        places = {access.offset for access in stores if access.size == 1 and _is_kind(options(access.value))}
        if len(places) == 1:
            self._layout.put("span_kind", places.pop(), where)

    def _read_data(self, built: Flow) -> None:
        """``is_recording`` must say no for what the ender leaves behind, and yes for anything else.

        ``build_with_context`` leaves the same in a Span that does not record.
        """
        layout = self._layout
        values = layout.values
        if "span_data_none" not in values:
            return
        place, none = (values["span_data"], values["span_data_size"]), values["span_data_none"]
        functions = [(function, self._places_read(function)) for function in self._copies(IS_RECORDING)]
        # Other types of spans have an is_recording, too; that of the service's own may be anything.
        own = [function for function, places in functions if _is_read(place, places)]
        if not own and any(places for _, places in functions):
            raise CodeError(f"span_data is {place[0]:#x} by {ENDER}, and no {IS_RECORDING} reads that")
        for function in own:
            if self._says(function, none) != 0 or any(
                self._says(function, value) != 1
                for value in (*_ANY_DATA, none + 1, none - 1)
                if (value - none) & (1 << 8 * place[1]) - 1
            ):
                raise CodeError(f"is_recording does not take {none:#x} for a span that has ended")
            layout.put("span_data", place[0], IS_RECORDING)
            layout.put("span_data_size", place[1], IS_RECORDING)
            layout.put("span_data_none", none, IS_RECORDING)
        if any(
            (access.offset, access.size) == place and Number(none) in options(access.value)
            for access in _stores(built)
        ):
            layout.put("span_data_none", none, BUILDER)
        if len(layout.read_from["span_data_none"]) < _ENOUGH:
            for name in ("span_data", "span_data_size", "span_data_none"):
                del values[name]
                del layout.read_from[name]

    def _places_read(self, function: Function) -> set[tuple[int, int]]:
        flow = self._follow(function)
        return {(access.offset, access.size) for access in flow.reads if access.base == _SPAN}

    def _changes_of_spans(self, name: str) -> list[Function]:
        """The copies that look first whether the Span has data: others are of other types."""
        values = self._layout.values
        if "span_data" not in values:
            return []
        place = values["span_data"], values["span_data_size"]
        return [
            function
            for function in self._copies(name)
            if any(_is_read(place, {read}) for read in self._places_read(function))
        ]

    def _says(self, function: Function, data: int) -> int | None:
        machine = Machine(self._image, 0, 0, 0)
        values = self._layout.values
        machine.write(ARENA + values["span_data"], data, values["span_data_size"])
        try:
            return machine.call(function.address, (ARENA,), _MAX_STEPS) & 0xFF
        except EmulationError:
            return None

    def _read_name(self, built: Flow, stores: list[Access]) -> None:
        """``update_name`` moves a text of three words into the Span, and frees the one before."""
        layout = self._layout
        for function in self._changes_of_spans(UPDATE_NAME):
            flow = self._follow(function)
            start = _text_moved(flow, 1)
            pointers = {
                argument.offset - start
                for call in flow.calls
                if start is not None and isinstance(argument := call.arguments[0], Loaded)
                if argument.base == _SPAN and argument.size == _WORD
            }
            if start is None or pointers != {_WORD}:
                continue
            # Where texts are borrowed, pointer and length are in the same places: the sampler is handed the
            # builder's name, whichever it is.
            if not _hands_on_text(built, stores, start):
                continue
            for kind in ("", "_owned"):
                layout.put(f"span_name{kind}_pointer", start + _WORD, UPDATE_NAME, BUILDER)
                layout.put(f"span_name{kind}_length", start + 2 * _WORD, UPDATE_NAME, BUILDER)

    def _read_status(self) -> None:
        """``set_status`` is tried: an error takes the place of "unset", and "ok" that of an error."""
        layout = self._layout
        for function in self._changes_of_spans(SET_STATUS):
            place = _text_moved(self._follow(function), 1)
            if place is None or not 0 <= place < _MAX_SPAN:
                continue
            below = [tag for tag in _TAGS if self._replaces(function, place, tag, _ERROR)]
            above = [tag for tag in _TAGS if self._replaces(function, place, _ERROR, tag)]
            # Beyond "ok" are numbers that no status has.
            ok = [
                tag
                for tag in above
                if not any(self._replaces(function, place, tag, t) is False for t in above if t != tag)
            ]
            if len(below) != 1 or len(ok) != 1 or not self._replaces(function, place, below[0], ok[0]):
                continue
            layout.put("span_status", place, SET_STATUS)
            layout.put("span_status_size", _WORD, SET_STATUS)
            layout.put("status_unset", below[0], SET_STATUS)
            layout.put("status_ok", ok[0], SET_STATUS)

    def _replaces(self, function: Function, place: int, old: int, new: int) -> bool | None:
        """Whether a status takes the place of another, told by their first words; texts are empty."""
        values = self._layout.values
        machine = Machine(self._image, 0, 0, 0)
        machine.write(
            ARENA + values["span_data"], int(not values["span_data_none"]), values["span_data_size"]
        )
        for address, tag, mark in ((ARENA + place, old, _OLD), (_NEW_STATUS, new, _NEW)):
            machine.write(address, tag, _WORD)
            machine.write(address + _WORD, mark, _WORD)
        try:
            machine.call(function.address, (ARENA, _NEW_STATUS), _MAX_STEPS)
        except EmulationError:
            return None
        return machine.read(ARENA + place + _WORD, _WORD) == _NEW


def _is_read(place: tuple[int, int], places: set[tuple[int, int]]) -> bool:
    """Whether all that is read is what is at a place, or its lower half, where that is enough to tell."""
    return bool(places) and all(start == place[0] and size <= place[1] for start, size in places)


def _require_room(layout: CodeLayout) -> None:
    """A CodeError where two fields of a Span would lie in one another, or across their alignment."""
    values = layout.values
    context = values["span_context"]
    fields = [
        (context + values["context_trace_id"], 2 * _WORD, "context_trace_id"),
        (context + values["context_span_id"], _WORD, "context_span_id"),
        (context + values["context_flags"], 1, "context_flags"),
        (context + values["context_is_remote"], 1, "context_is_remote"),
    ]
    for name, size in _SIZES.items():
        if name in values:
            fields.append((values[name], size, name))
    fields.sort()
    for (start, size, name), (following, _, other) in pairwise(fields):
        if start + size > following:
            raise CodeError(f"{name} at {start:#x} and {other} at {following:#x} lie in one another")
    for start, size, name in fields:
        if start < 0 or start % min(size, _WORD):
            raise CodeError(f"{name} is not aligned at {start:#x}")


def _stores(flow: Flow) -> list[Access]:
    """What is put into the Span that the first argument points to."""
    return [access for access in flow.writes + flow.copies if access.base == _SPAN]


def _handed_to(recorder: Function, built: Flow, stores: list[Access]) -> dict[int, list[Access]]:
    """For each argument that the recorder copies as a whole into the Span, what is put there before."""
    result: dict[int, list[Access]] = {}
    for argument in range(1, 6):
        copied = [
            (access.offset, access.value)
            for access in stores
            if isinstance(access.value, Loaded) and access.value.base == Pointer(argument, 0)
        ]
        size = max((value.offset + value.size for _, value in copied), default=0)
        if len({place - value.offset for place, value in copied}) == 1 and size <= _CONTEXT_MAX:
            result[argument] = [
                access
                for call in built.calls
                if call.target == recorder.address
                for access in call.pointed
                if access.base == Pointer(argument, 0) and access.offset + access.size <= size
            ]
    return result


def _generated(flow: Flow) -> _Generated | None:
    """The calls of both methods of one box; more than one box that has them is none."""
    boxes: dict[tuple[Value, int], dict[int, set[int]]] = {}
    for call in flow.calls:
        box = _box(call)
        if box is not None and call.slot is not None:
            boxes.setdefault(box, {}).setdefault(call.slot.offset, set()).add(call.address)
    found = [
        _Generated(frozenset(calls[slot]), frozenset(calls[slot + _WORD]))
        for calls in boxes.values()
        for slot in _NEW_TRACE_ID
        if slot in calls and slot + _WORD in calls
    ]
    return found[0] if len(found) == 1 else None


def _box(call: Call) -> tuple[Value, int] | None:
    """(owner, distance) of the box whose method is called."""
    slot, receiver = call.slot, call.arguments[0]
    if slot is None or not isinstance(slot.base, Loaded) or not isinstance(receiver, Loaded):
        return None
    if slot.base.base != receiver.base or slot.base.offset != receiver.offset + _WORD:
        return None
    return receiver.base, receiver.offset


def _context(
    argument: int, stores: list[Access], generated: _Generated, sampled: Set[Value]
) -> _Context | None:
    """The places that get what was generated, where each is the only one."""

    def places(calls: Iterable[int], part: int) -> set[int]:
        wanted = {Called(call, part) for call in calls}
        return {access.offset for access in stores if access.size == _WORD and options(access.value) & wanted}

    low, high = places(generated.trace_ids, 0), places(generated.trace_ids, 1)
    span_ids = places(generated.span_ids, 0)
    if len(low) != 1 or len(high) != 1 or len(span_ids) != 1:
        return None
    trace_id, span_id = low.pop(), span_ids.pop()
    if high != {trace_id + _WORD}:
        return None
    first = max(0, max(trace_id + 2 * _WORD, span_id + _WORD) - _CONTEXT_MAX)
    near = range(first, min(trace_id, span_id) + _CONTEXT_MAX)
    at: dict[int, set[Value | None]] = {}
    for access in stores:
        if access.size == 1 and access.offset in near:
            at.setdefault(access.offset, set()).add(access.value)
    flags = [place for place, values in at.items() if any(sampled & options(value) for value in values)]
    constant = [place for place, values in at.items() if values == {Number(0)}]
    if len(flags) != 1 or len(constant) != 1 or abs(flags[0] - constant[0]) != 1:
        return None
    return _Context(argument, trace_id, span_id, flags[0], constant[0])


def _is_load(value: Value, base: Pointer, offset: int) -> bool:
    return isinstance(value, Loaded) and value.base == base and value.offset == offset


def _loads_and_calls(values: frozenset[Value]) -> tuple[set[int], set[tuple[int, int]]]:
    """Where in an argument values are loaded from, and which parts of which calls' results they are."""
    loads = {
        value.offset for value in values if isinstance(value, Loaded) and isinstance(value.base, Pointer)
    }
    calls = {(value.call, value.part) for value in values if isinstance(value, Called)}
    return (loads, calls) if len(loads) + len(calls) == len(values) else (set(), set())


def _is_kind(values: frozenset[Value]) -> bool:
    """A byte of the builder's, or else "internal"."""
    loads = [value for value in values if isinstance(value, Loaded) and isinstance(value.base, Pointer)]
    return len(values) == 2 and len(loads) == 1 and Number(_INTERNAL) in values


def _end_times(flow: Flow) -> tuple[set[int], set[int]]:
    """Where in a Span the two halves of the end time belong, by what is put into a copy of its data."""
    copied = [
        (to.offset, source.offset, size.value)
        for call in flow.calls
        for to, source, size in (call.arguments[:3],)
        if isinstance(to, Pointer)
        and to.base == STACK
        and isinstance(source, Pointer)
        and source.base == 0
        and isinstance(size, Number)
    ]
    halves: tuple[set[int], set[int]] = (set(), set())
    for call in flow.calls:
        for access in call.pointed:
            assert isinstance(access.base, Pointer)
            pointer = call.arguments[access.base.base]
            if not isinstance(pointer, Pointer) or pointer.base != STACK:
                continue
            place = pointer.offset + access.offset
            for half, size in ((0, _WORD), (1, _NANOS_SIZE)):
                if access.size == size and Pointer(1 + half, 0) in options(access.value):
                    halves[half].update(
                        source + place - to for to, source, length in copied if 0 <= place - to < length
                    )
    return halves


def _text_moved(flow: Flow, argument: int) -> int | None:
    """Where in a Span three words in a row go that an argument points to, and nothing else of it."""
    moved = {
        (access.offset - access.value.offset, access.value.offset, access.size)
        for access in flow.writes + flow.copies
        if access.base == _SPAN
        and isinstance(access.value, Loaded)
        and access.value.base == Pointer(argument, 0)
    }
    starts = {start for start, _, _ in moved}
    covered = {byte for _, offset, size in moved for byte in range(offset, offset + size)}
    if len(starts) != 1 or covered != set(range(_TEXT_SIZE)):
        return None
    return starts.pop()


def _hands_on_text(built: Flow, stores: list[Access], start: int) -> bool:
    """Whether the sampler is handed the second word of the builder's text that becomes the Span's."""
    texts = {
        value.offset + start - access.offset
        for access in stores
        for value in (access.value,)
        if isinstance(value, Loaded) and isinstance(value.base, Pointer)
        if start <= access.offset < start + _TEXT_SIZE
    }
    return len(texts) == 1 and any(
        isinstance(name := call.arguments[_NAME_ARGUMENT], Loaded)
        and isinstance(name.base, Pointer)
        and name.offset == next(iter(texts)) + _WORD
        for call in built.calls
        if call.slot is not None
    )
