"""Layouts from machine code: of services what is known otherwise; of changed ones that, or nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from spanweld import layouts
from spanweld.image import Image, ImageFacts, examine, find_functions
from spanweld.layouts import SdkLayout, known_layout, layout_of
from spanweld.layouts.code import (
    BUILDER,
    ENDER,
    IS_RECORDING,
    RECORDER,
    SPAN_CONTEXT,
    CodeError,
    CodeLayout,
    derive,
)
from spanweld.plan import plan_for
from tests.support.services import binary
from tools.check_code_layouts import compare, main
from tools.check_stripped import strip

METHOD = "<* as opentelemetry::global::trace::ObjectSafeSpan>::"
TRACER = "opentelemetry_sdk::trace::tracer::SdkTracer"
NEEDED = {
    *("span_context", "context_trace_id", "context_span_id", "context_flags", "context_is_remote"),
    *("span_parent_id", "span_start_seconds", "span_start_nanos"),
}


@pytest.fixture(scope="module")
def users() -> Path:
    return binary("users", "release")


@pytest.fixture
def facts(users: Path) -> ImageFacts:
    with Image.open(users) as image:
        return examine(image)


def _layout(path: Path, facts: ImageFacts) -> SdkLayout | str:
    with Image.open(path) as image:
        return layout_of(image, facts)


def _known(path: Path, facts: ImageFacts) -> SdkLayout:
    with Image.open(path) as image:
        known = known_layout(image, facts)
    assert isinstance(known, SdkLayout)
    return known


def _derive(path: Path) -> CodeLayout:
    with Image.open(path) as image:
        return derive(image)


@pytest.mark.parametrize("name", ["users", "lab"])
def test_all_of_a_release(name: str) -> None:
    """Everything that a tree shows is in the code, and is what the database says."""
    found = compare(binary(name, "release"))
    assert found is not None
    assert not found.reason
    assert not found.wrong
    assert not found.missing


@pytest.mark.parametrize("name", ["users", "lab", "sockets"])
def test_without_symbols(name: str, tmp_path: Path) -> None:
    """Less functions are found then; what they show is right, and enough to adopt."""
    found = compare(strip(binary(name, "release"), tmp_path / name))
    assert found is not None
    assert set(found.shown) >= NEEDED | {"span_data_none", "span_kind"}
    assert not found.wrong


def test_the_table(users: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("no executable")
    (tmp_path / "users").symlink_to(users)
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^users +0\.31\.0 +1\.95\.0 +24$", printed, re.MULTILINE), printed
    assert printed.endswith("1 images, 0 wrong fields\n")
    (tmp_path / "users").unlink()
    assert main([str(tmp_path)]) == 1


def test_debug_builds_do_not_tell() -> None:
    """Their code keeps everything on the stack and calls for everything: no answer, and no wrong one."""
    with Image.open(binary("users", "debug")) as image, pytest.raises(CodeError):
        derive(image)


def test_the_code_decides_where_nothing_is_known(
    users: Path, facts: ImageFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = _known(users, facts)
    monkeypatch.setattr(layouts, "database", list)
    with Image.open(users) as image:
        plan = plan_for(image, facts)
    layout = plan.layout
    assert isinstance(layout, SdkLayout)
    assert plan.adopted_layout is layout
    assert not plan.learns
    assert layout.source == "code"
    assert layout.confidence == "certain: what 7 of the SDK's functions do"
    assert layout.shows_spans
    for name in layout.read_from:
        assert getattr(layout, name) == getattr(known, name)
    assert set(layout.read_from) >= NEEDED
    assert set(layout.read_from["span_data_none"]) == {ENDER, IS_RECORDING, BUILDER}
    assert set(layout.read_from["span_context"]) == {SPAN_CONTEXT, RECORDER}
    assert layout.span_kinds == known.span_kinds
    assert layout.status_description_pointer is None
    assert layout.exported is None


def test_an_exact_entry_needs_no_code(
    users: Path, facts: ImageFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "derive", lambda _: pytest.fail("the code was read"))
    layout = _layout(users, facts)
    assert isinstance(layout, SdkLayout)
    assert layout.source == "database"


def test_another_compiler_of_which_the_code_shows_the_same(users: Path, facts: ImageFacts) -> None:
    """The code is certain; what it does not show is taken from the entry."""
    newer = replace(facts, rustc="1.95.1")
    layout = _layout(users, newer)
    known = _known(users, newer)
    assert known.confidence == "high: generated with rustc 1.95.0"
    assert isinstance(layout, SdkLayout)
    assert layout.source == "code"
    assert layout.confidence.startswith("certain: what 7 of the SDK's functions do; what they do not show: ")
    assert layout.confidence.endswith(known.confidence)
    assert layout.exported == known.exported
    assert layout.status_description_pointer == known.status_description_pointer
    assert "status_description_pointer" not in layout.read_from


def test_another_compiler_of_which_the_code_shows_something_else(
    users: Path, facts: ImageFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is used: it is learned."""
    known = _known(users, facts)
    entry = layouts.Entry("0.31.0", "1.95.0", "x86_64", {**_values(known), "span_parent_id": 0x158})
    monkeypatch.setattr(layouts, "database", lambda: [entry])
    with Image.open(users) as image:
        plan = plan_for(image, replace(facts, rustc="1.95.1"))
    assert isinstance(plan.layout, str)
    assert plan.layout.startswith("the code has span_parent_id at 0x150, and the database, ")
    assert plan.layout.endswith(", has it at 0x158")
    assert plan.learns


def _values(layout: SdkLayout) -> dict[str, object]:
    values = {name: getattr(layout, name) for name in SdkLayout.__slots__}
    for name in ("sdk", "rustc", "target", "source", "confidence", "read_from"):
        del values[name]
    values["span_kinds"] = {kind.name: value for value, kind in layout.span_kinds.items()}
    return values


def test_code_that_does_not_tell(
    users: Path, facts: ImageFacts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An uncertain entry stands alone then; with none, both reasons are given."""
    path = _changed(users, tmp_path / "users", f"<{TRACER} as *>::{BUILDER}", b"\x0c\x01", b"\xb0\x01")
    layout = _layout(path, replace(facts, rustc="1.95.1"))
    assert layout == _known(users, replace(facts, rustc="1.95.1"))
    monkeypatch.setattr(layouts, "database", list)
    reason = _layout(path, facts)
    assert isinstance(reason, str)
    assert "is not in the layout database" in reason
    assert reason.endswith(
        "and its code does not tell: no places of build_with_context are a new span's context"
    )


def _changed(path: Path, output: Path, function: str, old: bytes, new: bytes) -> Path:
    """A copy with other bytes in all functions of a name that have the old ones; padding follows them."""
    content = bytearray(path.read_bytes())
    with Image.open(path) as image:
        functions = find_functions(image, function)
    changed = 0
    for found in functions:
        code = bytes(content[found.file_offset : found.file_offset + found.size])
        changed += old in code
        code = code.replace(old, new)
        content[found.file_offset : found.file_offset + len(code)] = code
    assert changed
    output.write_bytes(content)
    return output


@pytest.mark.parametrize(
    ("function", "old", "new", "reason"),
    [
        (
            f"{METHOD}is_recording",
            b"\xa8\0\0\0",
            b"\xb0\0\0\0",
            "span_data is 0xa8 by ensure_ended_and_exported, and no is_recording reads that",
        ),
        (
            # mov rax, rdi; ret → lea rax, [rdi + 8]; ret
            f"{METHOD}span_context",
            b"\x48\x89\xf8\xc3",
            b"\x48\x8d\x47\x08\xc3",
            "span_context is 0x0 by build_recording_span, and no span_context returns that",
        ),
        (
            # The span id in the parent's context: mov rcx, [r15 + 30h] → [r15 + 28h]
            f"{TRACER}::{RECORDER}",
            b"\x49\x8b\x4f\x30",
            b"\x49\x8b\x4f\x28",
            "build_recording_span is not seen to keep the parent's span id",
        ),
        (
            # "None" is another value than that which is left behind: setno al → seto al
            f"{METHOD}is_recording",
            b"\x0f\x91\xc0",
            b"\x0f\x90\xc0",
            "is_recording does not take 0x8000000000000000 for a span that has ended",
        ),
    ],
)
def test_functions_that_do_not_agree(
    users: Path, tmp_path: Path, function: str, old: bytes, new: bytes, *, reason: str
) -> None:
    path = _changed(users, tmp_path / "users", function, old, new)
    with pytest.raises(CodeError, match=re.escape(reason)):
        _derive(path)
