"""Where the SDK's structs keep their fields: by an image's own debug information, its versions, or its code.

``database.json`` is generated (``tools/layouts/generate.py``) from the compiler's debug information
for crate version, compiler and target. ``repr(Rust)`` lets each compiler order fields as it likes, so
an entry is certain only for the compilers that it was generated with; for others it is what is
expected, and nothing may be written to a process before an id that the SDK has just made was read back
where the layout says. So it is asked for only where the machine code does not say the same (``code``), and
not at all where that says otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from importlib import resources
from typing import Any

from spanweld.image.elf import Image
from spanweld.image.facts import ImageFacts
from spanweld.image.stripped import ExportedData
from spanweld.layouts.code import SPAN_KINDS, CodeError, derive
from spanweld.layouts.dwarf import LayoutError
from spanweld.layouts.span import describe
from spanweld.model import SpanKind

SCHEMA = 2
# Of exported data: what is no place in it. All else of it is aligned to no more than this.
_VALUES_OF_EXPORTED = frozenset(
    ("span_name_borrowed", "span_status_size", "status_unset", "status_ok", "status_description_borrowed")
)
_ALIGNMENT = 16
_FIRST_SDK = (0, 18, 0)
_CERTAIN = "certain"


@dataclass(frozen=True, slots=True)
class SdkLayout:
    """Offsets in bytes inside ``opentelemetry_sdk``'s ``Span``, and the values that tell its variants.

    ``context_*`` are relative to a ``SpanContext``; all others to the ``Span`` whose address is in
    rdi at the entry of ``Span::ensure_ended_and_exported``. Identifiers lie there as native
    integers (little-endian u128 and u64), flags are bytes 0 or 1 (``context_flags``: the W3C byte),
    seconds i64 and nanoseconds u32 since the Unix epoch, text a pointer and a u64 length in bytes.

    - The integer of ``span_data_size`` bytes at ``span_data`` is ``span_data_none`` where the span has
      ended or does not record; then nothing but the span context may be read.
    - The integer of ``span_status_size`` bytes at ``span_status`` is ``status_unset``, ``status_ok`` or
      anything else for an error, and only an error has a description.
    - The byte at ``span_kind`` is a key of ``span_kinds``.
    - A text is borrowed where the u64 at its ``…_tag`` is its ``…_borrowed``, and else owned. Both are
      None where it does not matter: then ``…_owned_pointer`` is ``…_pointer``, and so is the length.
    - At the entry rsi and edx hold the end time given by hand as seconds and nanoseconds; edx is
      ``end_argument_none_nanos`` where there is none. With compilers for which that is None, rsi is the
      address of a struct instead: the u64 at ``end_argument_tag`` is ``end_argument_tag_none`` where there
      is no end time. Without one the end time in the span counts if it differs from the start time, and
      else the SDK takes the present time.
    - ``span_parent_is_remote`` is None for versions that do not keep it.
    - ``exported`` has those of these fields that lie elsewhere in the ``SpanData`` that processors are given
      at a span's end; None where that is not known.

    ``sdk`` and ``rustc`` are what the entry was generated with, or of the image itself (None: not known).
    ``source`` is where it comes from: ``debug information``, ``database`` or ``code``. ``confidence`` is how
    certain it is for the asked versions: one of the words ``certain``, ``high``, ``medium`` and ``low``, then
    why.

    From the code comes what the code shows, and all else is None: at least the places of ids, flags, parent
    and start time are there. ``read_from`` has, for each field of it, the functions that show it; it is empty
    for the other sources.
    """

    sdk: str | None
    rustc: str | None
    target: str
    span_size: int | None
    span_context: int
    context_size: int | None
    context_trace_id: int
    context_span_id: int
    context_is_remote: int
    context_flags: int
    span_data: int | None
    span_data_size: int | None
    span_data_none: int | None
    span_parent_id: int
    span_parent_is_remote: int | None
    span_name_pointer: int | None
    span_name_length: int | None
    span_name_owned_pointer: int | None
    span_name_owned_length: int | None
    span_name_tag: int | None
    span_name_borrowed: int | None
    span_kind: int | None
    span_kinds: Mapping[int, SpanKind]
    span_start_seconds: int
    span_start_nanos: int
    span_end_seconds: int | None
    span_end_nanos: int | None
    span_status: int | None
    span_status_size: int | None
    status_unset: int | None
    status_ok: int | None
    status_description_pointer: int | None
    status_description_length: int | None
    status_description_owned_pointer: int | None
    status_description_owned_length: int | None
    status_description_tag: int | None
    status_description_borrowed: int | None
    end_argument_none_nanos: int | None
    end_argument_seconds: int | None
    end_argument_nanos: int | None
    end_argument_tag: int | None
    end_argument_tag_none: int | None
    exported: Mapping[str, int | None] | None
    source: str
    confidence: str
    read_from: Mapping[str, tuple[str, ...]]

    @property
    def shows_spans(self) -> bool:
        """Whether it is enough to show a span, with its name, its kind, its status and its end."""
        ends = self.end_argument_none_nanos is not None or self.end_argument_tag is not None
        shown = (
            self.span_name_pointer,
            self.span_name_length,
            self.span_kind,
            self.span_status,
            self.status_ok,
        )
        return ends and None not in shown

    def of_exported_data(self) -> SdkLayout | None:
        """The same for exported data, which is always there: ``span_data_size`` is 0."""
        if self.exported is None:
            return None
        places: dict[str, Any] = {**self.exported, "span_data_size": 0}
        return replace(self, **places)

    @property
    def exported_data(self) -> ExportedData | None:
        """What is known of exported data as a whole: its fields go to its end, up to the alignment."""
        data = self.of_exported_data()
        if data is None or self.exported is None:
            return None
        name, description = data.span_name_owned_pointer, data.status_description_owned_pointer
        if name is None or description is None:
            return None
        places = [
            place
            for field, place in self.exported.items()
            if place is not None and field not in _VALUES_OF_EXPORTED
        ]
        return ExportedData(
            texts=(name, description),
            size=(max(places) | _ALIGNMENT - 1) + 1,
        )


# What the code may not show.
_MAY_BE_ABSENT = tuple(field.name for field in fields(SdkLayout) if field.type == "int | None")


def sdk_versions(facts: ImageFacts) -> tuple[str, ...]:
    """The versions of the SDK in an image; until 0.17 it was a part of the crate ``opentelemetry``."""
    api = facts.crates.get("opentelemetry", ())
    together = tuple(version for version in api if _key(version) < _FIRST_SDK)
    return facts.crates.get("opentelemetry_sdk", ()) + together


def layout_of(image: Image, facts: ImageFacts) -> SdkLayout | str:
    """The layout for an image, or a sentence that says why there is none.

    The image's own debug information decides where it describes the type, then an entry of the database for
    just these versions. What else the database has must be what the code of the image shows, as far
    as that goes; where the database has nothing, the code decides alone.
    """
    known = known_layout(image, facts)
    versions = sdk_versions(facts)
    if len(versions) != 1 or (isinstance(known, SdkLayout) and known.confidence.startswith(_CERTAIN)):
        return known
    return _with_code(image, facts, versions[0], known)


def known_layout(image: Image, facts: ImageFacts) -> SdkLayout | str:
    """The layout by the image's own debug information, else by its versions; a sentence why there is none."""
    versions = sdk_versions(facts)
    if len(versions) > 1:
        return f"the image has several versions of opentelemetry_sdk in it: {', '.join(versions)}"
    try:
        described = describe(image)
    except LayoutError as error:
        if not versions:
            return f"the version of opentelemetry_sdk is not known, and {error}"
        return lookup(versions[0], facts.rustc, facts.target)
    return make_layout(
        described.values,
        sdk=versions[0] if versions else described.sdk,
        rustc=described.rustc or facts.rustc,
        target=facts.target,
        source="debug information",
        confidence=f"{_CERTAIN}: what the compiler says of this very build",
    )


def _with_code(image: Image, facts: ImageFacts, sdk: str, known: SdkLayout | str) -> SdkLayout | str:
    """What the code shows, completed by what is known of other versions if that is no other layout."""
    try:
        shown = derive(image)
    except CodeError as error:
        if isinstance(known, SdkLayout):
            return known
        return f"{known}, and its code does not tell: {error}"
    values: dict[str, Any] = dict.fromkeys(_MAY_BE_ABSENT)
    confidence = f"{_CERTAIN}: what {len(set().union(*shown.read_from.values()))} of the SDK's functions do"
    if isinstance(known, SdkLayout):
        for name, value in shown.values.items():
            expected = getattr(known, name)
            if expected != value:
                there = "nowhere" if expected is None else f"at {expected:#x}"
                return (
                    f"the code has {name} at {value:#x}, and the database, "
                    f"{known.confidence.partition(': ')[2]}, has it {there}"
                )
        values |= {name: getattr(known, name) for name in (*_MAY_BE_ABSENT, "exported")}
        confidence += f"; what they do not show: {known.confidence}"
    kinds = {kind.name: number for number, kind in enumerate(SPAN_KINDS)}
    return make_layout(
        {"exported": None, **values, **shown.values, "span_kinds": kinds},
        sdk=sdk,
        rustc=facts.rustc,
        target=facts.target,
        source="code",
        confidence=confidence,
        read_from=shown.read_from,
    )


def lookup(sdk_version: str, rustc_version: str | None, target: str) -> SdkLayout | str:
    """The layout for an SDK and a compiler, or a sentence that says why there is none.

    Patch releases of the SDK that are not in the database are taken for the nearest one that is.
    Between two known compilers with the same layout, that is the answer; between two that differ, and
    before the oldest one, there is none. After the newest one its layout is what is expected, more or less
    according to whether the one before it had it too.
    """
    sdk = _version(sdk_version)
    if sdk is None:
        return f"{sdk_version!r} is not a version of opentelemetry_sdk"
    known = [entry for entry in database() if entry.target == target]
    same = [entry for entry in known if _key(entry.sdk)[:2] == sdk[:2]]
    if not same:
        has = ", ".join(sorted({entry.sdk for entry in known}, key=_key)) or "nothing for it"
        return f"opentelemetry_sdk {sdk_version} on {target} is not in the layout database (it has {has})"
    by_compiler: dict[str, Entry] = {}
    for entry in sorted(same, key=lambda entry: abs(_key(entry.sdk)[2] - sdk[2]), reverse=True):
        by_compiler[entry.rustc] = entry
    entries = sorted(by_compiler.values(), key=lambda entry: _key(entry.rustc))
    found = _by_compiler(entries, rustc_version)
    if isinstance(found, str):
        return f"opentelemetry_sdk {sdk_version}: {found}"
    entry, confidence, why = found
    if entry.sdk != sdk_version:
        confidence = min(confidence, _Confidence.HIGH)
        why += f"; generated for opentelemetry_sdk {entry.sdk}"
    return make_layout(
        entry.values,
        sdk=entry.sdk,
        rustc=entry.rustc,
        target=target,
        source="database",
        confidence=f"{confidence.name.lower()}: {why}",
    )


class _Confidence(IntEnum):
    LOW = 0
    MEDIUM = 1
    HIGH = 2
    CERTAIN = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One layout of the database, for one SDK and one rustc that it was generated with."""

    sdk: str
    rustc: str
    target: str
    values: Mapping[str, Any]


def _by_compiler(entries: Sequence[Entry], rustc: str | None) -> tuple[Entry, _Confidence, str] | str:
    """The entry for a compiler, how certain it is and why; ``entries`` go from old to new compilers."""
    oldest, newest = entries[0], entries[-1]
    if rustc is None:
        if all(entry.values == newest.values for entry in entries):
            why = f"the same with every known rustc from {oldest.rustc} to {newest.rustc}"
            return newest, _Confidence.MEDIUM, f"{why}, and the image does not tell its own"
        why = f"generated with rustc {newest.rustc}, older ones differ, and the image does not tell its own"
        return newest, _Confidence.LOW, why
    version = _version(rustc)
    if version is None:
        return f"{rustc!r} is not a version of rustc"
    for entry in entries:
        if entry.rustc == rustc and "-" not in rustc:
            return entry, _Confidence.CERTAIN, "generated with this very SDK and compiler"
    # The patch releases of a compiler do not change what it does. A nightly may be older than a change.
    below = [entry for entry in entries if _key(entry.rustc)[:2] <= version[:2]]
    above = [entry for entry in entries if _key(entry.rustc)[:2] >= version[:2]]
    if not below:
        return f"rustc {rustc} is older than all that its layout is known for ({oldest.rustc} and later)"
    if below[-1] in above:
        is_nearly_it = rustc == below[-1].rustc or "-" not in rustc + below[-1].rustc
        confidence = _Confidence.HIGH if is_nearly_it else _Confidence.MEDIUM
        return below[-1], confidence, f"generated with rustc {below[-1].rustc}"
    if not above:
        since = next(entry.rustc for entry in entries if _same_from(entry, entries))
        newer = f"rustc {rustc} is newer than all that are known"
        if since == newest.rustc:
            return newest, _Confidence.LOW, f"so with rustc {since} alone, and {newer}"
        return newest, _Confidence.MEDIUM, f"the same from rustc {since} to {newest.rustc}, and {newer}"
    if below[-1].values != above[0].values:
        nearest = f"{below[-1].rustc} and {above[0].rustc}"
        return f"rustc {rustc} lies between {nearest}, which lay out a Span in two ways"
    why = f"the same with rustc {below[-1].rustc} and {above[0].rustc}, the nearest known"
    return below[-1], _Confidence.HIGH, why


def _same_from(first: Entry, entries: Sequence[Entry]) -> bool:
    later = entries[entries.index(first) :]
    return all(entry.values == entries[-1].values for entry in later)


def make_layout(
    values: Mapping[str, Any],
    *,
    sdk: str | None,
    rustc: str | None,
    target: str,
    source: str,
    confidence: str,
    read_from: Mapping[str, tuple[str, ...]] | None = None,
) -> SdkLayout:
    """A layout from its fields as the database and debug information have them."""
    kinds = {value: SpanKind[kind] for kind, value in values["span_kinds"].items()}
    return SdkLayout(
        **{**values, "span_kinds": kinds},
        sdk=sdk,
        rustc=rustc,
        target=target,
        source=source,
        confidence=confidence,
        read_from=read_from or {},
    )


def database() -> list[Entry]:
    """All entries of ``database.json``."""
    text = resources.files(__name__).joinpath("database.json").read_text("utf-8")
    content = json.loads(text)
    assert content["schema"] == SCHEMA, "database.json and this module belong together"
    result = []
    for entry in content["layouts"]:
        values = {key: value for key, value in entry.items() if key not in ("target", "generated")}
        for sdk, compilers in entry["generated"].items():
            result += [Entry(sdk, rustc, entry["target"], values) for rustc in compilers]
    return result


def _version(text: str) -> tuple[int, int, int] | None:
    match = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?:[-+]|$)", text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _key(text: str) -> tuple[int, int, int]:
    return _version(text) or (0, 0, 0)
