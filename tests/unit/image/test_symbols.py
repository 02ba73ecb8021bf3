"""Functions by pattern, in both manglings."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from spanweld.image import Image, find_functions, find_many
from spanweld.image.demangle import demangle
from spanweld.image.symbols import find_thread_locals
from tests.unit.image.samples import FAKE_TOKIO, PLAIN, USES_TOKIO, RustBuilder

AREA = "<sample::shapes::Square as sample::shapes::Area>::area"
SIDE = "sample::shapes::Square::side"
MANGLINGS = ("legacy", "v0")


def _flags(mangling: str) -> list[str]:
    # Legacy can be asked for on nightly only, and is the default of stable compilers up to 1.95.
    return ["-Csymbol-mangling-version=v0"] if mangling == "v0" else []


def _nm(path: Path, part: str) -> list[tuple[int, int]]:
    lines = subprocess.run(["nm", "-S", str(path)], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^([0-9a-f]+) ([0-9a-f]+) [tT] (\S+)$", lines, re.MULTILINE)
    return sorted((int(address, 16), int(size, 16)) for address, size, name in found if part in name)


@pytest.mark.parametrize("mangling", MANGLINGS)
@pytest.mark.parametrize("level", ["0", "3"])
def test_functions_agree_with_nm(rust: RustBuilder, mangling: str, level: str) -> None:
    path = rust(PLAIN, f"-Copt-level={level}", *_flags(mangling))
    with Image.open(path) as image:
        found = find_many(image, [AREA, SIDE])
    areas = found[AREA]
    assert [(function.address, function.size) for function in areas] == _nm(path, "4area")
    assert {function.name for function in areas} == {AREA}
    # One for each type argument.
    assert len(found[SIDE]) == 2
    assert [(function.address, function.size) for function in found[SIDE]] == _nm(path, "4side")


def test_the_whole_path_is_matched(rust: RustBuilder) -> None:
    with Image.open(rust(PLAIN, "-O")) as image:
        assert find_functions(image, "shapes::Square::side") == []
        assert find_functions(image, "sample::shapes::Square::sid") == []
        assert len(find_functions(image, "sample::*::side")) == 2
        assert len(find_functions(image, "<sample::shapes::Square as *>::area")) == 1


def test_a_pattern_needs_a_word(rust: RustBuilder) -> None:
    with Image.open(rust(PLAIN, "-O")) as image, pytest.raises(ValueError, match="no identifier"):
        find_functions(image, "*::new")


def test_no_pattern_no_function(rust: RustBuilder) -> None:
    with Image.open(rust(PLAIN, "-O")) as image:
        assert find_many(image, []) == {}


def test_no_symbols_no_functions(stripped: Path) -> None:
    with Image.open(stripped) as image:
        assert find_functions(image, SIDE) == []


@pytest.mark.parametrize("mangling", MANGLINGS)
def test_thread_local(rust: RustBuilder, mangling: str) -> None:
    path = rust(USES_TOKIO, "-O", *_flags(mangling), libraries={"tokio": FAKE_TOKIO})
    with Image.open(path) as image:
        [variable] = find_thread_locals(image, "tokio::runtime::context::CONTEXT::*VAL")
    assert variable.size >= 48


@pytest.mark.parametrize(
    ("mangled", "path"),
    [
        (
            "_ZN17opentelemetry_sdk5trace4span4Span25ensure_ended_and_exported17hf0b0e28598743169E",
            "opentelemetry_sdk::trace::span::Span::ensure_ended_and_exported",
        ),
        (
            "_RNvMs0_NtNtCsjAXGYYvfthQ_17opentelemetry_sdk5trace4spanNtB5_4Span25ensure_ended_and_exported",
            "opentelemetry_sdk::trace::span::Span::ensure_ended_and_exported",
        ),
        (
            "_ZN129_$LT$opentelemetry_sdk..trace..id_generator..RandomIdGenerator$u20$as$u20$"
            "opentelemetry_sdk..trace..id_generator..IdGenerator$GT$12new_trace_id17h5f060a7264f4d4efE",
            "<opentelemetry_sdk::trace::id_generator::RandomIdGenerator"
            " as opentelemetry_sdk::trace::id_generator::IdGenerator>::new_trace_id",
        ),
        (
            "_RNvXNtNtCsjAXGYYvfthQ_17opentelemetry_sdk5trace12id_generator"
            "NtB2_17RandomIdGeneratorNtB2_11IdGenerator12new_trace_id",
            "<opentelemetry_sdk::trace::id_generator::RandomIdGenerator"
            " as opentelemetry_sdk::trace::id_generator::IdGenerator>::new_trace_id",
        ),
        (
            "_RNvNCNKNvNtNtCsiWGNfjNynzo_5tokio7runtime7context7CONTEXT0023___RUST_STD_INTERNAL_VAL",
            "tokio::runtime::context::CONTEXT::{constant}::{closure}::__RUST_STD_INTERNAL_VAL",
        ),
        (
            "_ZN5tokio7runtime7context7CONTEXT29_$u7b$$u7b$constant$u7d$$u7d$28_$u7b$$u7b$closure$u7d$$u7d$"
            "23__RUST_STD_INTERNAL_VAL17h2ad79bdf1fff3ceaE",
            "tokio::runtime::context::CONTEXT::{constant}::{closure}::__RUST_STD_INTERNAL_VAL",
        ),
        (
            "_ZN5tokio7runtime4task7harness20Harness$LT$T$C$S$GT$8complete17h0123456789abcdefE.llvm.42",
            "tokio::runtime::task::harness::Harness::complete",
        ),
        (
            "_ZN4test3foo27_$LT$impl$u20$test..Foo$GT$3bar17h0123456789abcdefE",
            "test::Foo::bar",
        ),
        (
            "_ZN1a45_$LT$impl$u20$b..Trait$u20$for$u20$c..Type$GT$3bar17h0123456789abcdefE",
            None,
        ),
        ("_RNvCs1234_7mycrateu8gdel_5qa", "mycrate::gödel"),
        ("_RINvCs1234_7mycrate3fooAhj4_FUKCmEuDNtB2_3BarEL_E", "mycrate::foo"),
        ("main", None),
        ("_ZN4main", None),
        ("_R", None),
        ("_RNvB_3foo", None),
        ("_RNvCs1234_7mycrate900foo", None),
        ("_ZN3$u1b$17h0123456789abcdefE", None),
        ("_R" + "M" * 3000, None),
        ("_RNvC7mycrate3foo" + "x" * 5000, None),
        ("_ZN1000" + "$LT$impl$u20$" * 200, None),
    ],
)
def test_demangle(mangled: str, path: str | None) -> None:
    assert demangle(mangled) == path


def test_all_rust_names_of_a_program_are_understood(rust: RustBuilder) -> None:
    for mangling in MANGLINGS:
        path = rust(PLAIN, "-Copt-level=0", *_flags(mangling))
        output = subprocess.run(["nm", str(path)], capture_output=True, text=True, check=True).stdout
        names = [line.split()[-1] for line in output.splitlines()]
        rust_names = [
            name for name in names if re.match(r"_R[A-Z]", name) or re.search(r"17h[0-9a-f]{16}E", name)
        ]
        assert len(rust_names) > 100
        assert [name for name in rust_names if demangle(name) is None] == []
