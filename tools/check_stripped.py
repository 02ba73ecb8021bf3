"""Strips executables and holds what is found in them without symbols against their symbols.

    python -m tools.check_stripped FILE-OR-FOLDER…

One line for each executable; exit code 1 if any function or task id that was found is a wrong one. Files
without symbols are left out: there is nothing to hold them against.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from spanweld.errors import ImageError
from spanweld.image import (
    Function,
    IdPlace,
    Image,
    TaskIdOffset,
    examine,
    find_many,
    find_new_task_ids,
    find_task_id_offset,
    find_wakers,
    locate,
)
from spanweld.image.symbols import has_symbols
from spanweld.layouts import SdkLayout, layout_of

# All names that the functions have had from 0.17 to 0.33.
PATTERNS = (
    "<opentelemetry*::trace::id_generator::*IdGenerator as opentelemetry*::IdGenerator>::new_trace_id",
    "<opentelemetry*::trace::id_generator::*IdGenerator as opentelemetry*::IdGenerator>::new_span_id",
    "<opentelemetry*::trace::tracer::*Tracer as opentelemetry*::trace::tracer::Tracer>::build_with_context",
    "opentelemetry*::trace::tracer::*Tracer::build_recording_span",
    "opentelemetry*::trace::span::Span::ensure_ended_and_exported",
    "<* as opentelemetry*::trace::span_processor::SpanProcessor>::on_end",
)
TASK_ID = "task id"
NEW_TASKS = "new tasks"
WAKERS = "wakers"


class Outcome(Enum):
    """What became of one thing that is looked for."""

    RIGHT = "right"
    MISSED = "missed"
    WRONG = "wrong"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Finding:
    """``name`` is a function's or one of the names above; ``note`` says why it was not found, or what was."""

    name: str
    outcome: Outcome
    note: str


def compare(path: Path, stripped: Path) -> list[Finding]:
    """What is found in ``stripped``, held against the symbols of ``path``; both are the same program."""
    with Image.open(path) as image, Image.open(stripped) as bare:
        truth = find_many(image, PATTERNS)
        layout = layout_of(bare, examine(bare))
        exported = layout.exported_data if isinstance(layout, SdkLayout) else None
        found = locate(bare, PATTERNS, exported=exported)
        true_offset, offset = find_task_id_offset(image), find_task_id_offset(bare)
        has_tag = isinstance(offset, TaskIdOffset) and offset.tag_offset_from_fs is not None
        new_tasks = [_places(find_new_task_ids(each, may_be_zero=has_tag)) for each in (image, bare)]
        wakers = [_addresses(find_wakers(each)) for each in (image, bare)]
    result = []
    for pattern in PATTERNS:
        name = pattern.rpartition("::")[2]
        expected = [function.address for function in truth[pattern]]
        functions = found[pattern]
        if isinstance(functions, str):
            result.append(_hold(name, expected, functions))
            continue
        # What may be a generator of the service's own is told in the process.
        certain = [function for function in functions if not function.called_from]
        note = ", ".join(f"{function.address:#x}+{function.size:#x}" for function in certain)
        result.append(_hold(name, expected, [function.address for function in certain], note=note))
    true_offsets, offsets = (
        each if isinstance(each, str) else [each.offset_from_fs] for each in (true_offset, offset)
    )
    result.append(_hold(TASK_ID, true_offsets, offsets))
    result.append(_hold(NEW_TASKS, *new_tasks))
    result.append(_hold(WAKERS, *wakers))
    return result


def _places(found: tuple[IdPlace, ...] | str) -> list[int] | str:
    return found if isinstance(found, str) else [place.offset for place in found]


def _addresses(found: tuple[Function, Function] | str) -> list[int] | str:
    return found if isinstance(found, str) else [function.address for function in found]


def _hold(name: str, truth: Sequence[int] | str, found: Sequence[int] | str, *, note: str = "") -> Finding:
    """Of several that there are, all must be found: some of them are wrong."""
    expected = [] if isinstance(truth, str) else truth
    if isinstance(found, str):
        return Finding(name, Outcome.MISSED if expected else Outcome.ABSENT, found)
    outcome = Outcome.RIGHT if found == expected else Outcome.WRONG
    return Finding(name, outcome, note or ", ".join(map(hex, found)))


def strip(path: Path, output: Path, *options: str) -> Path:
    """Write ``path`` without its symbols to ``output``, as ``strip = true`` does."""
    subprocess.run(["strip", *options, "-o", str(output), str(path)], check=True)
    return output


def _executables(places: list[Path]) -> Iterator[Path]:
    for place in places:
        for path in sorted(place.iterdir()) if place.is_dir() else [place]:
            try:
                with Image.open(path) as image:
                    if has_symbols(image):
                        yield path
            except ImageError:
                continue


def main(arguments: list[str]) -> int:
    """Compare all executables that are named or in a folder that is named."""
    totals: Counter[Outcome] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for path in _executables([Path(argument) for argument in arguments]):
            stripped = strip(path, Path(folder) / "stripped")
            start = time.process_time()
            findings = compare(path, stripped)
            seconds = time.process_time() - start
            totals.update(finding.outcome for finding in findings)
            texts = [
                f"{finding.name}: {finding.outcome.value}"
                + (f" ({finding.note})" if finding.outcome in (Outcome.MISSED, Outcome.WRONG) else "")
                for finding in findings
            ]
            print(f"{path.name} ({seconds:.2f} s) {', '.join(texts)}", flush=True)
    print(", ".join(f"{totals[outcome]} {outcome.value}" for outcome in Outcome))
    return 1 if totals[Outcome.WRONG] or not totals else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
