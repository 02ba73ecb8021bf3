"""What an executable was written in: Rust, Go or anything else."""

from __future__ import annotations

import re
from enum import Enum

from spanweld.image.elf import Image
from spanweld.image.symbols import contains_name

_GO_SECTIONS = (".go.buildinfo", ".gopclntab", ".note.go.buildid")
_COMMENT = re.compile(rb"rustc version (\d{1,4}\.\d{1,4}\.\d{1,4}[0-9A-Za-z.+-]{0,40})")


class Language(Enum):
    """The language of a program's own code."""

    RUST = "Rust"
    GO = "Go"
    OTHER = "other"


def rustc_version(image: Image) -> str | None:
    """The compiler's version as ``.comment`` has it, such as ``1.95.0`` or ``1.97.0-nightly``.

    A linked program may hold objects of several compilers (std's own is one): the newest is taken,
    since nothing older can be linked with a newer std.
    """
    section = image.section(".comment")
    if section is None or not section.size:
        return None
    found = _COMMENT.findall(image.read(section.offset, min(section.size, 1 << 16)))
    versions = sorted({version.decode("ascii", "replace") for version in found}, key=_version_key)
    return versions[-1] if versions else None


def detect(image: Image, rustc: str | None, rustc_hash: str | None) -> Language:
    """The language, from section names, the compiler's marks and the runtime's symbols."""
    if any(image.section(name) is not None for name in _GO_SECTIONS):
        return Language.GO
    if rustc is not None or rustc_hash is not None or contains_name(image, b"rust_begin_unwind"):
        return Language.RUST
    return Language.OTHER


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
