"""Compiles what is C: the BPF object, the writers' tracers, and the code that is put into targets.

Run by hatchling when the package is built or installed (also editable), and by `make native`. The
results lie inside the package, so that an installed wheel needs no compiler.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = Path("src/spanweld")
BPF_OBJECT = PACKAGE / "bpf/objects/spanweld.bpf.o"
TRACER = PACKAGE / "writers/bin/spanweld-tracer"
PATCHER = PACKAGE / "writers/bin/spanweld-patcher"
INLINE_CODE = PACKAGE / "writers/bin/inline.elf"
CLANGS = ("clang-19", "clang-20", "clang-18", "clang-17", "clang-16", "clang")
WARNINGS = ("-Wall", "-Wextra", "-Werror")


class NativeBuildHook(BuildHookInterface[Any]):
    """hatchling's custom build hook (tool.hatch.build.hooks.custom)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compiles, and tags the wheel: any Python 3, this one platform."""
        build(Path(self.root))
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"


def build(root: Path) -> None:
    """Compiles each, if a source is newer than the result."""
    _compile_bpf(root)
    _compile_tracer(root, "stop/tracer.c", TRACER)
    _compile_tracer(root, "inline/patcher.c", PATCHER)
    _compile_inline_code(root)


def bpf_command(root: Path, clang: str, source: Path, output: Path) -> list[str]:
    """How a BPF source is compiled; used by tests as well."""
    return [
        clang,
        *("-g", "-O2", "-target", "bpf", "-mcpu=v3", "-D__TARGET_ARCH_x86"),
        *WARNINGS,
        f"-I{root / PACKAGE / 'bpf/include'}",
        f"-I{root / PACKAGE / 'probes'}",
        # <linux/types.h> of a plain header; last, so that nothing of the host's libc is met first.
        *("-idirafter", "/usr/include/x86_64-linux-gnu"),
        f"-ffile-prefix-map={root}=.",
        *("-c", str(source), "-o", str(output)),
    ]


def find_clang() -> str:
    """The compiler: $CLANG, else the newest known one on the path."""
    chosen = os.environ.get("CLANG")
    for name in (chosen,) if chosen else CLANGS:
        if shutil.which(name):
            return name
    sys.exit("spanweld: clang 16 or newer is needed to build; on Debian: apt-get install clang-19")


def _compile_bpf(root: Path) -> None:
    programs = sorted((root / PACKAGE / "probes").glob("*.bpf.c"))
    headers = [*(root / PACKAGE / "probes").glob("*.h"), *(root / PACKAGE / "bpf/include").glob("*.h")]
    output = root / BPF_OBJECT
    if _is_fresh(output, [*programs, *headers, Path(__file__)]):
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    # One object of all probes: they share maps, and one load serves every target.
    text = "".join(f'#include "{program.name}"\n' for program in programs)
    text += 'char LICENSE[] SEC("license") = "Dual BSD/GPL";\n'
    with tempfile.TemporaryDirectory() as folder:
        unity = Path(folder) / "spanweld.bpf.c"
        unity.write_text(text)
        subprocess.run(bpf_command(root, find_clang(), unity, output), check=True)


def _compile_tracer(root: Path, name: str, result: Path) -> None:
    source = root / PACKAGE / "writers" / name
    headers = [*(root / PACKAGE / "bpf/include").glob("*.h"), root / PACKAGE / "writers/seized.h"]
    output = root / result
    if _is_fresh(output, [source, *headers, Path(__file__)]):
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([find_clang(), "-O2", *WARNINGS, str(source), "-o", str(output)], check=True)


def _compile_inline_code(root: Path) -> None:
    """The probes once more, for inside a target: no C library, no vector registers, no fixed address."""
    folder = root / PACKAGE / "writers/inline/target"
    headers = [*(root / PACKAGE / "bpf/include").glob("*.h"), *(root / PACKAGE / "probes").glob("*.[ch]")]
    sources = [folder / name for name in ("inline.c", "stubs.S", "inline.ld")]
    output = root / INLINE_CODE
    if _is_fresh(output, [*sources, *(folder / "bpf").glob("*.h"), *headers, Path(__file__)]):
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    flags = [
        *("-O2", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-ffreestanding", "-ffunction-sections"),
        *("-mgeneral-regs-only", "-fomit-frame-pointer", "-fno-asynchronous-unwind-tables"),
        *("-fno-stack-protector", "-fcf-protection=none", "-fno-jump-tables"),
        # The stack is the target's.
        "-Wframe-larger-than=512",
        # CO-RE relocations are clang's for BPF alone.
        "-Wno-unknown-attributes",
        *WARNINGS,
        # In place of libbpf's headers.
        f"-I{folder}",
        f"-I{root / PACKAGE / 'bpf/include'}",
        f"-I{root / PACKAGE / 'probes'}",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        objects = [Path(temporary) / f"{source.stem}.o" for source in sources[:2]]
        for source, made in zip(sources, objects, strict=False):
            subprocess.run([find_clang(), *flags, "-c", str(source), "-o", str(made)], check=True)
        # Its one segment says writable too, which it is not where it is mapped.
        link = ["ld", "-static", "-N", "--no-warn-rwx-segments", "--gc-sections", "-T", str(sources[2])]
        subprocess.run([*link, *map(str, objects), "-o", str(output)], check=True)


def _is_fresh(output: Path, sources: list[Path]) -> bool:
    return output.exists() and all(output.stat().st_mtime >= source.stat().st_mtime for source in sources)


if __name__ == "__main__":
    build(Path(__file__).resolve().parent)
