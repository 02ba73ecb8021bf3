"""The ways to build a Rust service that change its machine code or its symbols, and how to get one built so.

Nothing of them stands in the workspace's own manifest: to cargo they are profiles given on the command line.
All share cargo's target folder, so that what is built is kept.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.services import ROOT, target_folder

GNU = "x86_64-unknown-linux-gnu"
MUSL = "x86_64-unknown-linux-musl"


@dataclass(frozen=True, slots=True)
class Profile:
    """A cargo profile: ``settings`` (in TOML) on top of the one it ``inherits``, and rustc's ``flags``."""

    name: str
    inherits: str = "release"
    settings: Mapping[str, str] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    target: str = GNU

    def build(self, service: str, *arguments: str) -> Path:
        """Builds one service, ``arguments`` for rustc at its last step only; returns the executable.

        CalledProcessError where cargo fails, for a target that is not installed too.
        """
        settings = {"inherits": f'"{self.inherits}"', **self.settings}
        options = [f"profile.{self.name}.{key}={value}" for key, value in settings.items()]
        if self.flags:
            options.append(f"build.rustflags={_toml(self.flags)}")
        subprocess.run(
            [
                *("cargo", "rustc", "--locked", "--quiet", "--package", service, "--bin", service),
                *("--target", self.target, "--profile", self.name),
                *(argument for option in options for argument in ("--config", option)),
                *("--", *arguments),
            ],
            cwd=ROOT / "services",
            env={**os.environ, "CARGO_TARGET_DIR": str(target_folder())},
            check=True,
        )
        return target_folder() / self.target / self.name / service


def _toml(texts: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{text}"' for text in texts) + "]"


PROFILES = (
    Profile("fat-lto", settings={"lto": '"fat"', "codegen-units": "1"}),
    Profile("opt-s", settings={"opt-level": '"s"'}),
    Profile("opt-z", settings={"opt-level": '"z"'}),
    Profile("panic-abort", settings={"panic": '"abort"'}),
    Profile(
        "smallest",
        settings={"opt-level": '"z"', "lto": '"fat"', "codegen-units": "1", "panic": '"abort"'},
    ),
    Profile("strip-debuginfo", settings={"debug": "2", "strip": '"debuginfo"'}),
    Profile("full-debug", "dev", settings={"debug": "2"}),
    Profile("v0", flags=("-Csymbol-mangling-version=v0",)),
    Profile("frame-pointers", flags=("-Cforce-frame-pointers=yes",)),
    Profile("non-pie", flags=("-Crelocation-model=static",)),
    Profile("musl", target=MUSL),
)
