"""Where tokio keeps the id of the task that a thread runs: ``CONTEXT.current_task_id``.

Source: tokio ``src/runtime/context.rs`` and ``src/runtime/task/{core,raw,id}.rs`` (1.22 to 1.54; before,
there is none). It is an ``Option<Id>``: since 1.40 a u64 that is 0 for `None`, before that a tag, 1 for
`Some`, beside the u64. Both are written by ``TaskIdGuard::enter`` and restored by the guard's drop. These
functions, or the ones they were inlined into, are run in the emulator with a marker for the id; where
the marker then stands in the thread-local block is the place, and a 1 that was written beside it is the tag.
"""

from __future__ import annotations

from dataclasses import dataclass

from spanweld.image.elf import Image
from spanweld.image.emulator import ARENA, EmulationError, Machine
from spanweld.image.stripped import find_task_functions
from spanweld.image.symbols import Function, find_many, find_thread_locals, has_symbols

_ENTER = "tokio::runtime::task::core::TaskIdGuard::enter"
_DROP = "<tokio::runtime::task::core::TaskIdGuard as core::ops::drop::Drop>::drop"
_SET = "tokio::runtime::context::set_current_task_id"
_POLL = "tokio::runtime::task::raw::poll"
_SHUTDOWN = "tokio::runtime::task::raw::shutdown"
_DROP_HANDLE = "tokio::runtime::task::raw::drop_join_handle_slow"
_CONTEXT = "tokio::runtime::context::CONTEXT::*VAL"

_MARKER = 0x6B73_6154_6E61_7053
_SOME, _NONE = 1, 0
# Where else the tag may be is not a question: an Option<u64> has 16 bytes.
_BESIDE = (-8, 8)
# Instructions in which the other half of the Option follows, in debug builds too.
_AFTER_MARKED = 12
_MAX_BLOCK = 1 << 20
_MAX_STEPS = 600
_MAX_TASK_STEPS = 300
# Without symbols a debug build has only these functions to show it, by way of many others.
_MAX_VTABLE_STEPS = 3000
_MAX_TASK_FUNCTIONS = 8
_ENOUGH = 3

# tokio src/runtime/task/state.rs: bits of the first word of a task's header.
_COMPLETE, _NOTIFIED, _JOIN_INTEREST, _ONE_REFERENCE = 0b10, 0b100, 0b1000, 0b100_0000
_TASK_STATES = {
    _POLL: _NOTIFIED | _ONE_REFERENCE,
    _SHUTDOWN: _NOTIFIED | _ONE_REFERENCE,
    _DROP_HANDLE: _COMPLETE | _JOIN_INTEREST | 2 * _ONE_REFERENCE,
}
# Header (state, queue_next, vtable, owner_id) and the scheduler come before the id.
_ID_IN_TASK = range(0x20, 0x81, 8)


@dataclass(frozen=True, slots=True, order=True)
class _Place:
    """Distances from fs:0 of the id and, if it has one, its tag."""

    value: int
    tag: int | None

    def __str__(self) -> str:
        return f"{self.value:#x}" if self.tag is None else f"{self.value:#x} with a tag at {self.tag:#x}"


@dataclass(frozen=True, slots=True)
class TaskIdOffset:
    """The u64 at fs:0 + ``offset_from_fs`` (negative, bytes) is tokio's current task id, or 0.

    If there is a ``tag_offset_from_fs``, that only holds while the u64 there is 1. ``source`` names what
    it was derived from; ``confirmed`` tells whether at least two functions agree.
    """

    offset_from_fs: int
    tag_offset_from_fs: int | None
    source: str
    confirmed: bool


def find_task_id_offset(image: Image) -> TaskIdOffset | str:
    """The place of the current task id, or a sentence that says why it is not known."""
    block = image.thread_locals
    if block is None:
        return "the image has no thread-local variable"
    block_size = -block.offset_from_fs(0)
    if not 0 < block_size <= _MAX_BLOCK:
        return f"its thread-local block of {block_size} bytes is larger than any seen"
    if not has_symbols(image):
        return _from_vtables(image, block_size)
    functions = find_many(image, [_ENTER, _DROP, _SET, _POLL, _SHUTDOWN, _DROP_HANDLE])
    if not any(functions.values()):
        return "no function of tokio's tasks is in the image"
    found: dict[_Place, list[str]] = {}
    for pattern in (_ENTER, _DROP, _SET):
        for function in functions[pattern][:2]:
            place = _by_argument(image, block_size, function, pattern)
            if place is not None:
                found.setdefault(place, []).append(_short(function.name))
    if sum(len(names) for names in found.values()) < 2:
        for pattern, state in _TASK_STATES.items():
            for function in functions[pattern][:_MAX_TASK_FUNCTIONS]:
                for place in _by_task(image, block_size, function, state, _ID_IN_TASK, limit=_MAX_TASK_STEPS):
                    found.setdefault(place, []).append(_short(function.name))
                if len(found) == 1 and sum(map(len, found.values())) >= _ENOUGH:
                    break
    variables = find_thread_locals(image, _CONTEXT)
    if variables:
        # Other thread-locals are written near the task id too; only CONTEXT can hold it.
        spans = [(block.offset_from_fs(variable.value), variable.size) for variable in variables]
        found = {
            place: names
            for place, names in found.items()
            if any(
                start <= offset and offset + 8 <= start + size
                for start, size in spans
                for offset in (place.value, place.value if place.tag is None else place.tag)
            )
        }
    return _conclude(found, "; inside the thread-local CONTEXT" if variables else "")


def _from_vtables(image: Image, block_size: int) -> TaskIdOffset | str:
    """The same without symbols: what tokio's vtables refer to, with the id where they say that it is."""
    tasks = find_task_functions(image, _MAX_TASK_FUNCTIONS)
    if not tasks:
        return "the image has no symbol table, and nothing in it looks like a vtable of tokio's tasks"
    found: dict[_Place, list[str]] = {}
    for task in tasks:
        for function, name in (
            (task.poll, _POLL),
            (task.shutdown, _SHUTDOWN),
            (task.drop_join_handle_slow, _DROP_HANDLE),
        ):
            places = range(task.id_offset, task.id_offset + 1)
            state = _TASK_STATES[name]
            for place in _by_task(image, block_size, function, state, places, limit=_MAX_VTABLE_STEPS):
                found.setdefault(place, []).append(_short(name))
    result = _conclude(found, "; without symbols")
    if isinstance(result, TaskIdOffset) and not result.confirmed:
        return "the image has no symbol table, and only one of tokio's functions shows where the task id is"
    return result


def _conclude(found: dict[_Place, list[str]], remark: str) -> TaskIdOffset | str:
    """``found`` is place → the functions that write there."""
    if not found:
        return "tokio's functions are there, but none shows where it writes the task id"
    if len(found) > 1:
        places = "; ".join(f"{', '.join(names)}: {place}" for place, names in found.items())
        return f"tokio's functions disagree on where the task id is: {places}"
    [(place, names)] = found.items()
    evidence = "machine code of " + ", ".join(dict.fromkeys(names)) + remark
    return TaskIdOffset(place.value, place.tag, evidence, confirmed=len(names) > 1)


def _by_argument(image: Image, block_size: int, function: Function, pattern: str) -> _Place | None:
    """Call with the marker as the id (or as the one field of the guard) and see where it is put."""
    if pattern == _ENTER:
        return _put(image, block_size, function, pattern, (_MARKER,))
    # Their argument is an Option<Id>. Where it has a tag, the tag comes first.
    place = _put(image, block_size, function, pattern, (_SOME, _MARKER))
    if place is None:
        return _put(image, block_size, function, pattern, (_MARKER,))
    if place.tag is not None and _put(image, block_size, function, pattern, (_NONE, _MARKER)) != place:
        # What looks like a tag is not one.
        return _Place(place.value, None)
    return place


def _put(
    image: Image, block_size: int, function: Function, pattern: str, words: tuple[int, ...]
) -> _Place | None:
    """Where the function puts the marker, called with ``words`` as what it is to write."""
    for fill in (1, 0):
        machine = Machine(image, block_size, fill, _MARKER)
        for number, word in enumerate(words):
            machine.write(ARENA + 8 * number, word, 8)
        try:
            machine.call(function.address, (ARENA,) if pattern == _DROP else words, _MAX_STEPS)
        except EmulationError:
            continue
        places = _places(machine, words[0] if len(words) > 1 else _SOME)
        if len(places) == 1:
            return places[0]
    return None


def _by_task(
    image: Image, block_size: int, function: Function, state: int, places: range, *, limit: int
) -> list[_Place]:
    """Call with a task whose words are 0 but for its state and, one place after the other, its id."""
    result: list[_Place] = []
    for place in places:
        machine = Machine(image, block_size, 1, _MARKER)
        machine.write(ARENA, state, 8)
        machine.write(ARENA + place, _MARKER, 8)
        try:
            machine.call(function.address, (ARENA,), limit, after_marked=_AFTER_MARKED)
        except EmulationError:
            continue
        result += [found for found in _places(machine, _SOME) if found not in result]
    return result


def _places(machine: Machine, tag: int) -> list[_Place]:
    """Where the marker is, and where beside it the tag that was written with it."""
    result = []
    tags = machine.find_written(tag)
    for value in machine.find_written(_MARKER):
        beside = [value + distance for distance in _BESIDE if value + distance in tags]
        result.append(_Place(value, beside[0] if beside else None))
    return result


def _short(path: str) -> str:
    """The type (or module) and the name, without the trait."""
    subject, _, name = path.rpartition("::")
    return f"{subject.removeprefix('<').partition(' as ')[0].rpartition('::')[2]}::{name}"
