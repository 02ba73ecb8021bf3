"""Read struct layouts of opentelemetry_sdk out of debug information, into src/spanweld/layouts/database.json.

    python tools/layouts/generate.py 0.31.0 [0.30.0 …]

For each version a crate of a few lines is built, with the rustc on PATH (choose another one with
RUSTUP_TOOLCHAIN or RUSTC), and the layout is read from its DWARF. It is built twice, with the
fewest and with the default features, since a field behind a feature could move the others; a
difference ends the run. Offsets and niches are the compiler's own account; nothing is guessed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile

DATABASE = Path(__file__).resolve().parents[2] / "src" / "spanweld" / "layouts" / "database.json"
SCHEMA = 1

# Since this release u128 is aligned to 16 bytes on x86-64, and the capacity of a Vec has the niche
# that Option<SpanData>, Status and Cow use. No older compiler shares a layout with a newer one.
OLDEST_SAME_RULES = "1.77.0"

_MANIFEST = """\
[package]
name = "layout-probe"
version = "0.0.0"
edition = "2021"

[lib]
crate-type = ["cdylib"]
path = "lib.rs"

[dependencies]
opentelemetry_sdk = {{ version = "={version}", default-features = {default_features}, features = ["trace"] }}

[profile.dev]
debug = 2
incremental = false
codegen-units = 1

[workspace]
"""
# Dropping a Span is enough to have the whole type described. Option<SystemTime> is the second
# argument of ensure_ended_and_exported.
_SOURCE = """\
#[no_mangle]
pub unsafe extern "C" fn probe(
    span: *mut opentelemetry_sdk::trace::Span,
    end: &mut Option<std::time::SystemTime>,
) -> bool {
    std::ptr::drop_in_place(span);
    end.take().is_some()
}
"""


class LayoutError(Exception):
    """The debug information does not have what is looked for; the text says what."""


@dataclass(frozen=True, slots=True)
class Place:
    """A type at an offset from where the walk began."""

    offset: int
    type: DIE

    def field(self, name: str) -> Place:
        """A field of a struct."""
        for child in self.type.iter_children():
            if child.tag == "DW_TAG_member" and _name(child) == name:
                return Place(self.offset + _offset(child), child.get_DIE_from_attribute("DW_AT_type"))
        raise LayoutError(f"{_name(self.type)} has no field {name}: it has {', '.join(self.field_names())}")

    def field_names(self) -> list[str]:
        """The names of a struct's fields."""
        return [_name(child) for child in self.type.iter_children() if child.tag == "DW_TAG_member"]

    def first(self) -> Place:
        """The one field of a newtype, however deep, down to a type that is no struct."""
        place = self
        while place.type.tag == "DW_TAG_structure_type":
            members = [
                child
                for child in place.type.iter_children()
                if child.tag == "DW_TAG_member" and _size(child.get_DIE_from_attribute("DW_AT_type"))
            ]
            if len(members) != 1:
                return place
            place = Place(place.offset + _offset(members[0]), members[0].get_DIE_from_attribute("DW_AT_type"))
        return place

    def enum(self) -> Enumeration:
        """The variants of a Rust enum with data."""
        for part in self.type.iter_children():
            if part.tag != "DW_TAG_variant_part":
                continue
            discriminant = part.get_DIE_from_attribute("DW_AT_discr")
            size = _size(discriminant.get_DIE_from_attribute("DW_AT_type"))
            values: dict[str, int | None] = {}
            payloads: dict[str, Place] = {}
            for variant in part.iter_children():
                if variant.tag != "DW_TAG_variant":
                    continue
                member = next(child for child in variant.iter_children() if child.tag == "DW_TAG_member")
                name = _name(member)
                value = variant.attributes.get("DW_AT_discr_value")
                values[name] = None if value is None else value.value & (1 << 8 * size) - 1
                payloads[name] = Place(
                    self.offset + _offset(member), member.get_DIE_from_attribute("DW_AT_type")
                )
            return Enumeration(self.offset + _offset(discriminant), size, values, payloads)
        raise LayoutError(f"{_name(self.type)} is not an enum with data")


@dataclass(frozen=True, slots=True)
class Enumeration:
    """Where an enum's discriminant is, its values by variant (None: any other value), and the payloads."""

    offset: int
    size: int
    values: dict[str, int | None]
    payloads: dict[str, Place]

    def niche(self, variant: str) -> int:
        """The discriminant's value that means ``variant`` and nothing else."""
        value = self.values[variant]
        if value is None:
            raise LayoutError(f"variant {variant} has no value of its own")
        return value


def read_layout(library: Path) -> dict[str, Any]:
    """The fields of ``SdkLayout`` that come from debug information, from the probe crate's library."""
    with library.open("rb") as file:
        elf = ELFFile(file)
        if elf["e_machine"] != "EM_X86_64":
            raise LayoutError(f"{library} is built for {elf['e_machine']}")
        unit = _probe_unit(elf)
        span = Place(0, _find_type(unit, "opentelemetry_sdk::trace::span::Span"))
        end = Place(0, _find_type(unit, "core::option::Option<std::time::SystemTime>"))
        return _describe(span, end)


def _describe(span: Place, end: Place) -> dict[str, Any]:
    context = span.field("span_context")
    option = span.field("data").enum()
    if option.size != 8:
        raise LayoutError(f"data: None is told by {option.size} bytes, not by 8")
    data = option.payloads["Some"].field("__0")
    name_pointer, name_length = _text(data.field("name"))
    start_seconds, start_nanos = _time(data.field("start_time"))
    end_seconds, end_nanos = _time(data.field("end_time"))
    status_place = data.field("status")
    status = status_place.enum()
    if status.size != 8:
        raise LayoutError(f"the status is told by {status.size} bytes, not by 8")
    description_pointer, description_length = _text(status.payloads["Error"].field("description"))
    kind = data.field("span_kind")
    remote = None
    if "parent_span_is_remote" in data.field_names():
        remote = data.field("parent_span_is_remote").offset
    return {
        "span_size": _size(span.type),
        "span_context": context.offset,
        "context_size": _size(context.type),
        "context_trace_id": context.field("trace_id").first().offset - context.offset,
        "context_span_id": context.field("span_id").first().offset - context.offset,
        "context_is_remote": context.field("is_remote").offset - context.offset,
        "context_flags": context.field("trace_flags").first().offset - context.offset,
        "span_data": option.offset,
        "span_data_none": option.niche("None"),
        "span_parent_id": data.field("parent_span_id").first().offset,
        "span_parent_is_remote": remote,
        "span_name_pointer": name_pointer,
        "span_name_length": name_length,
        "span_kind": kind.offset,
        "span_kinds": _enumerators(kind),
        "span_start_seconds": start_seconds,
        "span_start_nanos": start_nanos,
        "span_end_seconds": end_seconds,
        "span_end_nanos": end_nanos,
        "span_status": status.offset,
        "status_unset": status.niche("Unset"),
        "status_ok": status.niche("Ok"),
        "status_description_pointer": description_pointer,
        "status_description_length": description_length,
        "end_argument_none_nanos": _no_end_time(end),
    }


def _no_end_time(end: Place) -> int:
    """The nanoseconds that mean ``None``; also that the pair goes in registers, seconds first."""
    option = end.enum()
    seconds, nanos = _time(option.payloads["Some"].field("__0"))
    if (seconds, nanos, option.offset, option.size) != (0, 8, 8, 4):
        raise LayoutError("Option<SystemTime> is not the pair (u64 seconds, u32 nanoseconds)")
    return option.niche("None")


def _text(cow: Place) -> tuple[int, int]:
    """Where a ``Cow<'static, str>`` keeps pointer and length: the same places whether borrowed or owned."""
    variants = cow.enum().payloads
    borrowed = variants["Borrowed"].field("__0")
    vector = variants["Owned"].field("__0").field("vec")
    owned_pointer = vector.field("buf").field("inner").field("ptr").first()
    places = {
        (borrowed.field("data_ptr").offset, borrowed.field("length").offset),
        (owned_pointer.offset, vector.field("len").offset),
    }
    if len(places) != 1:
        raise LayoutError(f"a borrowed and an owned Cow<str> differ: {places}")
    return places.pop()


def _time(time: Place) -> tuple[int, int]:
    """Offsets of a SystemTime's i64 seconds and u32 nanoseconds."""
    spec = time.field("__0").field("t")
    return spec.field("tv_sec").offset, spec.field("tv_nsec").first().offset


def _enumerators(place: Place) -> dict[str, int]:
    if _size(place.type) != 1:
        raise LayoutError(f"{_name(place.type)} is not one byte")
    values = {
        _name(child): child.attributes["DW_AT_const_value"].value
        for child in place.type.iter_children()
        if child.tag == "DW_TAG_enumerator"
    }
    return {name.upper(): value for name, value in values.items()}


def _probe_unit(elf: ELFFile) -> CompileUnit:
    for unit in elf.get_dwarf_info().iter_CUs():
        if "/@/layout_probe" in _name(unit.get_top_DIE()):
            return unit
    raise LayoutError("no debug information of the probe crate")


def _find_type(unit: CompileUnit, path: str) -> DIE:
    for die in unit.iter_DIEs():
        if die.tag in ("DW_TAG_structure_type", "DW_TAG_enumeration_type") and _path(die) == path:
            return die
    raise LayoutError(f"no type {path}")


def _path(die: DIE) -> str:
    parts = [_name(die)]
    parent = die.get_parent()
    while parent is not None and parent.tag == "DW_TAG_namespace":
        parts.append(_name(parent))
        parent = parent.get_parent()
    return "::".join(reversed(parts))


def _name(die: DIE) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return "" if attribute is None else attribute.value.decode()


def _size(die: DIE) -> int:
    attribute = die.attributes.get("DW_AT_byte_size")
    return 0 if attribute is None else int(attribute.value)


def _offset(die: DIE) -> int:
    return int(die.attributes["DW_AT_data_member_location"].value)


def build(version: str, default_features: bool, work: Path) -> Path:
    """Build the probe crate against one SDK version; its library."""
    crate = work / f"{version}-{'default' if default_features else 'minimal'}"
    crate.mkdir(parents=True, exist_ok=True)
    manifest = _MANIFEST.format(version=version, default_features=str(default_features).lower())
    (crate / "Cargo.toml").write_text(manifest)
    (crate / "lib.rs").write_text(_SOURCE)
    target = crate / "target"
    environment = {**os.environ, "CARGO_TARGET_DIR": str(target), "RUSTFLAGS": ""}
    subprocess.run(["cargo", "build", "--quiet"], cwd=crate, env=environment, check=True)
    return target / "debug" / "liblayout_probe.so"


def compiler_version() -> str:
    """The version of the rustc that cargo uses."""
    output = subprocess.run(
        [os.environ.get("RUSTC", "rustc"), "--version"], capture_output=True, text=True, check=True
    )
    return output.stdout.split()[1]


def generate(version: str, work: Path) -> dict[str, Any]:
    """One entry of the database."""
    minimal = read_layout(build(version, False, work))
    if read_layout(build(version, True, work)) != minimal:
        raise LayoutError(f"opentelemetry_sdk {version}: the layout depends on the crate's features")
    return {
        "sdk": version,
        "rustc": compiler_version(),
        "rustc_since": OLDEST_SAME_RULES,
        "target": "x86_64",
        **minimal,
    }


def main() -> int:
    """Generate the versions named on the command line and merge them into the database."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="+", metavar="SDK_VERSION")
    parser.add_argument("--work", type=Path, help="keep the builds in this folder")
    arguments = parser.parse_args()
    entries = json.loads(DATABASE.read_text())["layouts"] if DATABASE.exists() else []
    known = {(entry["sdk"], entry["rustc"], entry["target"]): entry for entry in entries}
    failed = False
    with tempfile.TemporaryDirectory(prefix="layouts-") as temporary:
        work = arguments.work or Path(temporary)
        for version in arguments.versions:
            try:
                entry = generate(version, work.resolve())
            except (LayoutError, KeyError, subprocess.CalledProcessError) as error:
                print(f"opentelemetry_sdk {version}: {error}", file=sys.stderr)
                failed = True
                continue
            known[entry["sdk"], entry["rustc"], entry["target"]] = entry
            print(f"opentelemetry_sdk {version}, rustc {entry['rustc']}: done", file=sys.stderr)
    ordered = sorted(known.values(), key=lambda entry: (_numbers(entry["sdk"]), _numbers(entry["rustc"])))
    DATABASE.write_text(json.dumps({"schema": SCHEMA, "layouts": ordered}, indent=1) + "\n")
    return int(failed)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("-")[0].split("."))


if __name__ == "__main__":
    sys.exit(main())
