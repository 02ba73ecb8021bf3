"""Layouts out of debug information, held against the memory of the program that it describes."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from spanweld.errors import ImageError
from spanweld.image.elf import Image
from spanweld.image.facts import analyse
from spanweld.layouts import SdkLayout, dwarf, layout_of, lookup, make_layout
from spanweld.layouts.dwarf import LayoutError
from spanweld.layouts.span import describe
from spanweld.model import SpanKind

SOURCE = Path(__file__).with_name("spans.rs")
LOCK = Path(__file__).parents[3] / "services" / "Cargo.lock"
MANIFEST = """\
[package]
name = "spans"
version = "0.0.0"
edition = "2021"

[dependencies]
opentelemetry = { version = "0.31", default-features = false, features = ["trace"] }
opentelemetry_sdk = { version = "0.31", default-features = false, features = ["trace"] }

[profile.dev]
debug = 2

[profile.release]
debug = 2
lto = "fat"
codegen-units = 1
panic = "abort"

[workspace]
"""
SERVICE = """\
use opentelemetry::trace::{Span, Tracer, TracerProvider};

fn main() {
    let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
    let mut span = provider.tracer("test").start("a span");
    span.end();
}
"""
BUILDS = {
    "debug": ["-C", "debuginfo=2"],
    "dwarf 5, v0 mangling": [
        "-C",
        "debuginfo=2",
        "-C",
        "dwarf-version=5",
        "-C",
        "symbol-mangling-version=v0",
    ],
    "dwarf 5, many units": ["-C", "debuginfo=2", "-C", "dwarf-version=5", "-C", "codegen-units=16"],
    "fat lto": [
        *("-C", "debuginfo=2", "-C", "opt-level=3", "-C", "lto=fat", "-C", "codegen-units=1"),
        *("-C", "panic=abort"),
    ],
    "size": ["-C", "debuginfo=2", "-C", "opt-level=z"],
}


def _compile(work: Path, *options: str) -> Path:
    binary = work / "spans"
    command = ["rustc", "--edition=2021", "--crate-name=opentelemetry_sdk", "-o", str(binary), str(SOURCE)]
    subprocess.run([*command, *options], check=True)
    return binary


def _describe(binary: Path) -> SdkLayout:
    with Image.open(binary) as image:
        found = describe(image)
    return make_layout(
        found.values, sdk=found.sdk, rustc=found.rustc, target="x86_64", source="test", confidence="test"
    )


def _number(memory: bytes, offset: int | None, size: int) -> int:
    assert offset is not None
    assert offset + size <= len(memory)
    return int.from_bytes(memory[offset : offset + size], "little")


def _text(layout: SdkLayout, name: str, memory: bytes) -> tuple[int, int]:
    """Pointer and length, as a program of the agent reads them."""
    owned = ""
    if getattr(layout, f"{name}_tag") is not None:
        tag = _number(memory, getattr(layout, f"{name}_tag"), 8)
        owned = "" if tag == getattr(layout, f"{name}_borrowed") else "owned_"
    pointer, length = (
        _number(memory, getattr(layout, f"{name}_{owned}{part}"), 8) for part in ("pointer", "length")
    )
    return pointer, length


def hold_against_memory(layout: SdkLayout, binary: Path) -> None:
    """Read the spans of ``spans.rs`` as the layout says."""
    output = subprocess.run([binary], capture_output=True, text=True, check=True).stdout
    kinds = {
        "unset": SpanKind.CLIENT,
        "ok": SpanKind.INTERNAL,
        "error": SpanKind.PRODUCER,
        "built": SpanKind.CONSUMER,
    }
    seen = set()
    for line in output.splitlines():
        label, hexadecimal, *texts = line.split()
        seen.add(label)
        memory = bytes.fromhex(hexadecimal)
        assert len(memory) == layout.span_size
        assert layout.context_size is not None
        assert layout.span_data_size is not None
        assert layout.span_status_size is not None
        context = memory[layout.span_context : layout.span_context + layout.context_size]
        assert _number(context, layout.context_trace_id, 16) == 0x0102030405060708_090A0B0C0D0E0F10
        assert _number(context, layout.context_span_id, 8) == 0x1112131415161718
        assert _number(context, layout.context_flags, 1) == 0x7E
        assert _number(context, layout.context_is_remote, 1) == 1
        has_ended = _number(memory, layout.span_data, layout.span_data_size) == layout.span_data_none
        assert has_ended == (label == "ended")
        if has_ended:
            continue
        assert _number(memory, layout.span_parent_id, 8) == 0x2122232425262728
        assert _number(memory, layout.span_parent_is_remote, 1) == 1
        assert layout.span_kinds[_number(memory, layout.span_kind, 1)] is kinds[label]
        assert _number(memory, layout.span_start_seconds, 8) == 0x31323334
        assert _number(memory, layout.span_start_nanos, 4) == 123_456_789
        assert _number(memory, layout.span_end_seconds, 8) == 0x41424344
        assert _number(memory, layout.span_end_nanos, 4) == 987_654_321
        assert _text(layout, "span_name", memory) == (int(texts[0]), int(texts[1]))
        status = _number(memory, layout.span_status, layout.span_status_size)
        assert (status == layout.status_unset) == (label == "unset")
        assert (status == layout.status_ok) == (label == "ok")
        if label in ("error", "built"):
            assert _text(layout, "status_description", memory) == (int(texts[2]), int(texts[3]))
    assert seen == {"ended", *kinds}


@pytest.mark.parametrize("build", BUILDS)
def test_describes_memory(build: str, tmp_path: Path) -> None:
    binary = _compile(tmp_path, *BUILDS[build])
    hold_against_memory(_describe(binary), binary)


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _compile(tmp_path_factory.mktemp("described"), *BUILDS["debug"])


def test_image_decides(described: Path) -> None:
    with Image.open(described) as image:
        layout = layout_of(image, analyse(described))
    assert isinstance(layout, SdkLayout)
    assert layout.source == "debug information"
    assert layout.confidence.startswith("certain: ")
    assert layout.rustc == analyse(described).rustc


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-C", "debuginfo=line-tables-only"), "does not describe"),
        (("-C", "debuginfo=2", "-C", "link-arg=-Wl,--compress-debug-sections=zlib"), "compressed"),
        (("-C", "debuginfo=0", "-C", "strip=symbols"), "no debug information"),
    ],
)
def test_reasons(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    binary = _compile(tmp_path, *options)
    with Image.open(binary) as image, pytest.raises(LayoutError, match=words):
        describe(image)


def test_gives_up(described: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both bounds end in a sentence, not in a layout."""
    for bound in ("MAX_WORK", "MAX_UNIT"):
        with monkeypatch.context() as patch, Image.open(described) as image:
            patch.setattr(dwarf, bound, 100)
            with pytest.raises(LayoutError, match="given up"):
                describe(image)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("profile", "flags"),
    [("dev", ""), ("release", "-C symbol-mangling-version=v0 -C dwarf-version=5")],
    ids=["debug", "fat lto, dwarf 5"],
)
def test_agrees_with_database(profile: str, flags: str, tmp_path: Path) -> None:
    """The SDK that the services use, as they do, in a program with full debug information."""
    source = tmp_path / "src" / "main.rs"
    source.parent.mkdir()
    source.write_text(SERVICE)
    (tmp_path / "Cargo.toml").write_text(MANIFEST)
    (tmp_path / "Cargo.lock").write_bytes(LOCK.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spanweld" / "target"
    target = Path(os.environ.get("CARGO_TARGET_DIR") or cache) / "layouts"
    command = ["cargo", "build", "--quiet", "--profile", profile, "--target-dir", str(target)]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "RUSTFLAGS": flags}, check=True)
    binary = target / ("debug" if profile == "dev" else profile) / "spans"
    facts = analyse(binary)
    with Image.open(binary) as image:
        own = layout_of(image, facts)
    assert isinstance(own, SdkLayout), own
    assert (own.source, own.sdk) == ("debug information", "0.31.0")
    known = lookup("0.31.0", own.rustc, "x86_64")
    assert isinstance(known, SdkLayout), known
    assert replace(own, source=known.source, confidence=known.confidence, rustc=known.rustc) == known


def _damaged(original: bytes, section_bytes: range, rounds: int) -> Iterator[bytes]:
    chance = random.Random(31)
    for _ in range(rounds):
        damaged = bytearray(original)
        for _ in range(chance.choice((1, 10, 1000))):
            place = chance.choice(section_bytes)
            damaged[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        yield bytes(damaged)


@pytest.mark.parametrize("name", [".debug_info", ".debug_abbrev", ".debug_str", ".debug_str_offsets"])
def test_survives_damage(name: str, tmp_path: Path) -> None:
    """Whatever stands in the debug information: a layout, or a sentence."""
    binary = _compile(tmp_path, *BUILDS["dwarf 5, v0 mangling"])
    with Image.open(binary) as image:
        section = image.section(name)
        assert section is not None
    original = binary.read_bytes()
    path = tmp_path / "damaged"
    refused = 0
    for damaged in _damaged(original, range(section.offset, section.offset + section.size), 60):
        path.write_bytes(damaged)
        try:
            _describe(path)
        except (LayoutError, ImageError):
            refused += 1
    assert refused
