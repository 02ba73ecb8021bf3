"""Read struct layouts of opentelemetry_sdk out of debug information, into src/spanweld/layouts/database.json.

    python tools/layouts/generate.py 0.34.0 [0.33.1 …]

For each version a crate of a few lines is built, with each rustc of this machine (those of rustup,
the distribution's, or the one that ``--rustc`` names) that is new enough for it, and the layout is
read from its DWARF. A version that is new to the database is built twice, with the fewest and with
the default features, since a field behind a feature could move the others: they must agree. Offsets
and niches are the compiler's own account; nothing is guessed.

What the database has is not built again, so a run that was stopped goes on where it was; several
may run at the same time. Builds are kept in one folder a compiler, with one target folder.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanweld.image.elf import Image
from spanweld.layouts import SCHEMA
from spanweld.layouts.dwarf import LayoutError
from spanweld.layouts.span import describe

DATABASE = Path(__file__).resolve().parents[2] / "src" / "spanweld" / "layouts" / "database.json"
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
# ensure_ended_and_exported, SpanData that of on_end.
_SOURCE = """\
#[no_mangle]
pub extern "C" fn probe(
    _span: &{sdk}::trace::Span,
    _end: &Option<std::time::SystemTime>,
    _data: &{sdk}::{data},
) {{
}}
"""


class TooOldError(Exception):
    """The compiler is older than what the SDK version asks for."""


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
            minimal = self._build(sdk, features=False)
            if check_features and self._build(sdk, features=True) != minimal:
                raise LayoutError("the layout depends on the crate's features")
        return minimal

    def _build(self, sdk: str, *, features: bool) -> dict[str, Any]:
        crate = self.work / f"{sdk}-{'default' if features else 'minimal'}"
        crate.mkdir(exist_ok=True)
        package, path = ("opentelemetry", "::sdk") if _numbers(sdk) < (0, 18) else ("opentelemetry_sdk", "")
        data = "export::trace::SpanData" if _numbers(sdk) < (0, 28) else "trace::SpanData"
        manifest = _MANIFEST.format(
            package=package,
            version=sdk,
            features=str(features).lower(),
            rustc=self.version.partition("-")[0],
        )
        (crate / "Cargo.toml").write_text(manifest)
        (crate / "lib.rs").write_text(_SOURCE.format(sdk=package + path, data=data))
        environment = {
            **os.environ,
            "CARGO_TARGET_DIR": str(self.work / "target"),
            "RUSTC": self.rustc,
            "RUSTFLAGS": "",
        }
        self._resolve(crate, package)
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
        with Image.open(library) as image:
            return describe(image).values

    def _needs_vendored(self) -> bool:
        return _numbers(_tool_version(self.cargo)) < _SPARSE_REGISTRY

    def _resolve(self, crate: Path, package: str) -> None:
        """Choose dependencies that the compiler can build, which only a recent cargo can."""
        environment = {**os.environ, "CARGO_RESOLVER_INCOMPATIBLE_RUST_VERSIONS": "fallback"}

        def run(*arguments: str) -> str:
            command = ["cargo", *arguments, "--quiet"]
            return subprocess.run(
                command, cwd=crate, env=environment, check=True, stdout=subprocess.PIPE, text=True
            ).stdout

        if not (crate / "Cargo.lock").exists():
            run("generate-lockfile")
            if self._needs_vendored():
                run("vendor", "--locked", "--versioned-dirs", "--no-delete", "../vendor")
        for found in json.loads(run("metadata", "--locked", "--format-version", "1"))["packages"]:
            needed = found["name"] == package and found["rust_version"]
            if needed and _numbers(needed) > _numbers(self.version):
                raise TooOldError(f"needs rustc {needed}")


def compilers(work: Path) -> list[Compiler]:
    """The compilers of this machine, one a version: those of rustup, and the distribution's."""
    found = [Compiler.of("rustc", "cargo", work)]
    if shutil.which("rustup"):
        listed = subprocess.run(["rustup", "toolchain", "list"], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            tools = [
                subprocess.run(
                    ["rustup", "which", "--toolchain", line.split()[0], tool],
                    capture_output=True,
                    text=True,
                    check=True,
                ).stdout.strip()
                for tool in ("rustc", "cargo")
            ]
            found.append(Compiler.of(tools[0], tools[1], work))
    if Path("/usr/bin/rustc").exists():
        cargo = "/usr/bin/cargo" if Path("/usr/bin/cargo").exists() else "cargo"
        found.append(Compiler.of("/usr/bin/rustc", cargo, work))
    return list({compiler.version: compiler for compiler in reversed(found)}.values())


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

    def as_text(self) -> str:
        """What the file holds, as this program writes it."""
        return _text_of(self._read())

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
    parser.add_argument("--rustc", help="this compiler only (default: each that is on this machine)")
    parser.add_argument("--cargo", default="cargo", help="the cargo that works with --rustc")
    parser.add_argument("--work", type=Path, default=_WORK, help="the folder to build in, kept (%(default)s)")
    parser.add_argument("--again", action="store_true", help="also what the database has already")
    arguments = parser.parse_args()
    database = Database(DATABASE)
    if arguments.rustc:
        used = [Compiler.of(arguments.rustc, arguments.cargo, arguments.work)]
    else:
        used = compilers(arguments.work)
    versions = arguments.versions or sorted({sdk for sdk, _, _ in database.pairs()}, key=_numbers)
    failed = False
    for compiler, sdk in itertools.product(used, versions):
        known = database.pairs()
        if (sdk, compiler.version, TARGET) in known and not arguments.again:
            continue
        what = f"opentelemetry_sdk {sdk}, rustc {compiler.version}"
        # Which fields there are does not depend on the compiler: one that checks it is enough.
        is_new = arguments.again or all(sdk != known_sdk for known_sdk, _, _ in known)
        try:
            database.add(sdk, compiler.version, TARGET, compiler.layout(sdk, check_features=is_new))
        except TooOldError as error:
            print(f"{what}: left out, {error}", file=sys.stderr)
        except (LayoutError, subprocess.CalledProcessError) as error:
            print(f"{what}: {error}", file=sys.stderr)
            failed = True
        else:
            print(f"{what}: done", file=sys.stderr)
    return int(failed)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.partition("-")[0].split("."))


if __name__ == "__main__":
    sys.exit(main())
