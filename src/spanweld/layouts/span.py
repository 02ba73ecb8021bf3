"""The layout of the SDK's ``Span``, from debug information.

opentelemetry_sdk src/trace/span.rs (``Span``, ``SpanData``), opentelemetry src/trace/span_context.rs;
in 0.17 both in opentelemetry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from spanweld.image.elf import Image
from spanweld.layouts.dwarf import MAX_SIZE, Dwarf, LayoutError, Place
from spanweld.model import SpanKind

_SPAN = ("opentelemetry_sdk::trace::span::Span", "opentelemetry::sdk::trace::span::Span")
# What processors are given at a span's end.
_EXPORTED = (
    "opentelemetry_sdk::trace::export::SpanData",
    "opentelemetry_sdk::export::trace::SpanData",
    "opentelemetry::sdk::export::trace::SpanData",
)
_END = "core::option::Option<std::time::SystemTime>"
_SDK = re.compile(r"/(?:opentelemetry_sdk|opentelemetry)-(\d{1,5}\.\d{1,5}\.\d{1,7}[^/]{0,60})/src/lib\.rs")


@dataclass(frozen=True, slots=True)
class DescribedSpan:
    """What debug information says: ``values`` are the fields of ``SdkLayout`` that are about the layout.

    ``sdk`` is None where the type is not described in the SDK's own crate; ``rustc`` where the compiler
    did not leave its name.
    """

    values: dict[str, Any]
    sdk: str | None
    rustc: str | None


def describe(image: Image) -> DescribedSpan:
    """Read the layout out of the image's debug information; a LayoutError says why it can not be."""
    dwarf = Dwarf(image)
    span = dwarf.find(_SPAN, ("span_limits", "span_context", "SpanData"))
    end = dwarf.find((_END,), ("Option<std::time::SystemTime>",))
    sdk = _SDK.search(span.unit_name)
    values = _describe(Place(0, span), Place(0, end))
    values["exported"] = _describe_exported(dwarf)
    return DescribedSpan(values, sdk[1] if sdk else None, span.producer)


def _describe(span: Place, end: Place) -> dict[str, Any]:
    if not 0 < span.type.size <= MAX_SIZE:
        raise LayoutError(f"a Span of {span.type.size} bytes")
    context = span.field("span_context")
    option = span.field("data").enum()
    data = option.payload("Some").field("__0")
    kinds = data.field("span_kind").enumerators([kind.name.capitalize() for kind in SpanKind])
    return {
        "span_size": span.type.size,
        "span_context": context.offset,
        "context_size": context.type.size,
        "context_trace_id": context.field("trace_id").first().offset - context.offset,
        "context_span_id": context.field("span_id").first().offset - context.offset,
        "context_is_remote": context.field("is_remote").offset - context.offset,
        "context_flags": context.field("trace_flags").first().offset - context.offset,
        "span_data": option.offset,
        "span_data_size": option.size,
        "span_data_none": option.niche("None"),
        "span_kinds": {name.upper(): value for name, value in kinds.items()},
        **_data(data),
        **_end_argument(end),
    }


def _describe_exported(dwarf: Dwarf) -> dict[str, Any] | None:
    """Where the same fields lie in the exported data; None where that type is not described."""
    try:
        data = Place(0, dwarf.find(_EXPORTED, ("SpanData", "parent_span_id", "span_context")))
        return {"span_context": data.field("span_context").offset, **_data(data)}
    except LayoutError:
        return None


def _data(data: Place) -> dict[str, Any]:
    """What a span and its exported data both have."""
    start_seconds, start_nanos = _time(data.field("start_time"))
    end_seconds, end_nanos = _time(data.field("end_time"))
    remote = None
    if "parent_span_is_remote" in data.field_names():
        remote = data.field("parent_span_is_remote").offset
    return {
        "span_parent_id": data.field("parent_span_id").first().offset,
        "span_parent_is_remote": remote,
        **_text("span_name", data.field("name")),
        "span_kind": data.field("span_kind").offset,
        "span_start_seconds": start_seconds,
        "span_start_nanos": start_nanos,
        "span_end_seconds": end_seconds,
        "span_end_nanos": end_nanos,
        **_status(data),
    }


def _status(data: Place) -> dict[str, Any]:
    """How the status is told, and where an error's description is."""
    if "status_code" in data.field_names():
        code = data.field("status_code")
        values = code.enumerators(("Unset", "Ok", "Error"))
        return {
            "span_status": code.offset,
            "span_status_size": code.type.size,
            "status_unset": values["Unset"],
            "status_ok": values["Ok"],
            **_text("status_description", data.field("status_message")),
        }
    status = data.field("status").enum()
    return {
        "span_status": status.offset,
        "span_status_size": status.size,
        "status_unset": status.niche("Unset"),
        "status_ok": status.niche("Ok"),
        **_text("status_description", status.payload("Error").field("description")),
    }


def _end_argument(end: Place) -> dict[str, int | None]:
    """How an ``Option<SystemTime>`` is passed as the second argument of a function."""
    option = end.enum()
    seconds, nanos = _time(option.payload("Some").field("__0"))
    none = option.niche("None")
    # The Rust ABI passes two scalars in registers, and by address what is longer than two words.
    in_registers = end.type.size <= 16
    if in_registers and (seconds, nanos, option.offset, option.size) != (0, 8, 8, 4):
        raise LayoutError("Option<SystemTime> is not the pair (u64 seconds, u32 nanoseconds)")
    if not in_registers and option.size != 8:
        raise LayoutError(f"Option<SystemTime> is told by {option.size} bytes, not by 8")
    return {
        "end_argument_none_nanos": none if in_registers else None,
        "end_argument_seconds": None if in_registers else seconds,
        "end_argument_nanos": None if in_registers else nanos,
        "end_argument_tag": None if in_registers else option.offset,
        "end_argument_tag_none": None if in_registers else none,
    }


def _text(name: str, cow: Place) -> dict[str, int | None]:
    """Where a ``Cow<'static, str>`` keeps pointer and length, borrowed and owned, and what tells which."""
    enum = cow.enum()
    borrowed = enum.payload("Borrowed").field("__0")
    vector = enum.payload("Owned").field("__0").field("vec")
    buffer = vector.field("buf")
    if "inner" in buffer.field_names():
        buffer = buffer.field("inner")
    pointers = (borrowed.field("data_ptr").offset, buffer.field("ptr").first().offset)
    lengths = (borrowed.field("length").offset, vector.field("len").offset)
    same = pointers[0] == pointers[1] and lengths[0] == lengths[1]
    if not same and enum.size != 8:
        raise LayoutError(f"a Cow<str> is told by {enum.size} bytes, not by 8")
    return {
        f"{name}_pointer": pointers[0],
        f"{name}_length": lengths[0],
        f"{name}_owned_pointer": pointers[1],
        f"{name}_owned_length": lengths[1],
        f"{name}_tag": None if same else enum.offset,
        f"{name}_borrowed": None if same else enum.niche("Borrowed"),
    }


def _time(time: Place) -> tuple[int, int]:
    """Offsets of a SystemTime's i64 seconds and its nanoseconds (u32, or an i64 below 2^32)."""
    spec = time.field("__0").field("t")
    return spec.field("tv_sec").offset, spec.field("tv_nsec").first().offset
