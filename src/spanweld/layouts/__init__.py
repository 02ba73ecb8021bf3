"""Where the SDK's structs keep their fields, by crate version, compiler and target.

``database.json`` is generated (``tools/layouts/generate.py``) from the compiler's debug
information. ``repr(Rust)`` lets each compiler order fields as it likes, so an entry is certain only
for the compiler that it was generated with; for others it is what is expected, and nothing may be
written to a process before an id that the SDK has just made was read back where the layout says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

from spanweld.model import SpanKind

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class SdkLayout:
    """Offsets in bytes inside ``opentelemetry_sdk``'s ``Span``, and the values that tell its variants.

    ``context_*`` are relative to a ``SpanContext``; all others to the ``Span`` whose address is in
    rdi at the entry of ``Span::ensure_ended_and_exported``. Identifiers lie there as native
    integers (little-endian u128 and u64), flags are bytes 0 or 1 (``context_flags``: the W3C byte),
    seconds i64 and nanoseconds u32 since the Unix epoch, text a pointer and a u64 length in bytes.

    - The u64 at ``span_data`` is ``span_data_none`` where the span has ended or does not record;
      then nothing but the span context may be read.
    - The u64 at ``span_status`` is ``status_unset``, ``status_ok`` or anything else for an error,
      and only an error has a description.
    - The byte at ``span_kind`` is a key of ``span_kinds``.
    - At the entry rsi and edx hold the end time given by hand as seconds and nanoseconds; edx is
      ``end_argument_none_nanos`` where there is none. Then the end time in the span counts if it
      differs from the start time, and else the SDK takes the present time.
    - ``span_parent_is_remote`` is None for versions that do not keep it.

    ``sdk`` and ``rustc`` are what the entry was generated with, ``source`` where it comes from and
    ``confidence`` a sentence about how certain it is for the asked versions.
    """

    sdk: str
    rustc: str
    target: str
    span_size: int
    span_context: int
    context_size: int
    context_trace_id: int
    context_span_id: int
    context_is_remote: int
    context_flags: int
    span_data: int
    span_data_none: int
    span_parent_id: int
    span_parent_is_remote: int | None
    span_name_pointer: int
    span_name_length: int
    span_kind: int
    span_kinds: Mapping[int, SpanKind]
    span_start_seconds: int
    span_start_nanos: int
    span_end_seconds: int
    span_end_nanos: int
    span_status: int
    status_unset: int
    status_ok: int
    status_description_pointer: int
    status_description_length: int
    end_argument_none_nanos: int
    source: str
    confidence: str


def lookup(sdk_version: str, rustc_version: str | None, target: str) -> SdkLayout | str:
    """The layout for an SDK and a compiler, or a sentence that says why there is none.

    An entry holds for all patch releases of its SDK version, and for every compiler since
    ``rustc_since`` of the entry; the one whose compiler is nearest is taken.
    """
    sdk = _version(sdk_version)
    if sdk is None:
        return f"{sdk_version!r} is not a version of opentelemetry_sdk"
    entries = _database()
    same_sdk = [
        entry
        for entry in entries
        if entry["target"] == target and _release(_version(entry["sdk"])) == _release(sdk)
    ]
    if not same_sdk:
        known = sorted({entry["sdk"] for entry in entries if entry["target"] == target}, key=_key)
        has = ", ".join(known) or "nothing for it"
        return f"opentelemetry_sdk {sdk_version} on {target} is not in the layout database (it has {has})"
    rustc = _version(rustc_version) if rustc_version is not None else None
    if rustc is not None:
        usable = [entry for entry in same_sdk if rustc >= _key(entry["rustc_since"])]
        if not usable:
            return (
                f"rustc {rustc_version} orders fields in another way than the compilers that "
                f"opentelemetry_sdk {sdk_version} is known for ({same_sdk[0]['rustc_since']} and later)"
            )
    else:
        usable = same_sdk
    entry = min(
        usable, key=lambda entry: (_distance(_key(entry["rustc"]), rustc), _distance(_key(entry["sdk"]), sdk))
    )
    return _layout(entry, _confidence(entry, sdk_version, rustc_version))


def _confidence(entry: Mapping[str, Any], sdk_version: str, rustc_version: str | None) -> str:
    doubts = []
    if entry["sdk"] != sdk_version:
        doubts.append(f"generated for {entry['sdk']}")
    if rustc_version is None:
        doubts.append(f"generated with rustc {entry['rustc']}, and the image does not tell its own")
    elif entry["rustc"] != rustc_version:
        doubts.append(
            f"generated with rustc {entry['rustc']}, and expected to hold since {entry['rustc_since']}"
        )
    if not doubts:
        return "generated with this very SDK and compiler"
    return "; ".join(doubts)


def _layout(entry: Mapping[str, Any], confidence: str) -> SdkLayout:
    names = {field.name for field in fields(SdkLayout)} - {"source", "confidence", "span_kinds"}
    return SdkLayout(
        **{name: entry[name] for name in names},
        span_kinds={value: SpanKind[kind] for kind, value in entry["span_kinds"].items()},
        source="database",
        confidence=confidence,
    )


def _database() -> list[dict[str, Any]]:
    text = resources.files(__name__).joinpath("database.json").read_text("utf-8")
    content = json.loads(text)
    assert content["schema"] == SCHEMA, "database.json and this module belong together"
    entries: list[dict[str, Any]] = content["layouts"]
    return entries


def _version(text: str) -> tuple[int, int, int] | None:
    match = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?:[-+]|$)", text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def _key(text: str) -> tuple[int, int, int]:
    return _version(text) or (0, 0, 0)


def _release(version: tuple[int, int, int] | None) -> tuple[int, int] | None:
    """What Cargo holds compatible: the major version, or the minor one below 1.0."""
    if version is None:
        return None
    return (0, version[1]) if version[0] == 0 else (version[0], 0)


def _distance(one: tuple[int, int, int], other: tuple[int, int, int] | None) -> tuple[int, ...]:
    if other is None:
        return (0,)
    return tuple(abs(left - right) for left, right in zip(one, other, strict=True))
