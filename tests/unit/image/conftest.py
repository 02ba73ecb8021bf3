"""Executables to read: small ones compiled here, the services as built by cargo."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import services
from tests.unit.image.samples import PLAIN, RustBuilder, ServiceBuilder


@pytest.fixture(scope="session")
def rust(tmp_path_factory: pytest.TempPathFactory) -> RustBuilder:
    """Compile a source to an executable: ``rust(source, *flags, libraries={name: source})``."""
    folder = tmp_path_factory.mktemp("rust")
    built: dict[tuple[object, ...], Path] = {}

    def compile_(source: str, *flags: str, libraries: dict[str, str] | None = None) -> Path:
        key = (source, flags, tuple((libraries or {}).items()))
        if key not in built:
            place = folder / str(len(built))
            place.mkdir()
            externs: list[str] = []
            for name, library in (libraries or {}).items():
                (place / f"{name}.rs").write_text(library)
                output = place / f"lib{name}.rlib"
                _rustc(place / f"{name}.rs", output, ["--crate-type=rlib", *flags])
                externs += ["--extern", f"{name}={output}"]
            (place / "main.rs").write_text(source)
            built[key] = place / "main"
            _rustc(place / "main.rs", built[key], ["--crate-name=sample", *flags, *externs])
        return built[key]

    return compile_


def _rustc(source: Path, output: Path, flags: list[str]) -> None:
    subprocess.run(["rustc", "--edition=2021", *flags, "-o", str(output), str(source)], check=True)


@pytest.fixture(scope="session")
def service() -> ServiceBuilder:
    """The executable of a service: ``service("lab", "release")``; built first where it is missing."""
    return services.binary


@pytest.fixture(scope="session")
def c_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C executable."""
    folder = tmp_path_factory.mktemp("c")
    (folder / "main.c").write_text("int main(void) { return 0; }\n")
    subprocess.run(["cc", "-o", "main", "main.c"], cwd=folder, check=True)
    return folder / "main"


@pytest.fixture(scope="session")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An executable with the section by which Go's own tools know a Go program."""
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.c").write_text(
        '__attribute__((section(".go.buildinfo"))) char info[] = "\\xff Go buildinf:";\n'
        "int main(void) { return info[0]; }\n"
    )
    subprocess.run(["cc", "-o", "main", "main.c"], cwd=folder, check=True)
    return folder / "main"


@pytest.fixture(scope="session")
def stripped(rust: RustBuilder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Rust executable without symbol table."""
    path = tmp_path_factory.mktemp("stripped") / "main"
    shutil.copy(rust(PLAIN), path)
    subprocess.run(["strip", str(path)], check=True)
    return path
