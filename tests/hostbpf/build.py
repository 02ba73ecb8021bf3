"""Compiles the BPF programs and their tests for the host."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent.parent / "src/spanweld"
COMPILERS = ("clang-19", "clang")

_FLAGS = (
    "-g",
    "-O1",
    "-std=gnu11",
    "-fno-omit-frame-pointer",
    "-fno-sanitize-recover=all",
    "-Wall",
    "-Wextra",
    "-Werror",
    # CO-RE relocations are clang's for BPF alone.
    "-Wno-unknown-attributes",
    f"-I{HERE / 'include'}",
    f"-I{HERE}",
    f"-I{SOURCES / 'bpf/include'}",
    f"-I{SOURCES / 'probes'}",
)

# Programs reckon with addresses of the kernel and of the target, which may be anything, also NULL:
# only the helpers that read there decide.
_SANITIZER_FLAGS = ("-fno-sanitize=pointer-overflow",)

MODEL = ("host.c", "programs.c", "http.c", "testing.c")


class BuildError(Exception):
    """The compiler refused; the message is its own."""


def compiler() -> str | None:
    """The clang to use, None if there is none."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def build(sources: tuple[str, ...], sanitizers: str, output: Path, *flags: str) -> Path:
    """One executable of C files of this folder, two compilations at a time.

    Its objects are beside `output`, which is returned.
    """
    clang = compiler()
    if clang is None:
        raise BuildError(f"none of {', '.join(COMPILERS)} is installed")
    options = [*_FLAGS, f"-fsanitize={sanitizers}", *_SANITIZER_FLAGS, *flags]
    objects = [output.with_name(f"{output.name}-{Path(source).stem}.o") for source in sources]
    waiting = list(zip(sources, objects, strict=True))
    while waiting:
        batch, waiting = waiting[:2], waiting[2:]
        running = [
            subprocess.Popen(
                [clang, *options, "-c", str(HERE / source), "-o", str(made)],
                stderr=subprocess.PIPE,
                text=True,
            )
            for source, made in batch
        ]
        failures = [
            errors for process in running if (errors := process.communicate()[1]) or process.returncode
        ]
        if failures:
            raise BuildError("".join(failures))
    link = [clang, *options, *map(str, objects), "-lpthread", "-o", str(output)]
    linked = subprocess.run(link, capture_output=True, text=True, check=False)
    if linked.returncode:
        raise BuildError(linked.stderr)
    return output
