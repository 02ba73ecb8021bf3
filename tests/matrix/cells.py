"""The cells of the matrix: which there are, and the service of each, built by cargo."""

from __future__ import annotations

import fcntl
import fnmatch
import functools
import hashlib
import os
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.services import ROOT, target_folder

CRATE = ROOT / "services" / "matrix"
APIS = ("raw", "tracing")
PROFILES = ("release", "fatlto", "stripped")
LAST_IDS_BY_HAND = (0, 31)
"""Since 0.32 a ``SpanBuilder`` takes no ids."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One service: ``sdk`` as in ``0.24``, ``api`` of ``APIS``, ``profile`` of ``PROFILES``."""

    sdk: str
    api: str
    profile: str

    def __str__(self) -> str:
        return f"{self.sdk}/{self.api}/{self.profile}"

    @property
    def ids_by_hand(self) -> bool:
        """Whether the service makes a span whose ids are given to the builder."""
        return self.api == "raw" and _numbers(self.sdk) <= LAST_IDS_BY_HAND


REPRESENTATIVE = (
    Cell("0.21", "tracing", "release"),
    Cell("0.24", "raw", "fatlto"),
    Cell("0.28", "tracing", "stripped"),
    Cell("0.33", "raw", "release"),
)
"""Of each way in which spans are seen, one."""


@dataclass(frozen=True, slots=True)
class Versions:
    """The exact versions of the crates behind ``0.24``, from the lock file."""

    sdk: str
    tracing_opentelemetry: str


def all_cells() -> list[Cell]:
    """Every cell, by version: one for each feature ``sdk-…`` of the crate, API and profile."""
    features = _manifest()["features"]
    versions = sorted((name[4:] for name in features if name.startswith("sdk-")), key=_numbers)
    return [Cell(sdk, api, profile) for sdk in versions for api in APIS for profile in PROFILES]


def select(patterns: Sequence[str]) -> list[Cell]:
    """The cells whose names match one of the shell patterns (``0.2?/raw/*``).

    ValueError if a pattern matches none.
    """
    cells = all_cells()
    for pattern in patterns:
        if not fnmatch.filter(map(str, cells), pattern):
            raise ValueError(f"no cell matches {pattern!r}: a cell is called {cells[0]}, say")
    return [cell for cell in cells if any(fnmatch.fnmatch(str(cell), pattern) for pattern in patterns)]


def versions(sdk: str) -> Versions:
    """The locked versions of one SDK; up to 0.17 it is the crate opentelemetry itself."""
    key = sdk.replace(".", "_")
    dependencies = _manifest()["dependencies"]
    name = f"opentelemetry_sdk-{key}"
    own = dependencies[name if name in dependencies else f"opentelemetry-{key}"]
    return Versions(_locked(own), _locked(dependencies[f"tracing-opentelemetry-for-{key}"]))


def build(cell: Cell) -> Path:
    """Builds the service of a cell; CalledProcessError, with cargo's words, if it does not build.

    What was built of these sources, by this compiler, is taken as it is, so that a look at another
    commit does not cost hours. One target folder serves all, so that only the SDK's crates are compiled
    anew; executables are copied from it, since the next version's take the same names: one build at
    a time. A stripped one is a stripped copy of the release build, which is what ``strip = true`` makes.
    """
    folder = target_folder() / "matrix"
    executable = folder / "bin" / str(cell).replace("/", "-")
    made_of = executable.with_name(f"{executable.name}.made-of")
    executable.parent.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made_of.exists() and made_of.read_text() == sources():
            return executable
        made_of.unlink(missing_ok=True)
        _compile(cell, folder / "cargo", executable)
        made_of.write_text(sources())
    return executable


def _compile(cell: Cell, target: Path, executable: Path) -> None:
    profile = "release" if cell.profile == "stripped" else cell.profile
    command = ["cargo", "build", "--locked", "--quiet", "--profile", profile]
    subprocess.run(
        [*command, "--features", f"sdk-{cell.sdk}", "--bin", cell.api],
        cwd=CRATE,
        env={**os.environ, "CARGO_TARGET_DIR": str(target)},
        check=True,
        capture_output=True,
        text=True,
    )
    built = target / profile / cell.api
    # One that runs is not changed: another file takes its place.
    new = executable.with_name(f"{executable.name}.new")
    if cell.profile == "stripped":
        subprocess.run(["objcopy", "--strip-all", built, new], check=True)
    else:
        shutil.copy2(built, new)
    new.replace(executable)


@functools.cache
def sources() -> str:
    """A digest of all that an executable is made of: the crate with its lock file, and the compiler."""
    digest = hashlib.sha256(
        subprocess.run(["rustc", "--version", "--verbose"], check=True, capture_output=True).stdout
    )
    for path in (CRATE / "Cargo.toml", CRATE / "Cargo.lock", *sorted((CRATE / "src").rglob("*.rs"))):
        digest.update(f"{path.relative_to(CRATE)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _manifest() -> dict[str, Any]:
    return tomllib.loads((CRATE / "Cargo.toml").read_text())


def _locked(dependency: dict[str, Any]) -> str:
    packages = tomllib.loads((CRATE / "Cargo.lock").read_text())["package"]
    [version] = [
        package["version"]
        for package in packages
        if package["name"] == dependency["package"]
        and package["version"].startswith(dependency["version"] + ".")
    ]
    return str(version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
