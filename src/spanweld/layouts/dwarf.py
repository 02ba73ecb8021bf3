"""Debug information (DWARF 4 and 5) of an image: a few types by their path, without reading the rest.

Debug information can be hundreds of megabytes, and only one unit in a thousand describes the type
that is wanted. A unit that does so has the names of the type's fields in it, as offsets into
``.debug_str``; so these are searched as bytes, and only the units that have them all are read,
smallest first. All numbers in the file are untrusted: what does not fit is a ``LayoutError``, and
whatever is read is paid from a budget, so that a hostile file costs seconds and is then given up.

Rust's shapes of types: a struct is DW_TAG_structure_type with DW_TAG_member; an enum with data has a
DW_TAG_variant_part with one DW_TAG_variant a variant.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from spanweld.errors import ImageError
from spanweld.image.elf import MAX_SECTION, Image, Section

MAX_WORK = 4_000_000
"""Steps before giving up: entries and attributes stepped over; to read one counts for ten. Some seconds."""
_READ = 10
MAX_UNIT = 1 << 26
"""Bytes: a larger unit is not read, and no more than this of all that are read."""
MAX_SIZE = 1 << 15
"""Bytes: no field is farther inside a struct, so that its place fits where programs look it up."""
_MAX_UNITS = 1 << 18
_MAX_HITS = 1 << 18
_MAX_NAME = 1 << 12
_MAX_ABBREVIATIONS = 1 << 20
_MAX_STRING_PLACES = 64

# From the DWARF standard, section 7; only what is looked at.
_TAG_ENUMERATION, _TAG_MEMBER, _TAG_STRUCTURE = 0x04, 0x0D, 0x13
_TAG_ENUMERATOR, _TAG_VARIANT, _TAG_VARIANT_PART, _TAG_NAMESPACE = 0x28, 0x19, 0x33, 0x39
_NAMED = frozenset({_TAG_NAMESPACE, _TAG_STRUCTURE, _TAG_ENUMERATION})
_AT_NAME, _AT_BYTE_SIZE, _AT_DISCR, _AT_DISCR_VALUE, _AT_CONST_VALUE = 0x03, 0x0B, 0x15, 0x16, 0x1C
_AT_PRODUCER, _AT_MEMBER_LOCATION, _AT_DECLARATION, _AT_TYPE = 0x25, 0x38, 0x3C, 0x49
_AT_STR_OFFSETS_BASE = 0x72
_FORM_STRP, _FORM_REF_ADDR, _FORM_STRING, _FORM_INDIRECT, _FORM_LINE_STRP = 0x0E, 0x10, 0x08, 0x16, 0x1F
_FORM_IMPLICIT_CONST, _FORM_FLAG_PRESENT, _FORM_SDATA = 0x21, 0x19, 0x0D
_FIXED_FORMS = {
    **{0x01: 8, 0x05: 2, 0x06: 4, 0x07: 8, 0x0B: 1, 0x0C: 1, 0x0E: 4, 0x10: 4, 0x11: 1, 0x12: 2, 0x13: 4},
    **{0x14: 8, 0x17: 4, 0x19: 0, 0x1C: 4, 0x1D: 4, 0x1E: 16, 0x1F: 4, 0x20: 8, 0x21: 0, 0x24: 8},
    **{0x25: 1, 0x26: 2, 0x27: 3, 0x28: 4, 0x29: 1, 0x2A: 2, 0x2B: 3, 0x2C: 4},
}
"""Form → bytes, for 32-bit DWARF of a 64-bit machine."""
_ULEB_FORMS = frozenset({0x0D, 0x0F, 0x15, 0x1A, 0x1B, 0x22, 0x23})
_BLOCK_FORMS = {0x03: 2, 0x04: 4, 0x0A: 1, 0x09: 0, 0x18: 0}
"""Form → bytes of the length before the block; 0: a ULEB128."""
_UNIT_REFERENCES = frozenset({0x11, 0x12, 0x13, 0x14, 0x15})
_INDEXED_STRINGS = frozenset({0x1A, 0x25, 0x26, 0x27, 0x28})
_UT_COMPILE = 1
_HEADER_4, _HEADER_5 = struct.Struct("<IHIB"), struct.Struct("<IHBBI")
_DWARF_64 = 0xFFFFFFF0
_RUSTC = re.compile(r"rustc version (\d{1,4}\.\d{1,4}\.\d{1,4}[0-9A-Za-z.+-]{0,40})")


class LayoutError(Exception):
    """The debug information does not have what is looked for, or is damaged; the text says what."""


class _Abbreviation(NamedTuple):
    """The shape of an entry; ``size`` is that of all its attributes where none has a length of its own."""

    tag: int
    has_children: bool
    attributes: tuple[tuple[int, int, int], ...]
    size: int | None


class _Unit:
    """One compilation unit: ``start`` is the offset in ``.debug_info``, ``data`` all its bytes."""

    def __init__(
        self, start: int, data: bytes, version: int, abbreviations: dict[int, _Abbreviation]
    ) -> None:
        self.start = start
        self.data = data
        self.version = version
        self.abbreviations = abbreviations
        self.first = _HEADER_5.size if version == 5 else _HEADER_4.size
        self.string_offsets = 8
        """Where its string offsets begin in ``.debug_str_offsets``."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One debugging information entry; ``end`` is where the next one stands in the unit."""

    dwarf: Dwarf
    unit: _Unit
    tag: int
    has_children: bool
    attributes: dict[int, tuple[int, int | bytes]]
    end: int

    @property
    def name(self) -> str:
        """DW_AT_name, or an empty text."""
        return self.dwarf.text(self, _AT_NAME)

    @property
    def size(self) -> int:
        """DW_AT_byte_size; 0 for what has none."""
        return self.number(_AT_BYTE_SIZE) or 0

    @property
    def type(self) -> Entry:
        """The type of a member."""
        return self.reference(_AT_TYPE)

    @property
    def producer(self) -> str | None:
        """The version of the rustc that made the unit."""
        match = _RUSTC.search(self.dwarf.text(self.dwarf.root(self.unit), _AT_PRODUCER))
        return match[1] if match else None

    @property
    def unit_name(self) -> str:
        """The unit's DW_AT_name: the path of its crate's root."""
        return self.dwarf.root(self.unit).name

    def number(self, attribute: int) -> int | None:
        """An attribute that is a number."""
        found = self.attributes.get(attribute)
        return found[1] if found is not None and isinstance(found[1], int) else None

    def reference(self, attribute: int) -> Entry:
        """The entry that an attribute refers to."""
        found = self.attributes.get(attribute)
        if found is None or not isinstance(found[1], int):
            raise LayoutError(f"{self.name or 'an entry'} has no attribute {attribute:#x}")
        form, value = found
        if form in _UNIT_REFERENCES:
            return self.dwarf.entry(self.unit, int(value))
        if form == _FORM_REF_ADDR:
            return self.dwarf.entry_at(int(value))
        raise LayoutError(f"a reference of form {form:#x}")

    def children(self) -> Iterator[Entry]:
        """The entries right inside this one."""
        position, depth = self.end, 0
        while self.has_children:
            child = self.dwarf.next_entry(self.unit, position)
            if child is None:
                if depth == 0:
                    return
                depth -= 1
                position += 1
                continue
            if depth == 0:
                yield child
            depth += child.has_children
            position = child.end


class Dwarf:
    """The debug information of one image. LayoutError from the start where it has none to read."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._info = self._section(".debug_info")
        self._abbreviations = self._section(".debug_abbrev")
        self._strings = self._section(".debug_str")
        self._string_offsets = image.section(".debug_str_offsets")
        self._line_strings = image.section(".debug_line_str")
        self._work = 0
        self._bytes = 0
        self._sifted = 0
        self._units: dict[int, _Unit] = {}
        self._shapes: dict[int, dict[int, _Abbreviation]] = {}
        self._starts: list[int] = []
        self._headers: list[tuple[int, int, int]] = []
        """Size, version and abbreviations of the units at ``_starts``."""
        self._read_headers()

    def find(self, paths: Sequence[str], mentions: Sequence[str]) -> Entry:
        """The struct or enum with one of the paths (``crate::module::Type``).

        ``mentions`` are names that stand in whatever describes it, the rarest first.
        """
        targets = {tuple(path.encode() for path in _split(path)) for path in paths}
        prefixes = {target[:length] for target in targets for length in range(len(target))}
        for unit in self._mentioning(mentions):
            found = self._walk(unit, targets, prefixes)
            if found is not None:
                return found
        raise LayoutError(f"the debug information does not describe {paths[0]}")

    def root(self, unit: _Unit) -> Entry:
        """The entry of the unit itself."""
        return self.entry(unit, unit.first)

    def entry(self, unit: _Unit, position: int) -> Entry:
        """The entry at a position inside a unit."""
        found = self.next_entry(unit, position)
        if found is None:
            raise LayoutError("a reference to no entry")
        return found

    def entry_at(self, offset: int) -> Entry:
        """The entry at an offset in ``.debug_info``."""
        index = bisect_right(self._starts, offset) - 1
        if index < 0:
            raise LayoutError("a reference to no unit")
        return self.entry(self._unit(index), offset - self._starts[index])

    def next_entry(self, unit: _Unit, position: int) -> Entry | None:
        """The entry at a position, or None for the mark that ends a list of children."""
        self._spend(_READ)
        data = unit.data
        if not unit.first <= position < len(data):
            raise LayoutError("an entry outside its unit")
        code, position = _uleb(data, position)
        if code == 0:
            return None
        shape = unit.abbreviations.get(code)
        if shape is None:
            raise LayoutError("an entry of unknown shape")
        attributes: dict[int, tuple[int, int | bytes]] = {}
        self._spend(len(shape.attributes))
        for attribute, form, constant in shape.attributes:
            real_form, value, position = _value(data, position, form, constant)
            attributes[attribute] = (real_form, value)
        return Entry(self, unit, shape.tag, shape.has_children, attributes, position)

    def text(self, entry: Entry, attribute: int) -> str:
        """An attribute that is a text; empty where it is absent."""
        found = entry.attributes.get(attribute)
        if found is None:
            return ""
        form, value = found
        self._spend(_READ)
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return self._bytes_of_string(entry.unit, form, value).decode("utf-8", "replace")

    def _section(self, name: str) -> Section:
        section = self._image.section(name)
        if section is None or not section.size:
            raise LayoutError("the image has no debug information")
        if section.compressed:
            raise LayoutError("the debug information is compressed")
        return section

    def _spend(self, steps: int) -> None:
        self._work += steps
        if self._work > MAX_WORK:
            raise LayoutError("given up: too much debug information stands before what is looked for")

    def _read(self, section: Section, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes of a section."""
        if not 0 <= offset < section.size:
            raise LayoutError(f"an offset outside {section.name}")
        try:
            return self._image.read(section.offset + offset, min(size, section.size - offset))
        except ImageError as error:
            raise LayoutError(error.message) from None

    def _read_headers(self) -> None:
        start = 0
        while start + _HEADER_5.size <= self._info.size:
            header = self._read(self._info, start, _HEADER_5.size)
            length, version = struct.unpack_from("<IH", header)
            if length >= _DWARF_64:
                raise LayoutError("64-bit DWARF is not read")
            size = length + 4
            if start + size > self._info.size or size < _HEADER_5.size:
                raise LayoutError("a unit that is longer than the debug information")
            if version == 5:
                _, _, kind, _, abbreviations = _HEADER_5.unpack(header)
            else:
                kind = _UT_COMPILE if version in (2, 3, 4) else 0
                _, _, abbreviations, _ = _HEADER_4.unpack_from(header)
            self._starts.append(start)
            self._headers.append((size, version if kind == _UT_COMPILE else 0, abbreviations))
            if len(self._starts) > _MAX_UNITS:
                raise LayoutError(f"more than {_MAX_UNITS} units of debug information")
            start += size

    def _unit(self, index: int) -> _Unit:
        start = self._starts[index]
        if start not in self._units:
            size, version, abbreviations = self._headers[index]
            if not version:
                raise LayoutError("a unit of a kind that is not read")
            self._bytes += size
            if self._bytes > MAX_UNIT:
                raise LayoutError(f"given up after {MAX_UNIT >> 20} MiB of debug information")
            data = self._read(self._info, start, size)
            if abbreviations not in self._shapes:
                self._shapes[abbreviations] = self._read_abbreviations(abbreviations)
            unit = _Unit(start, data, version, self._shapes[abbreviations])
            unit.string_offsets = self.root(unit).number(_AT_STR_OFFSETS_BASE) or 8
            self._units[start] = unit
        return self._units[start]

    def _read_abbreviations(self, offset: int, count: int = _MAX_ABBREVIATIONS) -> dict[int, _Abbreviation]:
        """The table at an offset in ``.debug_abbrev``, or the first ``count`` of it."""
        data = self._read(self._abbreviations, offset, _MAX_NAME if count == 1 else _MAX_ABBREVIATIONS)
        result: dict[int, _Abbreviation] = {}
        code, position = _uleb(data, 0)
        while code and len(result) < count:
            tag, position = _uleb(data, position)
            has_children, position = _fixed(data, position, 1)
            attributes: list[tuple[int, int, int]] = []
            size: int | None = 0
            while True:
                self._spend(_READ)
                attribute, position = _uleb(data, position)
                form, position = _uleb(data, position)
                constant = 0
                if form == _FORM_IMPLICIT_CONST:
                    constant, position = _sleb(data, position)
                if not attribute and not form:
                    break
                attributes.append((attribute, form, constant))
                fixed = _FIXED_FORMS.get(form)
                size = None if size is None or fixed is None else size + fixed
            result[code] = _Abbreviation(tag, bool(has_children), tuple(attributes), size)
            code, position = _uleb(data, position)
        return result

    def _mentioning(self, names: Sequence[str]) -> Iterator[_Unit]:
        """The units that have all the names in them, and by chance a few others; smallest first."""
        rare = self._places_of(names[0].encode())
        places = [rare, *(self._places_of(name.encode()) for name in names[1:])] if rare else []
        candidates = {bisect_right(self._starts, offset) - 1 for offset in self._search(rare, self._info)}
        indices = self._string_indices(places)
        for index in sorted(candidates | indices.keys(), key=lambda index: self._headers[max(index, 0)][0]):
            if index < 0 or not self._headers[index][1]:
                continue
            size, version, _ = self._headers[index]
            wanted = indices.get(index, []) if version == 5 else places
            self._sifted += size
            if size > MAX_UNIT or self._sifted > MAX_SECTION:
                raise LayoutError(f"given up after {self._sifted >> 20} MiB of debug information")
            data = self._read(self._info, self._starts[index], size) if wanted else b""
            if wanted and all(any(text in data for text in texts) for texts in wanted):
                yield self._unit(index)

    def _string_indices(self, places: Sequence[Sequence[bytes]]) -> dict[int, list[list[bytes]]]:
        """For units of DWARF 5 the names' indices as they stand in entries, for those that have them all.

        Units of one object file may share their string offsets.
        """
        section = self._string_offsets
        if not places or section is None or not section.size:
            return {}
        bases: dict[int, list[int]] = {}
        for index, (size, version, abbreviations) in enumerate(self._headers):
            if version == 5:
                head = self._read(self._info, self._starts[index], min(size, _MAX_NAME))
                # A unit's own entry is its first, and so is its shape, unless units share their shapes.
                shapes = self._shapes.get(abbreviations) or self._read_abbreviations(abbreviations, 1)
                if _uleb(head, _HEADER_5.size)[0] not in shapes:
                    shapes = self._shapes[abbreviations] = self._read_abbreviations(abbreviations)
                unit = _Unit(self._starts[index], head, version, shapes)
                bases.setdefault(self.root(unit).number(_AT_STR_OFFSETS_BASE) or 8, []).append(index)
        starts = sorted(bases)
        found: dict[int, list[list[bytes]]] = {base: [[] for _ in places] for base in starts}
        for name, texts in enumerate(places):
            for hit in self._search(texts, section):
                place = bisect_right(starts, hit) - 1
                if place >= 0:
                    string = (hit - starts[place]) // 4
                    width = max(1, (string.bit_length() + 7) // 8)
                    found[starts[place]][name].append(string.to_bytes(width, "little"))
        return {index: found[base] for base, units in bases.items() if all(found[base]) for index in units}

    def _places_of(self, name: bytes) -> list[bytes]:
        """Offsets of a text in ``.debug_str`` as they stand in entries.

        Linkers may let it be the end of a longer one.
        """
        places = {struct.pack("<I", offset) for offset in self._search([name + b"\0"], self._strings)}
        if len(places) > _MAX_STRING_PLACES:
            raise LayoutError(f"{name.decode()} stands too often in the debug information")
        return sorted(places)

    def _search(self, texts: Collection[bytes], section: Section) -> Iterator[int]:
        """Offsets in a section at which one of some texts stands; one may come twice."""
        hits = 0
        try:
            # One by one: the search for a mere literal is many times faster than that for alternatives.
            for text in texts:
                pattern = re.compile(re.escape(text))
                for offset, _, _ in self._image.search(pattern, section.offset, section.size, len(text)):
                    hits += 1
                    if hits > _MAX_HITS:
                        raise LayoutError("the debug information is too uniform to be true")
                    yield offset - section.offset
        except ImageError as error:
            raise LayoutError(error.message) from None

    def _walk(
        self, unit: _Unit, targets: set[tuple[bytes, ...]], prefixes: set[tuple[bytes, ...]]
    ) -> Entry | None:
        """The first defined type of a unit with a wanted path; other entries are only stepped over."""
        data, abbreviations, end = unit.data, unit.abbreviations, len(unit.data)
        position = self.root(unit).end
        # For each entry that is open: the path that its children are in, None if it leads nowhere.
        open_paths: list[tuple[bytes, ...] | None] = [()]
        while position < end and open_paths:
            self._spend(1)
            start = position
            code = data[position]
            position += 1
            if code == 0:
                open_paths.pop()
                continue
            if code & 0x80:
                code, position = _uleb(data, start)
            shape = abbreviations.get(code)
            if shape is None:
                raise LayoutError("an entry of unknown shape")
            path = open_paths[-1]
            inner = None
            if path is not None and shape.tag in _NAMED:
                entry = self.entry(unit, start)
                inner = (*path, entry.name.encode())
                if shape.tag != _TAG_NAMESPACE:
                    if inner in targets and _AT_DECLARATION not in entry.attributes:
                        return entry
                    inner = None
                elif inner not in prefixes:
                    inner = None
                position = entry.end
            elif shape.size is not None:
                position += shape.size
            else:
                self._spend(len(shape.attributes))
                position = _skip(data, position, shape)
            if shape.has_children:
                open_paths.append(inner)
        return None

    def _bytes_of_string(self, unit: _Unit, form: int, value: int) -> bytes:
        section: Section | None = self._strings
        if form in _INDEXED_STRINGS:
            if self._string_offsets is None:
                raise LayoutError("a text without its offset")
            place = unit.string_offsets + 4 * value
            data = self._read(self._string_offsets, place, 4)
            value, _ = _fixed(data, 0, 4)
        elif form == _FORM_LINE_STRP:
            section = self._line_strings
        elif form != _FORM_STRP:
            raise LayoutError(f"a text of form {form:#x}")
        if section is None:
            raise LayoutError("a text without its section")
        return self._read(section, value, _MAX_NAME).partition(b"\0")[0]


def _split(path: str) -> list[str]:
    """``core::option::Option<std::time::SystemTime>`` → its namespaces and its name with arguments."""
    head, bracket, arguments = path.partition("<")
    *namespaces, name = head.split("::")
    return [*namespaces, name + bracket + arguments]


def _fixed(data: bytes, position: int, size: int) -> tuple[int, int]:
    if position + size > len(data):
        raise LayoutError("the debug information ends too early")
    return int.from_bytes(data[position : position + size], "little"), position + size


def _uleb(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while position < len(data) and shift < 128:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return result, position
        shift += 7
    raise LayoutError("the debug information ends inside a number")


def _sleb(data: bytes, position: int) -> tuple[int, int]:
    value, end = _uleb(data, position)
    bits = 7 * (end - position)
    return value - (1 << bits) if value >> bits - 1 else value, end


def _value(data: bytes, position: int, form: int, constant: int) -> tuple[int, int | bytes, int]:
    """(form, value, position behind it) of an attribute; a block's content is left out."""
    if form == _FORM_INDIRECT:
        form, position = _uleb(data, position)
    if form == _FORM_IMPLICIT_CONST:
        return form, constant, position
    if form == _FORM_FLAG_PRESENT:
        return form, 1, position
    if form == _FORM_SDATA:
        return form, *_sleb(data, position)
    if form in _ULEB_FORMS:
        return form, *_uleb(data, position)
    size = _FIXED_FORMS.get(form)
    if size is not None:
        return form, *_fixed(data, position, size)
    if form == _FORM_STRING:
        end = data.find(b"\0", position, position + _MAX_NAME)
        if end < 0:
            raise LayoutError("the debug information ends inside a text")
        return form, data[position:end], end + 1
    if form in _BLOCK_FORMS:
        width = _BLOCK_FORMS[form]
        length, position = _fixed(data, position, width) if width else _uleb(data, position)
        if position + length > len(data):
            raise LayoutError("the debug information ends inside a block")
        return form, b"", position + length
    raise LayoutError(f"form {form:#x} is not known")


def _skip(data: bytes, position: int, shape: _Abbreviation) -> int:
    for _, form, constant in shape.attributes:
        size = _FIXED_FORMS.get(form)
        position = position + size if size is not None else _value(data, position, form, constant)[2]
    return position


@dataclass(frozen=True, slots=True)
class Place:
    """A type at an offset in bytes from where the walk through structs and variants began."""

    offset: int
    type: Entry

    def field(self, name: str) -> Place:
        """A field of a struct."""
        for member in self._members():
            if member.name == name:
                return self._at(member)
        raise LayoutError(f"{self.type.name} has no field {name}: it has {', '.join(self.field_names())}")

    def field_names(self) -> list[str]:
        """The names of a struct's fields."""
        return [member.name for member in self._members()]

    def first(self) -> Place:
        """The one field of a newtype, however deep, down to a type that is no struct."""
        place = self
        while place.type.tag == _TAG_STRUCTURE:
            inner = [self._at(member) for member in place._members()]
            inner = [found for found in inner if found.type.size]
            if len(inner) != 1:
                return place
            place = Place(place.offset + inner[0].offset - self.offset, inner[0].type)
        return place

    def enumerators(self, names: Collection[str]) -> dict[str, int]:
        """The values of an enum of one byte and without data, by variant; it must have these ones."""
        values = {
            child.name: child.number(_AT_CONST_VALUE) or 0
            for child in self.type.children()
            if child.tag == _TAG_ENUMERATOR
        }
        if self.type.size != 1 or set(values) != set(names):
            raise LayoutError(f"{self.type.name} has {', '.join(values)} in {self.type.size} bytes")
        return {name: value & 0xFF for name, value in values.items()}

    def enum(self) -> Enumeration:
        """The variants of an enum with data."""
        part = next((child for child in self.type.children() if child.tag == _TAG_VARIANT_PART), None)
        if part is None:
            raise LayoutError(f"{self.type.name} is not an enum with data")
        discriminant = self._at(part.reference(_AT_DISCR))
        size = discriminant.type.size
        if size not in (1, 2, 4, 8):
            raise LayoutError(f"{self.type.name} is told by {size} bytes")
        values: dict[str, int | None] = {}
        payloads: dict[str, Place] = {}
        for variant in part.children():
            member = next((child for child in variant.children() if child.tag == _TAG_MEMBER), None)
            if variant.tag != _TAG_VARIANT or member is None:
                continue
            value = variant.number(_AT_DISCR_VALUE)
            values[member.name] = None if value is None else value & (1 << 8 * size) - 1
            payloads[member.name] = self._at(member)
        return Enumeration(self.type.name, discriminant.offset, size, values, payloads)

    def _members(self) -> Iterator[Entry]:
        return (child for child in self.type.children() if child.tag == _TAG_MEMBER)

    def _at(self, member: Entry) -> Place:
        offset = member.number(_AT_MEMBER_LOCATION)
        if offset is None or not 0 <= self.offset + offset < MAX_SIZE:
            raise LayoutError(f"field {member.name} of {self.type.name} has no place")
        return Place(self.offset + offset, member.type)


@dataclass(frozen=True, slots=True)
class Enumeration:
    """An enum's discriminant: its place, size in bytes, and values by variant (None: any other value)."""

    name: str
    offset: int
    size: int
    values: dict[str, int | None]
    payloads: dict[str, Place]

    def payload(self, variant: str) -> Place:
        """What a variant holds."""
        if variant not in self.payloads:
            raise LayoutError(f"{self.name} has no variant {variant}: it has {', '.join(self.payloads)}")
        return self.payloads[variant]

    def niche(self, variant: str) -> int:
        """The discriminant's value that means ``variant`` and nothing else."""
        value = self.values.get(variant)
        if value is None:
            raise LayoutError(f"variant {variant} of {self.name} has no value of its own")
        return value
