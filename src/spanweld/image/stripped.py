"""The SDK's functions in an image without symbols, recognised by their code and by what refers to them.

What stays after `strip`: where functions begin (``unwind``), vtables and the source places that panics
print (``pointers``), and the code itself (``flow``). Every function is told by several features that
have nothing to do with each other, and is taken only if no second function has them:

- ``RandomIdGenerator``'s vtable as ``dyn IdGenerator``: of a type of no bytes, its ``Debug`` prints
  that name, and both methods can panic in ``trace/id_generator/mod.rs``, the second one further down.
- ``build_with_context``: calls both methods of one ``Box<dyn IdGenerator>`` that belongs to its tracer, and
  with its context a method of the first one in a list that is there too, the span processors. It may be
  inlined in what calls it, and is no place for a probe then.
- ``build_recording_span``: called from there and from nowhere else, copies the span context that it is
  given to the begin of the Span that it returns, and clones a tracer.
- ``ensure_ended_and_exported``: a time argument that may be ``None``, takes the data out of a Span, goes
  from the Span to the tracer that ``build_recording_span`` puts there, and on to the processors that
  ``build_with_context`` calls at a start, to call what comes after ``on_start``.
- ``on_end`` of every span processor, where the functions above are none of their own: the second method
  after ``Debug`` in a vtable, which takes over, to hand on or to drop, both texts that exported data owns.

Source: opentelemetry_sdk ``src/trace/{id_generator/mod,tracer,span,span_processor}.rs``, 0.17 to 0.33.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import iced_x86 as x86

from spanweld.image.code import constants_of, decode
from spanweld.image.elf import MAX_SECTION, Image, Segment
from spanweld.image.flow import READING, WRITING, Access, Call, Flow, Loaded, Pointer, Value, follow
from spanweld.image.pointers import MAX_MATCHES, Pointers
from spanweld.image.symbols import FoundBy, Function
from spanweld.image.unwind import FunctionTable
from spanweld.model import VirtAddr

if TYPE_CHECKING:
    # At run time these are plain numbers; only the stubs have them as types.
    from iced_x86._iced_x86_py import Register

# The size and the alignment in the vtable of a type of no bytes; the function that drops it is before them.
_NO_BYTES = re.compile(rb"(?=\0{8}\x01\0{7})")
# The second name is 0.17's.
_GENERATOR_NAMES = (b"RandomIdGenerator", b"IdGenerator")
_GENERATOR_PLACE = re.compile(rb"/trace/id_generator/mod\.rs\Z")
# After drop, size, alignment and Debug::fmt, the methods in the order of the traits' source.
_FIRST_METHOD, _SECOND_METHOD = 0x20, 0x28
# `call [reg + 0x20]` and `call [reg + 0x28]`; a `lock` prefix before a 64-bit operand, as in Arc's clone.
_CALLS_FIRST = re.compile(rb"\xff(?:[\x50-\x53\x55-\x57]|\x54\x24)\x20")
_CALLS_SECOND = re.compile(rb"\xff(?:[\x50-\x53\x55-\x57]|\x54\x24)\x28")
_LOCKS = re.compile(rb"\xf0[\x48-\x4f]")
_LONGEST_CALL = 4
# So many nanoseconds mean that there is no time.
_NO_TIME = 1_000_000_000
# tokio: a trailer below 16 MiB, a scheduler right after the header of 0x20 bytes (or at the next multiple
# of the alignment), an id soon after it.
_TASK_METHODS = 7
_TASK_DISTANCES = re.compile(rb"(?=...\0{5}[\x20-\x80]\0{7}[\x20-\xff]\x00{7})", re.DOTALL)
# A vtable of a trait with Debug above it and at least four methods: size, alignment, functions.
_TRAIT_METHODS = 4
_FORMATTED = re.compile(
    rb"(?=.{3}\0{5}[\x01\x02\x04\x08\x10\x20\x40\x80]\0{7}(?:.{5}\0{3}){%d})" % (1 + _TRAIT_METHODS),
    re.DOTALL,
)
# A vtable of a trait with Debug above it and at least two methods; the name that Debug prints.
_PRINTED = re.compile(rb"(?=.{3}\0{5}[\x01\x02\x04\x08\x10\x20\x40\x80]\0{7}(?:.{5}\0{3}){3})", re.DOTALL)
_TYPE_NAME = re.compile(rb"[A-Z][A-Za-z0-9_]*\Z")
_MAX_OTHER_GENERATORS = 8
_LEAVING = frozenset(
    (
        x86.FlowControl.CALL,
        x86.FlowControl.INDIRECT_CALL,
        x86.FlowControl.UNCONDITIONAL_BRANCH,
        x86.FlowControl.INDIRECT_BRANCH,
    )
)
_OTHER_ARGUMENTS = frozenset(
    (x86.Register.RSI, x86.Register.RDX, x86.Register.RCX, x86.Register.R8, x86.Register.R9)
)
# Argument of on_end; how deep calls are followed that get it: a debug build drops a text in ten calls.
_DATA, _ON_END = 1, 2
_MAX_CALLS = 16
_MAX_DEBUG = 1 << 9
_MAX_NAME = 32
# In a debug build the code that can panic is in a closure of a closure's caller.
_GENERATOR_DEPTH = 5
_MAX_GENERATOR = 1 << 12
_MAX_FUNCTION = 1 << 16
# What an honest file comes nowhere near, so that a hostile one costs seconds: vtables that are looked at,
# bytes of code that are followed.
_MAX_VTABLES = 1 << 12
_MAX_FOLLOWED = 1 << 20
_NO_SIZE = "the table of its functions is damaged"
# Of `call` and `jmp` with a distance of 32 bits; bytes of code that are looked through with one pattern.
_BRANCH_SIZE = 5
_WINDOW = 1 << 19
# Arguments of build_with_context: its tracer, or the fields of that in its place, and the parent's context;
# of ensure_ended_and_exported the nanoseconds of the end time.
_TRACER, _TIME = 1, 2
_TRACERS = (Pointer(1, 0), Pointer(2, 0))
_CONTEXTS = (Pointer(3, 0), Pointer(4, 0))
# SpanContext: trace id and span id, at the begin of a Span.
_TRACE_ID, _SPAN_ID = 0x20, 0x30


@dataclass(frozen=True, slots=True)
class SdkFunctions:
    """Function of the SDK → what was found, or a sentence that says why it was not.

    ``other_generators``: methods of types that may be id generators too, (new_trace_id, new_span_id), each
    with where it is called from if it is one; None where it is not known what calls them.
    """

    new_trace_id: Function | str
    new_span_id: Function | str
    build_with_context: Function | str
    build_recording_span: Function | str
    ensure_ended_and_exported: Function | str
    other_generators: tuple[tuple[Function, Function], ...] | None


def find_sdk_functions(image: Image) -> SdkFunctions:
    """The SDK's functions in an image without symbols; reads all of its code once."""
    table = FunctionTable(image)
    if not table.starts:
        why = "it has no table of its functions (.eh_frame_hdr)"
        return SdkFunctions(why, why, why, why, why, None)
    return _Search(image, table).run()


@dataclass(frozen=True, slots=True)
class ExportedData:
    """What ``on_end`` gets the address of, and owns: no more than ``size`` bytes.

    ``texts`` is where in them pointers to owned texts stand.
    """

    texts: tuple[int, ...]
    size: int


def find_span_processors(image: Image, data: ExportedData) -> list[Function] | str:
    """``on_end`` of every type that is a span processor, by address; a sentence where there is none.

    It must take over the texts, whether it hands the data on or drops it: it, or what it calls with that
    address, reads or copies the pointers to them. And it has no business beyond the data.
    """
    table = FunctionTable(image)
    if not table.starts:
        return "it has no table of its functions (.eh_frame_hdr)"
    return _Takers(image, table).run(data)


@dataclass(frozen=True, slots=True)
class TaskFunctions:
    """What a vtable of tokio's tasks refers to; ``id_offset`` is where in a task its id stands."""

    poll: Function
    drop_join_handle_slow: Function
    shutdown: Function
    id_offset: int


def find_task_functions(image: Image, limit: int) -> list[TaskFunctions]:
    """The functions of at most ``limit`` kinds of tokio tasks, by address of their vtables.

    Source: tokio ``src/runtime/task/raw.rs``, ``Vtable``: seven functions, then the distances from a task's
    begin to its trailer, its scheduler and its id. That these are tokio's is for the caller to find out, by
    trying them.
    """
    table = FunctionTable(image)
    pointers = Pointers(image)
    result: list[TaskFunctions] = []
    for address in pointers.find(_TASK_DISTANCES):
        words = pointers.words(address - 8 * _TASK_METHODS, _TASK_METHODS + 3)
        if words is None or not all(map(table.is_start, words[:_TASK_METHODS])):
            continue
        trailer, scheduler, task_id = words[_TASK_METHODS:]
        poll, _, _, _, drop_join_handle_slow, _, shutdown = (
            _function(image, table, start, _MAX_FUNCTION) for start in words[:_TASK_METHODS]
        )
        if poll is None or drop_join_handle_slow is None or shutdown is None:
            continue
        if scheduler <= task_id < trailer and task_id % 8 == trailer % 8 == 0:
            result.append(TaskFunctions(poll, drop_join_handle_slow, shutdown, task_id))
            if len(result) == limit:
                break
    return result


def find_task_vtables(image: Image) -> list[int]:
    """Addresses of what looks like vtables of tokio's tasks."""
    table = FunctionTable(image)
    pointers = Pointers(image)
    result = []
    for address in pointers.find(_TASK_DISTANCES):
        words = pointers.words(address - 8 * _TASK_METHODS, _TASK_METHODS)
        if words is not None and all(map(table.is_start, words)):
            result.append(address - 8 * _TASK_METHODS)
    return result


@dataclass(frozen=True, slots=True)
class _Builder:
    """``build_with_context``, or what it is inlined in.

    ``generator``: owner and place of the box whose methods make ids. ``is_whole``: it takes tracer and
    context as arguments and in their order. ``provider_in_span`` is where it is seen to put the tracer's
    provider in the Span that it returns (one place, or none is seen); ``processors`` is where in the provider
    the list of span processors is.
    """

    function: Function
    flow: Flow
    generator: tuple[Value, int]
    is_whole: bool
    provider_in_span: frozenset[int]
    processors: int


@dataclass(frozen=True, slots=True)
class _Recorder:
    """``build_recording_span``.

    ``tracer_in_span`` is where in a Span it is seen to put parts of its tracer; nowhere if it calls what
    clones it.
    """

    function: Function
    tracer_in_span: frozenset[int]


@dataclass(frozen=True, slots=True)
class SpanArguments:
    """In which registers ``build_recording_span`` gets what; numbers of arguments, 0 for rdi up to 5 for r9.

    ``context`` points to the new span's context. ``parent`` points to the parent's one, or, where
    ``parent_is_id``, is the parent's span id itself: to a function that nothing else calls, LLVM passes the
    fields that are used of a struct in place of its address. So the tracer may be in two registers too, and
    the others one further on. ``parent_offset`` is where the parent's span id stands in the Span.
    """

    context: int
    parent: int
    parent_is_id: bool
    parent_offset: int


def find_span_arguments(image: Image, function: Function) -> SpanArguments | None:
    """How ``build_recording_span`` is called; None where its code does not tell, or is another's."""
    return _span_arguments(follow(image, function, Pointers(image).word))


def _span_arguments(flow: Flow) -> SpanArguments | None:
    written = [access for access in flow.writes + flow.copies if access.base == Pointer(0, 0)]
    contexts = _copied_from(written, _TRACE_ID) & _copied_from(written, _SPAN_ID)
    if len(contexts) != 1:
        return None
    [context] = contexts
    parent = context - 1
    by_value, by_place = Pointer(parent, 0), Loaded(Pointer(parent, 0), _SPAN_ID, 8)
    places = {
        (access.value == by_value, access.offset)
        for access in written
        if access.value in (by_value, by_place)
    }
    if parent < 1 or len(places) != 1:
        return None
    [(parent_is_id, parent_offset)] = places
    return SpanArguments(context, parent, parent_is_id, parent_offset)


def _copied_from(written: list[Access], field: int) -> set[int]:
    """Arguments from whose 8 bytes at ``field`` those at the same distance in the result are copied."""
    return {
        access.value.base.base
        for access in written
        if access.offset <= field <= access.offset + access.size - 8
        and isinstance(access.value, Loaded)
        and access.value.offset == access.offset
        and isinstance(access.value.base, Pointer)
        and access.value.base.base > 0
    }


class _Search:
    def __init__(self, image: Image, table: FunctionTable) -> None:
        self._image = image
        self._table = table
        self._pointers = Pointers(image)
        self._may_follow = _MAX_FOLLOWED
        self._code: list[Segment] = []
        left = MAX_SECTION
        for segment in image.loads:
            if segment.executable and segment.file_size <= left:
                self._code.append(segment)
                left -= segment.file_size

    def run(self) -> SdkFunctions:
        trace_id, span_id = self._find_generator()
        candidates, enders = self._candidates()
        builders = [
            builder
            for function in candidates
            if (builder := _as_builder(function, self._follow(function))) is not None
        ]
        recorder = self._find_recorder(builders)
        return SdkFunctions(
            trace_id,
            span_id,
            self._choose_builder(builders),
            recorder if isinstance(recorder, str) else recorder.function,
            self._find_ender(enders, builders, None if isinstance(recorder, str) else recorder),
            self._find_other_generators(trace_id, builders[0]) if len(builders) == 1 else None,
        )

    def _find_generator(self) -> tuple[Function | str, Function | str]:
        """The two methods of RandomIdGenerator."""
        pairs: set[tuple[int, int]] = set()
        looked_at = 0
        for address in self._pointers.find(_NO_BYTES):
            drop = self._pointers.word(address - 8)
            words = self._pointers.words(address + 16, 3)
            if words is None or not all(map(self._table.is_start, words)):
                continue
            if drop and not self._table.is_start(drop):
                continue
            looked_at += 1
            if looked_at > _MAX_VTABLES:
                break
            if self._prints_generator(words[0]):
                pairs.add((words[1], words[2]))
        if len(pairs) != 1:
            why = "no vtable is that of its RandomIdGenerator"
            if pairs:
                why = f"{len(pairs)} vtables look like the one of its RandomIdGenerator"
            return why, why
        [(first, second)] = pairs
        first_lines, second_lines = self._lines(first), self._lines(second)
        if not first_lines or not second_lines or max(first_lines) >= min(second_lines):
            why = "the methods of its RandomIdGenerator do not panic where they should"
            return why, why
        return self._function(first) or _NO_SIZE, self._function(second) or _NO_SIZE

    def _find_other_generators(
        self, own: Function | str, builder: _Builder
    ) -> tuple[tuple[Function, Function], ...] | None:
        """Types with two methods that could be those of a generator of the service's own.

        More than that their code does not tell: what is certain is where a call of a generator returns to.
        """
        after = {
            instruction.ip: VirtAddr(instruction.next_ip)
            for instruction in decode(self._image, builder.function)
        }
        trace_calls, span_calls = (
            tuple(
                after[call.address]
                for call in builder.flow.calls
                if call.slot is not None and call.slot.offset == method and _boxed(call) == builder.generator
            )
            for method in (_FIRST_METHOD, _SECOND_METHOD)
        )
        found: dict[tuple[int, int], tuple[Function, Function]] = {}
        for address in self._pointers.find(_PRINTED):
            drop = self._pointers.word(address - 8)
            words = self._pointers.words(address + 16, 3)
            if words is None or not all(map(self._table.is_start, words)):
                continue
            if drop is None or (drop and not self._table.is_start(drop)):
                continue
            trace_id, span_id = (self._function(start, _MAX_GENERATOR) for start in words[1:])
            if trace_id is None or span_id is None or not self._prints_a_type(words[0]):
                continue
            if not (self._gives(trace_id, x86.Register.RDX) and self._gives(span_id, x86.Register.RAX)):
                continue
            if not isinstance(own, Function) or trace_id.address != own.address:
                trace_id = replace(trace_id, called_from=trace_calls)
                found[words[1], words[2]] = trace_id, replace(span_id, called_from=span_calls)
        return tuple(found.values()) if len(found) <= _MAX_OTHER_GENERATORS else None

    def _prints_a_type(self, start: int) -> bool:
        """Whether a function refers to a text that is a type's name, and to its length, as Debug does."""
        function = self._function(start, _MAX_DEBUG)
        constants = {
            value
            for instruction in (decode(self._image, function) if function is not None else ())
            for value in constants_of(instruction)
        }
        texts = [self._image.read_memory(value, _MAX_NAME) for value in constants if value > _MAX_NAME]
        return any(
            text is not None and _TYPE_NAME.match(text[:length])
            for text in texts
            for length in constants
            if 1 < length <= _MAX_NAME
        )

    def _gives(self, function: Function, result: Register) -> bool:
        """Whether a function has a result in a register, and no argument but the first one."""
        infos = x86.InstructionInfoFactory()
        changed: set[Register] = set()
        is_begin = True
        gives = False
        for instruction in decode(self._image, function):
            used = infos.info(instruction).used_registers()
            is_zero = instruction.mnemonic == x86.Mnemonic.XOR and (
                instruction.op0_kind == instruction.op1_kind == x86.OpKind.REGISTER
                and instruction.op0_register == instruction.op1_register
            )
            for register in used:
                full = x86.RegisterExt.full_register(register.register)
                is_read = register.access in READING and not is_zero
                if is_begin and is_read and full in _OTHER_ARGUMENTS and full not in changed:
                    return False
            for register in used:
                if register.access in WRITING:
                    changed.add(x86.RegisterExt.full_register(register.register))
            is_begin = is_begin and instruction.flow_control == x86.FlowControl.NEXT
            # What it calls, or leaves for, may give it.
            gives = gives or result in changed or instruction.flow_control in _LEAVING
        return gives

    def _prints_generator(self, start: int) -> bool:
        """Whether a small function refers to the name of the generator's type, and to the name's length."""
        function = self._function(start, _MAX_DEBUG)
        if function is None:
            return False
        constants = {
            value for instruction in decode(self._image, function) for value in constants_of(instruction)
        }
        texts = {self._image.read_memory(value, _MAX_NAME) for value in constants if value > _MAX_NAME}
        return any(
            len(name) in constants and any(text is not None and text.startswith(name) for text in texts)
            for name in _GENERATOR_NAMES
        )

    def _lines(self, start: int) -> set[int]:
        """The lines of the generator's source at which a function, or what it refers to, can panic."""
        lines: set[int] = set()
        seen = {start}
        ahead = [start]
        for _ in range(_GENERATOR_DEPTH):
            functions = [self._function(address, _MAX_GENERATOR) for address in ahead]
            ahead = []
            for function in functions:
                for instruction in decode(self._image, function) if function is not None else ():
                    target: int | None = instruction.near_branch_target
                    if instruction.is_ip_rel_memory_operand:
                        target = self._pointers.word(instruction.ip_rel_memory_address)
                    if target is not None and target not in seen and self._table.is_start(target):
                        seen.add(target)
                        ahead.append(target)
                    for value in constants_of(instruction):
                        path = self._pointers.text(value)
                        if path is not None and _GENERATOR_PLACE.search(path):
                            # core::panic::Location: file, its length, line and column as u32.
                            line_and_column = self._pointers.word(value + 16) or 0
                            lines.add(line_and_column & 0xFFFF_FFFF)
        return lines

    def _candidates(self) -> tuple[list[Function], list[Function]]:
        """Functions whose bytes are such as build_with_context has, and ensure_ended_and_exported."""
        starts: dict[int, None] = {}
        for segment in self._code:
            found = self._image.search(_CALLS_SECOND, segment.offset, segment.file_size, _LONGEST_CALL - 1)
            for offset, _, _ in found:
                start = self._table.containing(offset - segment.offset + segment.address)
                if start is not None:
                    starts[start] = None
        builders: list[Function] = []
        enders: list[Function] = []
        left = sum(segment.file_size for segment in self._code)
        for start in starts:
            function = self._function(start)
            left -= function.size if function is not None else 0
            if function is None or left < 0:
                continue
            code = self._image.read_memory(start, function.size)
            if code is None:
                continue
            if _LOCKS.search(code) and _CALLS_FIRST.search(code):
                builders.append(function)
            if struct.pack("<I", _NO_TIME) in code:
                enders.append(function)
        return builders, enders

    def _choose_builder(self, builders: list[_Builder]) -> Function | str:
        if len(builders) != 1:
            return _how_many(len(builders), "begins a span as build_with_context does")
        if not builders[0].is_whole:
            return "build_with_context is inlined in the function that calls it"
        return builders[0].function

    def _find_recorder(self, builders: list[_Builder]) -> _Recorder | str:
        targets = {call.target for builder in builders for call in builder.flow.calls}
        found = []
        for target in sorted(target for target in targets if target is not None):
            function = self._function(target) if self._table.is_start(target) else None
            recorder = _as_recorder(function, self._follow(function)) if function is not None else None
            if recorder is not None:
                found.append(recorder)
        if len(found) != 1:
            return _how_many(len(found), "makes a recording span of what build_with_context gives it")
        if self._has_other_callers(found[0].function.address, builders):
            return "what build_with_context makes a recording span with is called from elsewhere too"
        return found[0]

    def _find_ender(
        self, candidates: list[Function], builders: list[_Builder], recorder: _Recorder | None
    ) -> Function | str:
        lists = {builder.processors for builder in builders}
        if recorder is None and not (len(builders) == 1 and builders[0].is_whole):
            return "no function that begins a span was found"
        places = recorder.tracer_in_span if recorder is not None else frozenset()
        places = places or frozenset().union(*(builder.provider_in_span for builder in builders))
        found = [
            function
            for function in candidates
            if len(lists) == 1 and _is_ender(self._follow(function), lists, places)
        ]
        return found[0] if len(found) == 1 else _how_many(len(found), "ends a span")

    def _has_other_callers(self, target: int, callers: list[_Builder]) -> bool:
        """Whether code outside of ``callers`` calls or jumps to ``target``, or a pointer to it is kept."""
        functions = [caller.function for caller in callers]
        own = [range(function.address, function.address + function.size) for function in functions]
        if self._pointers.holds(target):
            return True
        for segment in self._code:
            for offset, piece in self._image.chunks(segment.offset, segment.file_size, _BRANCH_SIZE - 1):
                base = offset - segment.offset + segment.address
                for at in _branches_to(target, base, piece):
                    if not any(at in area for area in own):
                        return True
        return False

    def _follow(self, function: Function) -> Flow:
        self._may_follow -= function.size
        return follow(self._image, function, self._pointers.word) if self._may_follow >= 0 else Flow()

    def _function(self, start: int, limit: int = _MAX_FUNCTION) -> Function | None:
        return _function(self._image, self._table, start, limit)


class _Takers:
    """What functions do with what an argument points to."""

    def __init__(self, image: Image, table: FunctionTable) -> None:
        self._image = image
        self._table = table
        self._pointers = Pointers(image)
        self._may_follow = _MAX_FOLLOWED
        self._flows: dict[int, Flow | None] = {}

    def run(self, data: ExportedData) -> list[Function] | str:
        found: dict[int, Function] = {}
        for number, address in enumerate(self._pointers.find(_FORMATTED), 1):
            if number == MAX_MATCHES:
                return "it has too many vtables to look at each"
            drop = self._pointers.word(address - 8)
            words = self._pointers.words(address + 16, 1 + _TRAIT_METHODS)
            if drop is None or words is None or not all(map(self._table.is_start, words)):
                continue
            if drop and not self._table.is_start(drop):
                continue
            taken = self._taken(words[_ON_END])
            if taken is None:
                return "there is too much code in methods of vtables to look at all of it"
            function = _function(self._image, self._table, words[_ON_END], _MAX_FUNCTION)
            if function is not None and taken.issuperset(data.texts) and taken.issubset(range(data.size)):
                found[function.address] = function
        if not found:
            return "no type takes over the texts of exported data as a span processor does"
        return [found[address] for address in sorted(found)]

    def _taken(self, start: int) -> set[int] | None:
        """The bytes of exported data that an on_end, or what it calls with them, reads or copies.

        None for code that is too long to be followed. What a method of another vtable gets is that one's
        business: a processor that only hands on leaves it to the next one.
        """
        taken: set[int] = set()
        seen: set[tuple[int, int, int]] = set()
        ahead = [(start, _DATA, 0, 0)]
        while ahead:
            address, number, distance, depth = ahead.pop()
            if depth > _MAX_CALLS or (address, number, distance) in seen:
                continue
            seen.add((address, number, distance))
            flow = self._follow(address)
            if flow is None:
                return None
            for access in flow.reads + flow.copied:
                if access.base == Pointer(number, 0):
                    taken.update(range(distance + access.offset, distance + access.offset + access.size))
            for call in flow.calls + flow.jumps:
                if call.target is None or not self._table.is_start(call.target):
                    continue
                for parameter, value in enumerate(call.arguments):
                    if isinstance(value, Pointer) and value.base == number:
                        ahead.append((call.target, parameter, distance + value.offset, depth + 1))
        return taken

    def _follow(self, start: int) -> Flow | None:
        if start not in self._flows:
            function = _function(self._image, self._table, start, _MAX_FUNCTION)
            self._may_follow -= function.size if function is not None else 0
            may = function is not None and self._may_follow >= 0
            self._flows[start] = (
                follow(self._image, function, self._pointers.word) if may and function else None
            )
        return self._flows[start]


def _function(image: Image, table: FunctionTable, start: int, limit: int) -> Function | None:
    offset = image.file_offset(start)
    size = table.size(start)
    if offset is None or not 0 < size <= limit or not image.is_executable(start):
        return None
    return Function("", VirtAddr(start), size, offset, FoundBy.CODE)


def _branches_to(target: int, base: int, piece: bytes) -> Iterator[int]:
    """Addresses of the calls and jumps to ``target`` in code that is loaded at ``base``.

    Only those with a distance of 32 bits; also what is inside of other instructions and only looks so.
    """
    for begin in range(0, len(piece), _WINDOW):
        # The upper half of the distance is one of a few numbers in a stretch of the code.
        farthest = target - (base + begin) - _BRANCH_SIZE
        halves = range((farthest - _WINDOW) >> 16, (farthest >> 16) + 1)
        choice = b"|".join(re.escape(struct.pack("<H", half & 0xFFFF)) for half in halves)
        for branch in (b"\xe8", b"\xe9"):
            pattern = re.compile(branch + rb"..(?:" + choice + rb")", re.DOTALL)
            for match in pattern.finditer(piece, begin, begin + _WINDOW + _BRANCH_SIZE - 1):
                at = base + match.start()
                [distance] = struct.unpack_from("<i", piece, match.start() + 1)
                if at + _BRANCH_SIZE + distance == target:
                    yield at


def _as_builder(function: Function, flow: Flow) -> _Builder | None:
    """What a function begins spans with, if it does it in the way of ``build_with_context``."""
    generators: dict[int, set[tuple[Value, int]]] = {_FIRST_METHOD: set(), _SECOND_METHOD: set()}
    processors: dict[Value, set[tuple[int, bool]]] = defaultdict(set)
    for call in flow.calls:
        if call.slot is None:
            continue
        box = _boxed(call)
        if box is not None and call.slot.offset in generators:
            generators[call.slot.offset].add(box)
        listed = _listed(call)
        if listed is not None and call.slot.offset == _FIRST_METHOD:
            with_context = call.arguments[2] in _CONTEXTS
            processors[listed[0]].add((listed[1], with_context))
    for generator in generators[_FIRST_METHOD] & generators[_SECOND_METHOD]:
        provider = generator[0]
        if len(processors[provider]) != 1:
            continue
        [(place, with_context)] = processors[provider]
        in_span = frozenset(
            access.offset
            for access in flow.writes
            if access.base == Pointer(0, 0) and access.value == provider
        )
        tracer = provider.base if isinstance(provider, Loaded) else provider
        is_whole = with_context and tracer in _TRACERS and len(in_span) <= 1
        return _Builder(function, flow, generator, is_whole, in_span, place)
    return None


def _as_recorder(function: Function, flow: Flow) -> _Recorder | None:
    """What a function does if it makes a recording span."""
    arguments = _span_arguments(flow)
    if arguments is None:
        return None
    # The tracer is one argument, or two where its two fields are passed in its place.
    tracer = [Pointer(number, 0) for number in range(_TRACER, arguments.parent)]
    places = frozenset(
        access.offset
        for access in flow.writes + flow.copies
        if access.base == Pointer(0, 0)
        and (access.value in tracer or (isinstance(access.value, Loaded) and access.value.base in tracer))
    )
    clones_itself = bool(places) and flow.increments_shared
    calls_clone = any(
        isinstance(call.arguments[0], Pointer) and call.arguments[1] in tracer for call in flow.calls
    )
    return _Recorder(function, places) if clones_itself or calls_clone else None


def _boxed(call: Call) -> tuple[Value, int] | None:
    """(owner, distance) of the box whose method is called: a pointer there, and its vtable right after."""
    slot, receiver = call.slot, call.arguments[0]
    if slot is None or not isinstance(slot.base, Loaded) or not isinstance(receiver, Loaded):
        return None
    if slot.base.base != receiver.base or slot.base.offset != receiver.offset + 8:
        return None
    return receiver.base, receiver.offset


def _listed(call: Call) -> tuple[Value, int] | None:
    """(owner, distance) of the list of boxes of whose first one a method is called."""
    box = _boxed(call)
    if box is None or box[1] != 0 or not isinstance(box[0], Loaded):
        return None
    return box[0].base, box[0].offset


def _is_ender(flow: Flow, lists: set[int], places: frozenset[int]) -> bool:
    """Whether a function ends a span, given where processors are listed and where in a Span tracers are."""
    span = Pointer(0, 0)
    if (Pointer(_TIME, 0), _NO_TIME) not in flow.compares:
        return False
    taken = {access.offset for access in flow.reads if access.base == span} & {
        access.offset for access in flow.writes if access.base == span
    }
    providers = set()
    for call in flow.calls:
        listed = _listed(call)
        if listed is None or call.slot is None or call.slot.offset != _SECOND_METHOD:
            continue
        provider, processors = listed
        if processors in lists and isinstance(provider, Loaded) and provider.base == span:
            providers.add(provider.offset)
    return bool(taken) and len(providers) == 1 and (not places or providers <= places)


def _how_many(number: int, what: str) -> str:
    return f"no function {what}" if not number else f"{number} functions look like one that {what}"
