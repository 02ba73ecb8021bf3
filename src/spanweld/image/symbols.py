"""Functions and thread-locals by name: what a probe declares as a pattern, found in the symbol table.

A pattern is a canonical path (see ``demangle``), matched as a whole; ``*`` stands for any text. It
must hold one identifier of at least four characters without ``*``, by which names are sifted before
any is demangled: a debug build has hundreds of thousands of names.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum

from spanweld.image.demangle import demangle
from spanweld.image.elf import Image, Section
from spanweld.image.unwind import FunctionTable
from spanweld.model import FileOffset, VirtAddr

_SYMBOL = struct.Struct("<IBBHQQ")
_STT_OBJECT, _STT_FUNC, _STT_TLS = 1, 2, 6
_SHT_SYMTAB, _SHT_DYNSYM = 2, 11
_SHN_LORESERVE = 0xFF00
_MAX_TABLE = 1 << 27
"""Bytes: more than five million symbols."""
_MAX_NAME = 1 << 12
_MAX_CANDIDATES = 1 << 21
"""Bytes of names: thousands of times what a large debug build has for any pattern."""
_MAX_HITS = 1 << 20
"""Places in the string table that are looked at, many times what a large debug build has."""
_MAX_FUNCTIONS = 1 << 14
_IDENTIFIER = re.compile(r"[A-Za-z0-9_]{4,}")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_IN_BRACES = re.compile(r"\{[^}]*\}")


class FoundBy(Enum):
    """How it is known that a function is the one that is meant."""

    SYMBOL = "symbol"
    CODE = "code"


@dataclass(frozen=True, slots=True)
class Function:
    """A function of an image; ``name`` is its canonical path, ``size`` in bytes.

    ``called_from``: it is what its name says in calls that return to one of these addresses; none: in all.
    """

    name: str
    address: VirtAddr
    size: int
    file_offset: FileOffset
    found_by: FoundBy = FoundBy.SYMBOL
    called_from: tuple[VirtAddr, ...] = ()


@dataclass(frozen=True, slots=True)
class ThreadLocal:
    """A thread-local variable: ``value`` is its place in the image's thread-local block."""

    name: str
    value: int
    size: int


def has_symbols(image: Image) -> bool:
    """Whether there is a full symbol table, not only the one for dynamic linking."""
    return any(section.type == _SHT_SYMTAB and section.size for section in image.sections)


def find_functions(image: Image, pattern: str) -> list[Function]:
    """All functions whose canonical path matches ``pattern``, by address.

    One path may name several: copies made for different type arguments or codegen units.
    """
    return find_many(image, [pattern])[pattern]


def find_many(image: Image, patterns: Iterable[str]) -> dict[str, list[Function]]:
    """``find_functions`` for several patterns in one pass over the symbols."""
    compiled = {pattern: _compile(pattern) for pattern in patterns}
    result: dict[str, list[Function]] = {pattern: [] for pattern in compiled}
    if not compiled:
        return result
    seen: set[tuple[str, int]] = set()
    for name, address, size in _symbols(image, compiled, _STT_FUNC):
        # A function that the file does not hold, or outside the code, can not be probed.
        offset = image.file_offset(address)
        if offset is None or not image.is_executable(address) or (name, address) in seen:
            continue
        if len(seen) == _MAX_FUNCTIONS:
            raise image.broken("too many of its symbols are named alike")
        seen.add((name, address))
        for pattern, expression in compiled.items():
            if expression.fullmatch(name):
                result[pattern].append(Function(name, VirtAddr(address), size, offset))
    for functions in result.values():
        functions.sort(key=lambda function: function.address)
    return result


def find_function_at(image: Image, address: int) -> Function | None:
    """The function that begins at ``address``, the longest one where several do; its name is left empty."""
    offset = image.file_offset(address)
    if offset is None or not image.is_executable(address):
        return None
    if not has_symbols(image):
        size = FunctionTable(image).size(address)
        return Function("", VirtAddr(address), size, offset, FoundBy.CODE) if size else None
    found: Function | None = None
    for table in _tables(image):
        size = min(table.size, _MAX_TABLE) // _SYMBOL.size * _SYMBOL.size
        for _, piece in image.chunks(table.offset, size, record=_SYMBOL.size):
            values = memoryview(piece).cast("Q")[1 :: _SYMBOL.size // 8].tolist()
            index = -1
            while (index := _index(values, address, index + 1)) >= 0:
                _, info, _, _, _, length = _SYMBOL.unpack_from(piece, index * _SYMBOL.size)
                if info & 15 == _STT_FUNC and length > (found.size if found else 0):
                    found = Function("", VirtAddr(address), length, offset)
    return found


def find_objects(image: Image, pattern: str) -> list[VirtAddr]:
    """Addresses of all static variables whose canonical path matches ``pattern``, ascending."""
    compiled = {pattern: _compile(pattern)}
    found = _symbols(image, compiled, _STT_OBJECT)
    return sorted({VirtAddr(value) for name, value, _ in found if compiled[pattern].fullmatch(name)})


def _index(values: list[int], value: int, start: int) -> int:
    try:
        return values.index(value, start)
    except ValueError:
        return -1


def find_thread_locals(image: Image, pattern: str) -> list[ThreadLocal]:
    """All thread-local variables whose canonical path matches ``pattern``."""
    compiled = {pattern: _compile(pattern)}
    return [
        ThreadLocal(name, value, size)
        for name, value, size in _symbols(image, compiled, _STT_TLS)
        if compiled[pattern].fullmatch(name)
    ]


def contains_name(image: Image, fragment: bytes) -> bool:
    """Whether any symbol's mangled name contains ``fragment``."""
    for table in _tables(image):
        strings = _strings(image, table)
        if strings is not None and any(
            fragment in piece for _, piece in image.chunks(strings.offset, strings.size, len(fragment))
        ):
            return True
    return False


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


class _Sieve:
    """Tells from a mangled name's bytes alone whether it can match one of some patterns.

    Each identifier of a pattern stands in the mangled name too, in either mangling. ``words`` has for
    each text to search for, the rarest of its pattern, what else a name must contain: names of crates
    and modules stand in thousands of symbols.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self.words: dict[bytes, list[tuple[bytes, ...]]] = {}
        for pattern in patterns:
            # `{closure}` and the like are spelled otherwise in each mangling.
            words = _IDENTIFIER.findall(_IN_BRACES.sub("", pattern))
            if not words:
                raise ValueError(f"symbol pattern {pattern!r} has no identifier to look for")
            self.words.setdefault(_rarest(pattern, words).encode(), []).append(
                tuple(word.encode() for word in words)
            )

    def passes(self, rarest: bytes, name: bytes) -> bool:
        return any(all(word in name for word in words) for words in self.words[rarest])


def _rarest(pattern: str, words: list[str]) -> str:
    """What of a pattern to look for in the string table.

    A path's last names stand there with their lengths before them, in both manglings, and in modules
    right after one another: the function ``poll`` of the module ``raw`` is ``3raw4poll``.
    """
    texts = [word for word in words if word[0].isupper()]
    parent, name = ("", *pattern.rsplit("::", 2))[-2:]
    if _NAME.fullmatch(name):
        text = f"{len(name)}{name}"
        if "<" not in pattern and _NAME.fullmatch(parent) and parent.islower() and name.islower():
            text = f"{len(parent)}{parent}{text}"
        texts.append(text)
    return max(texts or words, key=len)


def _tables(image: Image) -> list[Section]:
    """The full symbol table and the dynamic linker's; a file has no more than one of each."""
    tables: dict[int, Section] = {}
    for section in image.sections:
        if section.type in (_SHT_SYMTAB, _SHT_DYNSYM) and section.size:
            tables.setdefault(section.type, section)
    return list(tables.values())


def _strings(image: Image, table: Section) -> Section | None:
    return image.sections[table.link] if 0 < table.link < len(image.sections) else None


def _symbols(image: Image, patterns: Iterable[str], kind: int) -> Iterator[tuple[str, int, int]]:
    """(canonical path, value, size) of the defined symbols of a type whose name passes the sieve."""
    sieve = _Sieve(patterns)
    for table in _tables(image):
        strings = _strings(image, table)
        if strings is None:
            continue
        names = _candidates(image, strings, sieve)
        if not names:
            continue
        paths: dict[int, str | None] = {}
        size = min(table.size, _MAX_TABLE) // _SYMBOL.size * _SYMBOL.size
        for _, piece in image.chunks(table.offset, size, record=_SYMBOL.size):
            # The first of a symbol's six words is its name; no object is made of what no pattern wants.
            words = memoryview(piece).cast("I")[:: _SYMBOL.size // 4].tolist()
            if names.keys().isdisjoint(words):
                continue
            for index in [index for index, name in enumerate(words) if name in names]:
                name, info, _, section, value, length = _SYMBOL.unpack_from(piece, index * _SYMBOL.size)
                if info & 15 != kind or not 0 < section < _SHN_LORESERVE:
                    continue
                if name not in paths:
                    paths[name] = demangle(names[name])
                path = paths[name]
                if path is not None:
                    yield path, value, length


def _candidates(image: Image, strings: Section, sieve: _Sieve) -> dict[int, str]:
    """String table offset → name, for the Rust names that the sieve lets pass."""
    result: dict[int, str] = {}
    total = hits = 0
    for offset, piece in image.chunks(strings.offset, strings.size, _MAX_NAME):
        for rarest in sieve.words:
            position = piece.find(rarest)
            while position >= 0:
                hits += 1
                if hits > _MAX_HITS:
                    raise image.broken("too many of its symbols are named alike")
                begin = piece.rfind(b"\0", max(0, position - _MAX_NAME), position) + 1
                end = piece.find(b"\0", position, position + _MAX_NAME)
                position = piece.find(rarest, max(end, position + 1))
                if end < 0 or end - begin > _MAX_NAME or piece[begin : begin + 2] not in (b"_Z", b"_R"):
                    continue
                start = offset + begin - strings.offset
                if start in result or not sieve.passes(rarest, name := piece[begin:end]):
                    continue
                total += len(name)
                if total > _MAX_CANDIDATES:
                    raise image.broken("too many of its symbols are named alike")
                result[start] = name.decode("ascii", "replace")
    return result
