"""Rust symbol names to canonical paths: one spelling for legacy and v0 mangling.

Canonical paths leave out what differs between builds of one source: hashes and crate
disambiguators, generic arguments, closure numbers and the suffixes that LLVM adds. So
``Harness<T,S>::complete`` is ``…::Harness::complete``, an inherent method is ``Type::method`` and
a method of a trait ``<Type as Trait>::method``, wherever the ``impl`` stands.

Sources: rustc's ``compiler/rustc_symbol_mangling`` and RFC 2603 (v0).
"""

from __future__ import annotations

import re

_MAX_MANGLED = 1 << 12
_MAX_DEPTH = 128
_MAX_IMPL_DEPTH = 32
_MAX_LENGTH = 1 << 12

_LEGACY = re.compile(r"_ZN(.+?)17h[0-9a-f]{16}E(?:\..*)?", re.DOTALL)
_LEGACY_ESCAPES = {
    "SP": "@",
    "BP": "*",
    "RF": "&",
    "LT": "<",
    "GT": ">",
    "LP": "(",
    "RP": ")",
    "C": ",",
}
_LEGACY_ESCAPE = re.compile(r"\$(u[0-9a-f]+|[A-Z]+)\$")
_BASIC_TYPES = {
    "a": "i8",
    "b": "bool",
    "c": "char",
    "d": "f64",
    "e": "str",
    "f": "f32",
    "h": "u8",
    "i": "isize",
    "j": "usize",
    "l": "i32",
    "m": "u32",
    "n": "i128",
    "o": "u128",
    "p": "_",
    "s": "i16",
    "t": "u16",
    "u": "()",
    "v": "...",
    "x": "i64",
    "y": "u64",
    "z": "!",
}


def demangle(mangled: str) -> str | None:
    """The canonical path of a mangled Rust name; None for whatever is not one."""
    if len(mangled) > _MAX_MANGLED:
        return None
    path = None
    try:
        if mangled.startswith("_R"):
            path = _V0(mangled[2:].partition(".")[0]).demangle()
        elif mangled.startswith("_ZN"):
            path = _demangle_legacy(mangled)
    except _InvalidError:
        return None
    # What is printed to a terminal must not hold control characters from a file.
    return path if path is not None and path.isprintable() else None


def _demangle_legacy(mangled: str) -> str | None:
    match = _LEGACY.fullmatch(mangled)
    if match is None:
        return None
    rest = match[1]
    parts = []
    while rest:
        digits = len(rest) - len(rest.lstrip("0123456789"))
        if not 0 < digits < 6:
            return None
        length = int(rest[:digits])
        part, rest = rest[digits : digits + length], rest[digits + length :]
        if len(part) != length:
            return None
        parts.append(_unescape_legacy(part))
    return _canonical("::".join(parts))


def _unescape_legacy(part: str) -> str:
    # A leading underscore only keeps the identifier from beginning with '$'.
    if part.startswith("_$"):
        part = part[1:]

    def character(match: re.Match[str]) -> str:
        code = match[1]
        if code in _LEGACY_ESCAPES:
            return _LEGACY_ESCAPES[code]
        if code[0] == "u" and 0x20 <= int(code[1:], 16) < 0x110000:
            return chr(int(code[1:], 16))
        return match[0]

    return _LEGACY_ESCAPE.sub(character, part.replace("..", "::"))


def _canonical(path: str, depth: int = 0) -> str:
    """Bring a legacy path, which spells generic arguments and ``impl`` blocks out, to the canonical form."""
    if depth > _MAX_IMPL_DEPTH:
        raise _InvalidError
    path = path.replace("{{", "{").replace("}}", "}")
    segments = _split(path, "::")
    for index, segment in enumerate(segments):
        if segment.startswith("<impl ") and segment.endswith(">"):
            # a::b::<impl Trait for Type>::method and a::b::<impl Type>::method
            trait, separator, subject = _partition(segment[6:-1], " for ")
            inner = f"<{subject} as {trait}>" if separator else trait
            return _canonical("::".join([inner, *segments[index + 1 :]]), depth + 1)
    result = []
    for index, segment in enumerate(segments):
        if index == 0 and segment.startswith("<") and segment.endswith(">"):
            subject, separator, trait = _partition(segment[1:-1], " as ")
            if separator:
                result.append(f"<{_canonical(subject, depth + 1)} as {_canonical(trait, depth + 1)}>")
            else:
                result.append(_canonical(subject, depth + 1))
        else:
            bare = _without_generics(segment)
            if bare:
                result.append(bare)
    return "::".join(result)


def _without_generics(segment: str) -> str:
    depth = 0
    kept = []
    for position, character in enumerate(segment):
        if character == "<":
            depth += 1
        elif character == ">" and segment[position - 1 : position] != "-":
            depth -= 1
        elif depth <= 0:
            kept.append(character)
    return "".join(kept)


def _split(text: str, separator: str) -> list[str]:
    """Split where no bracket is open."""
    parts = []
    while True:
        head, found, tail = _partition(text, separator)
        parts.append(head)
        if not found:
            return parts
        text = tail


def _partition(text: str, separator: str) -> tuple[str, str, str]:
    """``str.partition`` at the first separator that stands outside all brackets."""
    depth = 0
    for position, character in enumerate(text):
        if character in "<([":
            depth += 1
        elif character in ")]" or (character == ">" and text[position - 1 : position] != "-"):
            depth -= 1
        elif depth <= 0 and text.startswith(separator, position):
            return text[:position], separator, text[position + len(separator) :]
    return text, "", ""


class _InvalidError(Exception):
    """The text is no v0 name, or one beyond the bounds."""


class _V0:
    """A parser of the v0 grammar; the production's name is the method's name."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._depth = 0
        self._steps = 0
        self._max_steps = 4000 + 4 * len(text)

    def demangle(self) -> str | None:
        try:
            path = self._path()
        except (IndexError, ValueError, OverflowError):
            return None
        return path if len(path) <= _MAX_LENGTH else None

    def _next(self) -> str:
        character = self._text[self._position]
        self._position += 1
        self._steps += 1
        if self._steps > self._max_steps:
            raise _InvalidError
        return character

    def _eat(self, character: str) -> bool:
        if self._text.startswith(character, self._position):
            self._position += 1
            return True
        return False

    def _enter(self) -> None:
        self._depth += 1
        self._steps += 1
        if self._depth > _MAX_DEPTH or self._steps > self._max_steps:
            raise _InvalidError

    def _base_62(self) -> int:
        if self._eat("_"):
            return 0
        value = 0
        while (character := self._next()) != "_":
            if character.isdigit():
                digit = ord(character) - ord("0")
            elif "a" <= character <= "z":
                digit = ord(character) - ord("a") + 10
            elif "A" <= character <= "Z":
                digit = ord(character) - ord("A") + 36
            else:
                raise _InvalidError
            value = value * 62 + digit
        return value + 1

    def _disambiguator(self) -> None:
        if self._eat("s"):
            self._base_62()

    def _identifier(self) -> str:
        self._disambiguator()
        punycode = self._eat("u")
        digits = ""
        while self._text[self._position : self._position + 1].isdigit() and len(digits) < 6:
            digits += self._next()
            if digits == "0":
                break
        length = int(digits)
        self._eat("_")
        name = self._text[self._position : self._position + length]
        if len(name) != length:
            raise _InvalidError
        self._position += length
        if punycode:
            base, _, extra = name.rpartition("_")
            name = f"{base}-{extra}".encode("ascii").decode("punycode") if base else name
        return name

    def _back_reference(self, production: str) -> str:
        start = self._position - 1
        target = self._base_62()
        if target >= start:
            raise _InvalidError
        self._enter()
        here, self._position = self._position, target
        text: str = self._path() if production == "path" else self._type()
        self._position = here
        self._depth -= 1
        return text

    def _path(self) -> str:
        self._enter()
        try:
            kind = self._next()
            if kind == "C":
                return self._identifier()
            if kind in "MX":
                self._disambiguator()
                self._path()
                subject = self._type()
                return f"<{subject} as {self._path()}>" if kind == "X" else subject
            if kind == "Y":
                subject = self._type()
                return f"<{subject} as {self._path()}>"
            if kind == "N":
                namespace = self._next()
                parent = self._path()
                name = self._identifier()
                if namespace == "C":
                    name = "{closure}"
                elif namespace == "S":
                    name = "{shim}"
                elif namespace == "K":
                    name = "{constant}"
                elif namespace.isupper() or not name:
                    name = "{" + (name or namespace) + "}"
                return self._bounded(f"{parent}::{name}")
            if kind == "I":
                path = self._path()
                self._generic_arguments()
                return path
            if kind == "B":
                return self._back_reference("path")
            raise _InvalidError
        finally:
            self._depth -= 1

    def _bounded(self, text: str) -> str:
        if len(text) > _MAX_LENGTH:
            raise _InvalidError
        return text

    def _generic_arguments(self) -> None:
        while not self._eat("E"):
            if self._eat("L"):
                self._base_62()
            elif self._eat("K"):
                self._constant()
            else:
                self._type()

    def _type(self) -> str:
        self._enter()
        try:
            kind = self._next()
            if kind in _BASIC_TYPES:
                return _BASIC_TYPES[kind]
            if kind in "RQ":
                if self._eat("L"):
                    self._base_62()
                return self._bounded(("&" if kind == "R" else "&mut ") + self._type())
            if kind in "PO":
                return self._bounded(("*const " if kind == "P" else "*mut ") + self._type())
            if kind == "A":
                item = self._type()
                self._constant()
                return self._bounded(f"[{item}; _]")
            if kind == "S":
                return self._bounded(f"[{self._type()}]")
            if kind == "T":
                items = []
                while not self._eat("E"):
                    items.append(self._type())
                return self._bounded(f"({', '.join(items)})")
            if kind == "F":
                return self._function_signature()
            if kind == "D":
                return self._dynamic_bounds()
            if kind == "B":
                return self._back_reference("type")
            self._position -= 1
            return self._path()
        finally:
            self._depth -= 1

    def _binder(self) -> None:
        if self._eat("G"):
            self._base_62()

    def _function_signature(self) -> str:
        self._binder()
        self._eat("U")
        if self._eat("K") and not self._eat("C"):
            self._identifier()
        arguments = []
        while not self._eat("E"):
            arguments.append(self._type())
        result = self._type()
        return self._bounded(f"fn({', '.join(arguments)}) -> {result}")

    def _dynamic_bounds(self) -> str:
        self._binder()
        traits = []
        while not self._eat("E"):
            traits.append(self._path())
            while self._eat("p"):
                self._identifier()
                self._type()
        if not self._eat("L"):
            raise _InvalidError
        self._base_62()
        return self._bounded(f"dyn {' + '.join(traits)}")

    def _constant(self) -> None:
        self._enter()
        try:
            kind = self._next()
            if kind == "B":
                self._base_62()
            elif kind in "RQ":
                self._constant()
            elif kind in "AT":
                while not self._eat("E"):
                    self._constant()
            elif kind != "p":
                # An integer, bool, char or str: hexadecimal digits up to an underscore.
                self._eat("n")
                while self._next() != "_":
                    pass
        finally:
            self._depth -= 1
