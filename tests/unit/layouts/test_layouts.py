"""The layout database: looked up, and held against memory laid out by the compiler."""

from __future__ import annotations

import json
from dataclasses import fields
from importlib import resources
from itertools import pairwise

import pytest

from spanweld.layouts import SCHEMA, SdkLayout, lookup
from spanweld.model import SpanKind

TARGET = "x86_64"


def _found(sdk: str, rustc: str | None) -> SdkLayout:
    layout = lookup(sdk, rustc, TARGET)
    assert isinstance(layout, SdkLayout), layout
    return layout


def test_sdk_0_31() -> None:
    """The offsets that were seen in the machine code of real builds."""
    layout = _found("0.31.0", "1.95.0")
    assert (layout.context_trace_id, layout.context_span_id) == (0x20, 0x30)
    assert (layout.context_is_remote, layout.context_flags) == (0x38, 0x39)
    assert (layout.span_context, layout.span_data, layout.span_parent_id) == (0, 0xA8, 0x150)
    assert layout.span_data_none == 1 << 63
    assert layout.span_parent_is_remote == 0x15C
    assert layout.span_kinds == {
        0: SpanKind.CLIENT,
        1: SpanKind.SERVER,
        2: SpanKind.PRODUCER,
        3: SpanKind.CONSUMER,
        4: SpanKind.INTERNAL,
    }
    assert layout.end_argument_none_nanos == 1_000_000_000
    assert layout.source == "database"
    assert layout.confidence == "generated with this very SDK and compiler"


@pytest.mark.parametrize(
    ("sdk", "rustc", "words"),
    [
        ("0.31.0", "1.96.1", "generated with rustc 1.95.0, and expected to hold since 1.77.0"),
        ("0.31.0", "1.97.0-nightly", "generated with rustc 1.95.0"),
        ("0.31.0", None, "does not tell its own"),
        ("0.31.9", "1.95.0", "generated for 0.31.0"),
    ],
)
def test_confidence(sdk: str, rustc: str | None, words: str) -> None:
    layout = _found(sdk, rustc)
    assert words in layout.confidence
    assert layout.span_data == 0xA8


@pytest.mark.parametrize(
    ("sdk", "rustc", "target", "words"),
    [
        ("0.99.0", "1.95.0", TARGET, "not in the layout database"),
        ("1.31.0", "1.95.0", TARGET, "not in the layout database"),
        ("0.31.0", "1.63.0", TARGET, "orders fields in another way"),
        ("0.31.0", "1.95.0", "aarch64", "nothing for it"),
        ("latest", "1.95.0", TARGET, "not a version"),
    ],
)
def test_reasons(sdk: str, rustc: str, target: str, words: str) -> None:
    reason = lookup(sdk, rustc, target)
    assert isinstance(reason, str)
    assert words in reason


def test_every_entry_is_sound() -> None:
    """No two fields overlap, and all lie inside the span."""
    text = resources.files("spanweld.layouts").joinpath("database.json").read_text("utf-8")
    content = json.loads(text)
    assert content["schema"] == SCHEMA
    for entry in content["layouts"]:
        layout = _found(entry["sdk"], entry["rustc"])
        assert {field.name for field in fields(layout)} - {"source", "confidence"} <= entry.keys()
        sizes = {
            layout.span_context + layout.context_trace_id: 16,
            layout.span_context + layout.context_span_id: 8,
            layout.span_context + layout.context_is_remote: 1,
            layout.span_context + layout.context_flags: 1,
            layout.span_parent_id: 8,
            layout.span_name_pointer: 8,
            layout.span_name_length: 8,
            layout.span_kind: 1,
            layout.span_start_seconds: 8,
            layout.span_start_nanos: 4,
            layout.span_end_seconds: 8,
            layout.span_end_nanos: 4,
            layout.span_status: 8,
            layout.status_description_pointer: 8,
            layout.status_description_length: 8,
        }
        if layout.span_parent_is_remote is not None:
            sizes[layout.span_parent_is_remote] = 1
        places = sorted(sizes.items())
        for (start, size), (following, _) in pairwise(places):
            assert start + size <= following, entry["sdk"]
        assert places[-1][0] + places[-1][1] <= layout.span_size
        assert len({layout.status_unset, layout.status_ok}) == 2
        assert sorted(layout.span_kinds.values()) == sorted(SpanKind)
