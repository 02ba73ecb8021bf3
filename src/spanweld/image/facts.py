"""All that is known of an executable before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spanweld.errors import ImageError
from spanweld.image.crates import find_provenance
from spanweld.image.elf import Image
from spanweld.image.language import Language, detect, rustc_version
from spanweld.image.symbols import has_symbols
from spanweld.image.tls import TaskIdOffset, find_task_id_offset

TARGET = "x86_64"
"""The only processor that is read; part of a layout's key."""

# tokio's releases: the first to keep the current task's id, the first where it is a NonZeroU64.
_FIRST_TASK_ID = (1, 22)
_FIRST_WITHOUT_TAG = (1, 40)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What one executable is; made by ``analyse`` or ``examine``.

    ``crates`` maps a crate's name to its versions, normally one. ``task_id`` is None where it is
    not known, and ``task_id_reason`` then says why. ``rustc`` is a version such as ``1.95.0``.
    """

    path: Path
    size: int
    build_id: str | None
    language: Language
    is_pie: bool
    is_static: bool
    has_symbols: bool
    rustc: str | None
    rustc_hash: str | None
    crates: dict[str, tuple[str, ...]]
    task_id: TaskIdOffset | None
    task_id_reason: str
    target: str = TARGET

    def crate_version(self, name: str) -> str | None:
        """The version of a crate, spelled with ``-`` or ``_``, where the image has exactly one."""
        versions = self.crates.get(name) or self.crates.get(name.replace("_", "-")) or ()
        return versions[0] if len(versions) == 1 else None

    def require_rust(self) -> None:
        """Raise an ImageError for a program that has no Rust code of its own."""
        if self.language is Language.GO:
            raise ImageError(
                f"{self.path}: a Go program, not a Rust one",
                "trace it with an agent for Go, such as OpenTelemetry's Go auto-instrumentation",
            )
        if self.language is not Language.RUST:
            raise ImageError(
                f"{self.path}: no sign of rustc in it, so not a Rust program",
                "name the service's own executable, not a launcher or an interpreter",
            )


def analyse(path: Path) -> ImageFacts:
    """Open ``path`` and examine it; an ImageError for what is no x86-64 executable or is damaged."""
    with Image.open(path) as image:
        return examine(image)


def examine(image: Image) -> ImageFacts:
    """The facts of an open image."""
    provenance = find_provenance(image)
    rustc = rustc_version(image)
    language = detect(image, rustc, provenance.rustc_hash)
    task_id: TaskIdOffset | str = "not a Rust program"
    if language is Language.RUST:
        task_id = _find_task_id(image, provenance.crates.get("tokio", ()))
    return ImageFacts(
        path=image.path,
        size=image.size,
        build_id=image.build_id,
        language=language,
        is_pie=image.is_pie,
        is_static=image.is_static,
        has_symbols=has_symbols(image),
        rustc=rustc,
        rustc_hash=provenance.rustc_hash,
        crates=provenance.crates,
        task_id=task_id if isinstance(task_id, TaskIdOffset) else None,
        task_id_reason=task_id if isinstance(task_id, str) else "",
    )


def _find_task_id(image: Image, tokio_versions: tuple[str, ...]) -> TaskIdOffset | str:
    """What the code shows, if it is what the versions of tokio, as far as they are known, have."""
    releases = [tuple(map(int, version.split(".")[:2])) for version in tokio_versions]
    versions = f"tokio {'/'.join(tokio_versions)}"
    if releases and max(releases) < _FIRST_TASK_ID:
        return f"{versions} keeps no id of the current task (1.22 and newer do)"
    task_id = find_task_id_offset(image)
    if releases and isinstance(task_id, TaskIdOffset):
        if task_id.tag_offset_from_fs is None and max(releases) < _FIRST_WITHOUT_TAG:
            return f"{versions} keeps a tag beside the task id, which its functions do not show"
        if task_id.tag_offset_from_fs is not None and min(releases) >= _FIRST_WITHOUT_TAG:
            return f"{versions} keeps no tag beside the task id, which its functions show"
    return task_id
