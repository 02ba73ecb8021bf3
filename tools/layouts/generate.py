"""Read struct layouts of opentelemetry_sdk out of debug information, into src/spanweld/layouts/database.json.

    python tools/layouts/generate.py 0.31.0 [0.30.0 …]

For each version a crate of a few lines is built, with the rustc on PATH (choose another one with
RUSTUP_TOOLCHAIN or RUSTC), and the layout is read from its DWARF. It is built twice, with the
fewest and with the default features, since a field behind a feature could move the others; a
difference ends the run. Offsets and niches are the compiler's own account; nothing is guessed.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.elf.elffile import ELFFile

DATABASE = Path(__file__).resolve().parents[2] / "src" / "spanweld" / "layouts" / "database.json"
SCHEMA = 2
TARGET = "x86_64"
_WORK = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spanweld" / "layouts"
_SPARSE_REGISTRY = (1, 70)
"""An older cargo fetches the registry in a way that takes long: it gets its crates in a folder."""

_MANIFEST = """\
[package]
name = "layout-probe"
version = "0.0.0"
edition = "2021"
rust-version = "{rustc}"

[lib]
path = "lib.rs"

[dependencies]
{package} = {{ version = "={version}", default-features = {features}, features = ["trace"] }}

[profile.dev]
debug = 2
incremental = false
codegen-units = 1

[workspace]
"""
_VENDORED = """\
[source.crates-io]
replace-with = "vendored"

[source.vendored]
directory = "{directory}"
"""
# A reference is enough to have the whole type described. Option<SystemTime> is the second argument of
# ensure_ended_and_exported.
_SOURCE = """\
#[no_mangle]
pub extern "C" fn probe(_span: &{sdk}::trace::Span, _end: &Option<std::time::SystemTime>) {{}}
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
        span = Place(
            0,
            _find_type(unit, "opentelemetry_sdk::trace::span::Span", "opentelemetry::sdk::trace::span::Span"),
        )
        end = Place(0, _find_type(unit, "core::option::Option<std::time::SystemTime>"))
        return _describe(span, end)


def _describe(span: Place, end: Place) -> dict[str, Any]:
    context = span.field("span_context")
    option = span.field("data").enum()
    data = option.payloads["Some"].field("__0")
    start_seconds, start_nanos = _time(data.field("start_time"))
    end_seconds, end_nanos = _time(data.field("end_time"))
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
        "span_data_size": option.size,
        "span_data_none": option.niche("None"),
        "span_parent_id": data.field("parent_span_id").first().offset,
        "span_parent_is_remote": remote,
        **_text("span_name", data.field("name")),
        "span_kind": kind.offset,
        "span_kinds": _enumerators(kind),
        "span_start_seconds": start_seconds,
        "span_start_nanos": start_nanos,
        "span_end_seconds": end_seconds,
        "span_end_nanos": end_nanos,
        **_status(data),
        **_end_argument(end),
    }


def _status(data: Place) -> dict[str, Any]:
    """How the status is told, and where an error's description is."""
    if "status_code" in data.field_names():
        code = data.field("status_code")
        values = _enumerators(code)
        return {
            "span_status": code.offset,
            "span_status_size": _size(code.type),
            "status_unset": values["UNSET"],
            "status_ok": values["OK"],
            **_text("status_description", data.field("status_message")),
        }
    status = data.field("status").enum()
    return {
        "span_status": status.offset,
        "span_status_size": status.size,
        "status_unset": status.niche("Unset"),
        "status_ok": status.niche("Ok"),
        **_text("status_description", status.payloads["Error"].field("description")),
    }


def _end_argument(end: Place) -> dict[str, int | None]:
    """How an ``Option<SystemTime>`` is passed as the second argument of a function."""
    option = end.enum()
    seconds, nanos = _time(option.payloads["Some"].field("__0"))
    none = option.niche("None")
    # The Rust ABI passes two scalars in registers, and by address what is longer than two words.
    in_registers = _size(end.type) <= 16
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
    borrowed = enum.payloads["Borrowed"].field("__0")
    vector = enum.payloads["Owned"].field("__0").field("vec")
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


def _find_type(unit: CompileUnit, *paths: str) -> DIE:
    for die in unit.iter_DIEs():
        if die.tag in ("DW_TAG_structure_type", "DW_TAG_enumeration_type") and _path(die) in paths:
            return die
    raise LayoutError(f"no type {paths[0]}")


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


@dataclass(frozen=True, slots=True)
class Compiler:
    """A rustc and the cargo that drives it; ``work`` is the folder of all that is built with it."""

    rustc: str
    cargo: str
    version: str
    work: Path

    @classmethod
    def of(cls, rustc: str, cargo: str, work: Path) -> Compiler:
        """Ask ``rustc`` for its version."""
        version = _tool_version(rustc)
        return cls(rustc, cargo, version, work.resolve() / f"rustc-{version}")

    def layout(self, sdk: str, *, check_features: bool) -> dict[str, Any]:
        """One SDK version's layout; ``check_features``: it must be the same with the default features."""
        self.work.mkdir(parents=True, exist_ok=True)
        # One folder of vendored crates and one target folder for all versions.
        with (self.work / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            minimal = read_layout(self._build(sdk, False))
            if check_features and read_layout(self._build(sdk, True)) != minimal:
                raise LayoutError("the layout depends on the crate's features")
        return minimal

    def _build(self, sdk: str, features: bool) -> Path:
        crate = self.work / f"{sdk}-{'default' if features else 'minimal'}"
        crate.mkdir(exist_ok=True)
        package, path = ("opentelemetry", "::sdk") if _numbers(sdk) < (0, 18) else ("opentelemetry_sdk", "")
        manifest = _MANIFEST.format(
            package=package,
            version=sdk,
            features=str(features).lower(),
            rustc=self.version.partition("-")[0],
        )
        (crate / "Cargo.toml").write_text(manifest)
        (crate / "lib.rs").write_text(_SOURCE.format(sdk=package + path))
        environment = {
            **os.environ,
            "CARGO_TARGET_DIR": str(self.work / "target"),
            "RUSTC": self.rustc,
            "RUSTFLAGS": "",
        }
        if not (crate / "Cargo.lock").exists():
            self._resolve(crate)
        # Of the dependencies only the types are needed, so they are checked, which takes a fraction of the
        # time; the probe crate alone is compiled, and linked against nothing.
        command = [self.cargo, "rustc", "--quiet", "--locked", "--lib", "--profile", "check"]
        if self._needs_vendored():
            config = self.work / "vendored.toml"
            config.write_text(_VENDORED.format(directory=self.work / "vendor"))
            command += ["--config", str(config)]
        subprocess.run(
            [*command, "--", f"--emit=obj={crate / 'probe.o'}"], cwd=crate, env=environment, check=True
        )
        library = crate / "probe.so"
        subprocess.run(["cc", "-shared", "-nostdlib", "-o", str(library), str(crate / "probe.o")], check=True)
        return library

    def _needs_vendored(self) -> bool:
        return _numbers(_tool_version(self.cargo)) < _SPARSE_REGISTRY

    def _resolve(self, crate: Path) -> None:
        """Choose dependencies that the compiler can build, which only a recent cargo can."""
        environment = {**os.environ, "CARGO_RESOLVER_INCOMPATIBLE_RUST_VERSIONS": "fallback"}

        def run(*arguments: str) -> None:
            subprocess.run(["cargo", *arguments, "--quiet"], cwd=crate, env=environment, check=True)

        run("generate-lockfile")
        if self._needs_vendored():
            run("vendor", "--locked", "--versioned-dirs", "--no-delete", "../vendor")


def _tool_version(command: str) -> str:
    output = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    return output.split()[1]


class Database:
    """``database.json``: each layout once, with the SDK versions and compilers it was generated for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def pairs(self) -> set[tuple[str, str, str]]:
        """(SDK, rustc, target) of all that is in it."""
        return set(self._read())

    def add(self, sdk: str, rustc: str, target: str, layout: dict[str, Any]) -> None:
        """Put one layout in; other runs may do the same at the same time."""
        with Path(__file__).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            layouts = self._read()
            layouts[sdk, rustc, target] = layout
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(_text_of(layouts))
            temporary.replace(self._path)

    def _read(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        result: dict[tuple[str, str, str], dict[str, Any]] = {}
        if self._path.exists():
            for entry in json.loads(self._path.read_text())["layouts"]:
                layout = {key: value for key, value in entry.items() if key not in ("target", "generated")}
                for sdk, compilers in entry["generated"].items():
                    for rustc in compilers:
                        result[sdk, rustc, entry["target"]] = layout
        return result


def _text_of(layouts: dict[tuple[str, str, str], dict[str, Any]]) -> str:
    """The database as text: one line a field, so that a change is easy to see."""
    entries: list[tuple[str, dict[str, Any], dict[str, list[str]]]] = []
    for (sdk, rustc, target), layout in sorted(
        layouts.items(), key=lambda item: (item[0][2], _numbers(item[0][0]), _numbers(item[0][1]))
    ):
        for known_target, known, generated in entries:
            if (known_target, known) == (target, layout):
                generated.setdefault(sdk, []).append(rustc)
                break
        else:
            entries.append((target, layout, {sdk: [rustc]}))
    blocks = []
    for target, layout, generated in entries:
        lines = [f'  "target": {json.dumps(target)}', '  "generated": {']
        lines[1] += "\n" + ",\n".join(
            f"   {json.dumps(sdk)}: {json.dumps(compilers)}" for sdk, compilers in generated.items()
        )
        lines[1] += "\n  }"
        lines += [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in layout.items()]
        blocks.append(" {\n" + ",\n".join(lines) + "\n }")
    return f'{{"schema": {SCHEMA}, "layouts": [\n' + ",\n".join(blocks) + "\n]}\n"


def main() -> int:
    """Generate the versions named on the command line and merge them into the database."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="*", metavar="SDK_VERSION", help="default: all in the database")
    parser.add_argument("--rustc", default="rustc", help="the compiler (default: the one on PATH)")
    parser.add_argument("--cargo", default="cargo", help="the cargo that works with it")
    parser.add_argument("--work", type=Path, default=_WORK, help="the folder to build in, kept (%(default)s)")
    parser.add_argument("--again", action="store_true", help="also what the database has already")
    arguments = parser.parse_args()
    database = Database(DATABASE)
    compiler = Compiler.of(arguments.rustc, arguments.cargo, arguments.work)
    known = database.pairs()
    failed = False
    for sdk in arguments.versions or sorted({sdk for sdk, _, _ in known}, key=_numbers):
        if (sdk, compiler.version, TARGET) in known and not arguments.again:
            continue
        what = f"opentelemetry_sdk {sdk}, rustc {compiler.version}"
        try:
            # Which fields there are does not depend on the compiler: one that checks it is enough.
            is_new = all(sdk != known_sdk for known_sdk, _, _ in known)
            database.add(
                sdk, compiler.version, TARGET, compiler.layout(sdk, check_features=is_new or arguments.again)
            )
        except (LayoutError, subprocess.CalledProcessError) as error:
            print(f"{what}: {error}", file=sys.stderr)
            failed = True
            continue
        print(f"{what}: done", file=sys.stderr)
    return int(failed)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("-")[0].split("."))


if __name__ == "__main__":
    sys.exit(main())
