"""Crate and compiler versions, from the source paths that panics print.

Each place that can panic keeps the path of its source file, also in a stripped image:
``…/registry/src/index.crates.io-<hash>/tokio-1.47.1/src/runtime/…`` from a registry,
``…/vendor/tokio-1.47.1/src/…`` from ``cargo vendor --versioned-dirs``, and
``tokio-1.47.1/src/…`` where paths were trimmed. Debug information names each crate's root the same
way, and so more crates. The standard library's paths begin with ``/rustc/<commit>/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from spanweld.image.elf import MAX_SECTION, Image

_VERSION = re.compile(rb"-(\d{1,5}\.\d{1,5}\.\d{1,7}(?:[-+][0-9A-Za-z.+-]{1,60})?)/src/")
_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
_RUSTC = re.compile(rb"/rustc/([0-9a-f]{40})/")
_MAX_PATH = 256
_MAX_DEBUG_STRINGS = 1 << 26
_MAX_CRATES = 1 << 12
_MAX_VERSIONS = 1 << 6
# A hundred times what a large debug build has.
_MAX_PATHS = 1 << 20

# A trimmed path has nothing before the crate's name, and a string literal may stand right before
# it, so these are recognised by their names alone.
_KNOWN = (
    b"tracing-opentelemetry",
    b"opentelemetry-otlp",
    b"opentelemetry_sdk",
    b"opentelemetry",
    b"tokio",
    b"hyper-util",
    b"hyper",
    b"axum",
    b"actix-web",
)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Crates (name → versions, several where an image holds several) and rustc's commit."""

    crates: dict[str, tuple[str, ...]]
    rustc_hash: str | None


def find_provenance(image: Image) -> Provenance:
    """All crate versions and the compiler's commit that paths in the image name."""
    crates: dict[str, set[str]] = {}
    rustc_hash: str | None = None
    paths = 0
    for offset, size in _areas(image):
        if rustc_hash is None:
            found = next(image.search(_RUSTC, offset, size, _MAX_PATH), None)
            rustc_hash = found[1][1].decode() if found else None
        for _, match, piece in image.search(_VERSION, offset, size, _MAX_PATH):
            paths += 1
            if paths > _MAX_PATHS:
                raise image.broken("it names more source files than any program has")
            name = _name_before(piece, match.start())
            if name is not None and len(crates) < _MAX_CRATES:
                versions = crates.setdefault(name, set())
                if len(versions) < _MAX_VERSIONS:
                    versions.add(match[1].decode())
    return Provenance({name: tuple(sorted(crates[name])) for name in sorted(crates)}, rustc_hash)


def _areas(image: Image) -> Iterator[tuple[int, int]]:
    """(offset, size) of what holds paths: the constants (else all read-only segments) and .debug_str."""
    constants = image.section(".rodata")
    if constants is not None and constants.size:
        yield constants.offset, constants.size
    else:
        # Segments that overlap, in a hostile file, are not read again and again.
        rest = MAX_SECTION
        for segment in image.loads:
            if not segment.writable and rest:
                size = min(segment.file_size, rest)
                rest -= size
                yield segment.offset, size
    strings = image.section(".debug_str")
    if strings is not None and not strings.compressed:
        yield strings.offset, min(strings.size, _MAX_DEBUG_STRINGS)


def _name_before(piece: bytes, end: int) -> str | None:
    before = piece[max(0, end - 65) : end]
    match = _NAME.match(before.rpartition(b"/")[2]) if b"/" in before else None
    if match is not None:
        return match[0].decode()
    return next((name.decode() for name in _KNOWN if before.endswith(name)), None)
