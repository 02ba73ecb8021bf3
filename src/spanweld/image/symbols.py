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

from spanweld.image.demangle import demangle
from spanweld.image.elf import MAX_SECTION, Image, Section
from spanweld.model import FileOffset, VirtAddr

_SYMBOL = struct.Struct("<IBBHQQ")
_STT_FUNC, _STT_TLS = 2, 6
_SHT_SYMTAB, _SHT_DYNSYM = 2, 11
_SHN_LORESERVE = 0xFF00
_MAX_NAME = 1 << 12
_MAX_CANDIDATES = 1 << 22
"""Bytes of names: thousands of times what a large debug build has for any pattern."""
_IDENTIFIER = re.compile(r"[A-Za-z0-9_]{4,}")


@dataclass(frozen=True, slots=True)
class Function:
    """A function of an image; ``name`` is its canonical path, ``size`` in bytes."""

    name: str
    address: VirtAddr
    size: int
    file_offset: FileOffset


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
        seen.add((name, address))
        for pattern, expression in compiled.items():
            if expression.fullmatch(name):
                result[pattern].append(Function(name, VirtAddr(address), size, offset))
    for functions in result.values():
        functions.sort(key=lambda function: function.address)
    return result


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
    expression = re.compile(re.escape(fragment))
    for section in _tables(image):
        strings = _strings(image, section)
        if strings is None:
            continue
        found = image.search(expression, strings.offset, strings.size, len(fragment))
        if next(found, None) is not None:
            return True
    return False


def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


class _Sieve:
    """Tells from a mangled name's bytes alone whether it can match one of some patterns.

    Each identifier of a pattern stands in the mangled name too, in either mangling. The one that
    is looked for first is the rarest: names of crates and modules stand in thousands of symbols.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._words: list[tuple[bytes, ...]] = []
        firsts = set()
        for pattern in patterns:
            words = _IDENTIFIER.findall(pattern)
            if not words:
                raise ValueError(f"symbol pattern {pattern!r} has no identifier to look for")
            first = words[-1] if len(words[-1]) > 5 else max(words, key=len)
            firsts.add(re.escape(first.encode()))
            self._words.append(tuple(word.encode() for word in words))
        self.expression = re.compile(b"|".join(sorted(firsts)))

    def passes(self, name: bytes) -> bool:
        return any(all(word in name for word in words) for words in self._words)


def _tables(image: Image) -> list[Section]:
    return [section for section in image.sections if section.type in (_SHT_SYMTAB, _SHT_DYNSYM)]


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
        size = min(table.size, MAX_SECTION) // _SYMBOL.size * _SYMBOL.size
        for _, piece in image.chunks(table.offset, size, record=_SYMBOL.size):
            for name, info, _, section, value, length in _SYMBOL.iter_unpack(piece):
                if name in names and info & 15 == kind and 0 < section < _SHN_LORESERVE:
                    path = demangle(names[name])
                    if path is not None:
                        yield path, value, length


def _candidates(image: Image, strings: Section, sieve: _Sieve) -> dict[int, str]:
    """String table offset → name, for the Rust names that the sieve lets pass."""
    result: dict[int, str] = {}
    total = 0
    for offset, match, piece in image.search(sieve.expression, strings.offset, strings.size, _MAX_NAME):
        begin = piece.rfind(b"\0", 0, match.start()) + 1
        end = piece.find(b"\0", match.end())
        if end < 0 or end - begin > _MAX_NAME or piece[begin : begin + 2] not in (b"_Z", b"_R"):
            continue
        start = offset - match.start() + begin - strings.offset
        if start in result or not sieve.passes(name := piece[begin:end]):
            continue
        total += len(name)
        if total > _MAX_CANDIDATES:
            raise image.broken("too many of its symbols are named alike")
        result[start] = name.decode("ascii", "replace")
    return result
