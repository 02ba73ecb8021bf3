"""Holds the layouts that are read from machine code against those that are known.

    python -m tools.check_code_layouts FILE-OR-FOLDER…

A line for each executable with an SDK: how many fields of its layout the code shows, which of those that tell
more than ids and times are missing, and what is wrong. What is known comes from the image's debug information
or from the database. Exit code 1 if any field is wrong, or if there was nothing to hold against each other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spanweld.errors import ImageError
from spanweld.image import Image, examine
from spanweld.layouts import SdkLayout, known_layout, sdk_versions
from spanweld.layouts.code import CodeError, derive

SHOWN = ("span_data_none", "span_parent_is_remote", "span_name_pointer", "span_kind", "status_ok")


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the code of one image shows; ``reason`` says why that is nothing.

    ``wrong`` has what is known, where that is something else.
    """

    sdk: str
    rustc: str | None
    shown: dict[str, int]
    wrong: dict[str, int | None]
    missing: tuple[str, ...]
    reason: str


def compare(path: Path) -> Comparison | None:
    """None for what has no SDK, or of whose layout nothing is known."""
    with Image.open(path) as image:
        facts = examine(image)
        versions = sdk_versions(facts)
        known = known_layout(image, facts)
        if len(versions) != 1 or not isinstance(known, SdkLayout):
            return None
        try:
            shown = derive(image).values
        except CodeError as error:
            return Comparison(versions[0], facts.rustc, {}, {}, (), str(error))
    wrong = {name: getattr(known, name) for name, value in shown.items() if getattr(known, name) != value}
    missing = tuple(name for name in SHOWN if name not in shown and getattr(known, name) is not None)
    return Comparison(versions[0], facts.rustc, shown, wrong, missing, "")


def _comparisons(places: list[Path]) -> Iterator[tuple[Path, Comparison]]:
    for place in places:
        for path in sorted(place.iterdir()) if place.is_dir() else [place]:
            try:
                found = compare(path)
            except ImageError:
                continue
            if found is not None:
                yield path, found


def main(arguments: list[str]) -> int:
    """Compare all executables that are named or in a folder that is named."""
    count = wrong = 0
    print(f"{'image':<28} {'SDK':<8} {'rustc':<16} fields")
    for path, found in _comparisons([Path(argument) for argument in arguments]):
        count += 1
        wrong += len(found.wrong)
        text = f"none: {found.reason}" if found.reason else str(len(found.shown))
        text += f", without {', '.join(found.missing)}" if found.missing else ""
        for name, known in found.wrong.items():
            text += f"; WRONG: {name} {found.shown[name]:#x}, and it is {known}"
        print(f"{path.name:<28} {found.sdk:<8} {found.rustc or '?':<16} {text}", flush=True)
    print(f"{count} images, {wrong} wrong fields")
    return 1 if wrong or not count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
