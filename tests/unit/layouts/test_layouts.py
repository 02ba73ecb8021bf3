"""The layout database: looked up, and held against memory laid out by the compiler."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from itertools import pairwise

import pytest

from spanweld import layouts
from spanweld.layouts import SCHEMA, SdkLayout, lookup
from spanweld.model import SpanKind
from tools.layouts.generate import DATABASE, Database

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
    assert layout.confidence == "certain: generated with this very SDK and compiler"


@pytest.mark.parametrize(
    ("sdk", "rustc", "words"),
    [
        ("0.31.0", "1.95.1", "high: generated with rustc 1.95.0"),
        ("0.31.9", "1.95.0", "high: generated with this very SDK and compiler; generated for"),
    ],
)
def test_confidence(sdk: str, rustc: str | None, words: str) -> None:
    layout = _found(sdk, rustc)
    assert layout.confidence.startswith(words)
    assert layout.span_data == 0xA8


@pytest.mark.parametrize(
    ("sdk", "rustc", "target", "words"),
    [
        ("0.99.0", "1.95.0", TARGET, "not in the layout database"),
        ("1.31.0", "1.95.0", TARGET, "not in the layout database"),
        ("0.31.0", "1.56.0", TARGET, "older than all"),
        ("0.31.0", "1.95.0", "aarch64", "nothing for it"),
        ("latest", "1.95.0", TARGET, "not a version"),
        ("0.31.0", "latest", TARGET, "not a version"),
    ],
)
def test_reasons(sdk: str, rustc: str, target: str, words: str) -> None:
    reason = lookup(sdk, rustc, target)
    assert isinstance(reason, str)
    assert words in reason


@pytest.mark.parametrize(
    ("rustc", "words"),
    [
        ("1.62.1", "older than all that its layout is known for (1.63.0 and later)"),
        ("1.63.0", "certain: "),
        ("1.63.1", "high: generated with rustc 1.63.0"),
        ("1.70.0", "lies between 1.63.0 and 1.77.0, which lay out a Span in two ways"),
        ("1.77.0", "certain: "),
        ("1.80.0", "high: the same with rustc 1.77.0 and 1.95.0, the nearest known"),
        ("1.95.0-beta.1", "medium: generated with rustc 1.95.0"),
        ("1.97.0-nightly", "high: generated with rustc 1.97.0-nightly"),
        ("1.98.0", "medium: the same from rustc 1.77.0 to 1.97.0-nightly, and rustc 1.98.0 is newer"),
        (None, "low: generated with rustc 1.97.0-nightly, older ones differ"),
    ],
)
def test_compilers_in_between(rustc: str | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler nobody has tried: between two that agree, two that do not, before and after all."""
    new = _found("0.31.0", "1.95.0")
    values = {name: getattr(new, name) for name in new.__slots__}
    for name in ("sdk", "rustc", "target", "source", "confidence", "read_from"):
        del values[name]
    values["span_kinds"] = {kind.name: value for value, kind in new.span_kinds.items()}
    old = {**values, "span_data": 8}
    entries = [
        layouts.Entry("0.31.0", known, TARGET, old if known == "1.63.0" else values)
        for known in ("1.63.0", "1.77.0", "1.95.0", "1.97.0-nightly")
    ]
    monkeypatch.setattr(layouts, "database", lambda: entries)
    found = lookup("0.31.0", rustc, TARGET)
    assert words in (found if isinstance(found, str) else found.confidence)


def test_newest_compiler_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the newest compiler has brought something new, the next one may too."""
    values = layouts.database()[0].values
    entries = [
        layouts.Entry("0.50.0", "1.77.0", TARGET, values),
        layouts.Entry("0.50.0", "1.95.0", TARGET, {**values, "span_data": 8}),
    ]
    monkeypatch.setattr(layouts, "database", lambda: entries)
    assert _found("0.50.0", "1.96.0").confidence.startswith("low: so with rustc 1.95.0 alone")


def test_nearest_patch_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each compiler the patch release that is nearest, since not all are tried with all."""
    values = layouts.database()[0].values
    entries = [
        layouts.Entry("0.50.0", "1.77.0", TARGET, values),
        layouts.Entry("0.50.0", "1.95.0", TARGET, values),
        layouts.Entry("0.50.2", "1.95.0", TARGET, values),
    ]
    monkeypatch.setattr(layouts, "database", lambda: entries)
    assert _found("0.50.2", "1.95.0").confidence.startswith("certain")
    assert _found("0.50.3", "1.95.0").sdk == "0.50.2"
    assert "generated for opentelemetry_sdk 0.50.0" in _found("0.50.2", "1.77.0").confidence


def _entries() -> Iterator[tuple[str, str]]:
    text = resources.files("spanweld.layouts").joinpath("database.json").read_text("utf-8")
    content = json.loads(text)
    assert content["schema"] == SCHEMA
    for entry in content["layouts"]:
        for sdk, compilers in entry["generated"].items():
            for rustc in compilers:
                yield sdk, rustc


def test_database_is_as_generated() -> None:
    """Not edited by hand: each layout once, in the generator's order and form."""
    assert Database(DATABASE).as_text() == DATABASE.read_text()


def test_every_release_is_known() -> None:
    assert {sdk.rpartition(".")[0] for sdk, _ in _entries()} >= {f"0.{minor}" for minor in range(17, 34)}


@pytest.mark.parametrize(("sdk", "rustc"), list(_entries()))
def test_every_entry_is_sound(sdk: str, rustc: str) -> None:
    """No two fields overlap, all lie inside the span, aligned, and variants can be told apart."""
    layout = _found(sdk, rustc)
    assert (layout.sdk, layout.rustc) == (sdk, rustc)
    assert layout.span_size is not None
    assert layout.span_data_size is not None
    assert layout.span_data_none is not None
    assert layout.span_status_size is not None
    fields: dict[str, tuple[int | None, int]] = {
        "trace id": (layout.span_context + layout.context_trace_id, 16),
        "span id": (layout.span_context + layout.context_span_id, 8),
        "is remote": (layout.span_context + layout.context_is_remote, 1),
        "flags": (layout.span_context + layout.context_flags, 1),
        "parent id": (layout.span_parent_id, 8),
        "name, pointer": (layout.span_name_pointer, 8),
        "name, length": (layout.span_name_length, 8),
        "kind": (layout.span_kind, 1),
        "start, seconds": (layout.span_start_seconds, 8),
        "start, nanoseconds": (layout.span_start_nanos, 4),
        "end, seconds": (layout.span_end_seconds, 8),
        "end, nanoseconds": (layout.span_end_nanos, 4),
        "description, pointer": (layout.status_description_pointer, 8),
        "description, length": (layout.status_description_length, 8),
    }
    if layout.span_parent_is_remote is not None:
        fields["parent is remote"] = (layout.span_parent_is_remote, 1)
    places = sorted((start, size) for start, size in fields.values() if start is not None)
    assert len(places) == len(fields)
    assert all(start + size <= following for (start, size), (following, _) in pairwise(places))
    for start, size in [
        *fields.values(),
        (layout.span_data, layout.span_data_size),
        (layout.span_status, layout.span_status_size),
    ]:
        assert start is not None
        assert start % min(size, 8) == 0
        assert start + size <= layout.span_size
    assert layout.span_data_none < 1 << 8 * layout.span_data_size
    for status in (layout.status_unset, layout.status_ok):
        assert status is not None
        assert status < 1 << 8 * layout.span_status_size
    assert layout.status_unset != layout.status_ok
    assert sorted(layout.span_kinds.values()) == sorted(SpanKind)
    for text in ("span_name", "status_description"):
        tag, borrowed, *places_of = (
            getattr(layout, f"{text}_{name}")
            for name in ("tag", "borrowed", "pointer", "owned_pointer", "length", "owned_length")
        )
        assert (tag is None) == (borrowed is None)
        assert (tag is None) == (places_of[0] == places_of[1] and places_of[2] == places_of[3])
    in_memory = (
        layout.end_argument_tag,
        layout.end_argument_tag_none,
        layout.end_argument_seconds,
        layout.end_argument_nanos,
    )
    assert len({value is None for value in in_memory}) == 1
    assert (layout.end_argument_none_nanos is None) != (layout.end_argument_tag is None)
